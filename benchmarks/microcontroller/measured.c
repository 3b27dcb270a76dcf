/* The program around what is measured: one call for every sample, its instructions and outputs; and the deepest stack.
 *
 * `measured.h` is written by measure.py: SAMPLES, STACK_BYTES, WORKSPACE_BYTES, OUTPUT_BYTES, the samples, `measured_call`. */
#include "board.h"
#include "measured.h"

#define PAINT 0xA5u

static uint64_t ticks[SAMPLES];
static uint32_t answers[SAMPLES];

static void put_hex(uint32_t value, int digits) {
    char text[9];
    for (int i = digits - 1; i >= 0; --i, value >>= 4) text[i] = "0123456789abcdef"[value & 15u];
    text[digits] = 0;
    board_print(text);
}

/* Many digits at once: each text costs the emulator a call of the host. */
static void put_bytes(const uint8_t *bytes, uint32_t count) {
    char text[257];
    for (uint32_t done = 0; done < count;) {
        uint32_t at = 0;
        for (; at < 256 && done < count; ++done) {
            text[at++] = "0123456789abcdef"[bytes[done] >> 4];
            text[at++] = "0123456789abcdef"[bytes[done] & 15u];
        }
        text[at] = 0;
        board_print(text);
    }
}

static void put_line(const char *name, uint32_t value) {
    board_print(name);
    put_hex(value, 8);
    board_print("\n");
}

int board_main(void) {
    volatile uint8_t *top;
    __asm__ volatile("mov %0, sp" : "=r"(top));
    for (volatile uint8_t *p = top - STACK_BYTES; p < top; ++p) *p = PAINT;
    for (uint32_t sample = 0; sample < SAMPLES; ++sample) {
        uint64_t begin = board_ticks();
        answers[sample] = measured_call(sample);
        ticks[sample] = board_ticks() - begin;
    }
    const volatile uint8_t *low = top - STACK_BYTES;
    while (low < top && *low == PAINT) ++low;
    put_line("stack ", (uint32_t)(top - low));
    put_line("workspace ", WORKSPACE_BYTES);
    for (uint32_t sample = 0; sample < SAMPLES; ++sample) {
        put_hex((uint32_t)(ticks[sample] >> 32), 8);
        put_hex((uint32_t)ticks[sample], 8);
        board_print(" ");
        put_hex(answers[sample], 8);
        board_print(" ");
        put_bytes(measured_outputs[sample], OUTPUT_BYTES);
        board_print("\n");
    }
    return 0;
}

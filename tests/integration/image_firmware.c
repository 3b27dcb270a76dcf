/* A firmware on an emulated board: it runs its own weights, is offered images, and says after each which model answers. The flash
 * of its banks is an array, for the board has none that programs can write. */
#include <string.h>

#include "board.h"
#include "images.h" /* IMAGES: {name, bytes, length}; INPUT: the bytes of an input; OUTPUT_BYTES */
#include "model_release.h"

#define BANK_BYTES ((MODELFLEET_BANKS_PAYLOAD + MODEL_WEIGHTS_BYTES + 255u) / 256u * 256u)
#define PAINT_BYTES 16384u

static uint8_t flash_bytes[2][BANK_BYTES] __attribute__((aligned(16)));
static uint8_t workspace[MODEL_WORKSPACE_BYTES] __attribute__((aligned(16)));
static int8_t output[OUTPUT_BYTES] __attribute__((aligned(16)));

static int read_flash(void *context, uint32_t address, void *bytes, uint32_t length) {
    (void)context;
    memcpy(bytes, &flash_bytes[0][0] + address, length);
    return 0;
}

static int erase_flash(void *context, uint32_t address, uint32_t length) {
    (void)context;
    memset(&flash_bytes[0][0] + address, 0xff, length);
    return 0;
}

static int write_flash(void *context, uint32_t address, const void *bytes, uint32_t length) {
    (void)context;
    memcpy(&flash_bytes[0][0] + address, bytes, length);
    return 0;
}

static const struct modelfleet_flash flash = {read_flash, erase_flash, write_flash, NULL, {0, BANK_BYTES}, BANK_BYTES};
static struct modelfleet_banks banks;

static void put_number(const char *name, uint64_t value) {
    char text[21];
    int at = 20;
    text[at] = '\0';
    do {
        text[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    board_print(name);
    board_print(text + at);
}

static void put_answer(void) {
    const uint8_t *weights = model_weights;
    if (modelfleet_banks_active(&banks) != MODELFLEET_BANKS_BUILTIN) {
        weights = &flash_bytes[0][0] + modelfleet_banks_weights(&banks);
    }
    int status = model_run(weights, workspace, INPUT, output);
    put_number(" run ", (uint64_t)status);
    board_print(" answer ");
    for (uint32_t i = 0; i < OUTPUT_BYTES; i++) {
        char text[3] = {"0123456789abcdef"[(uint8_t)output[i] >> 4], "0123456789abcdef"[output[i] & 15], '\0'};
        board_print(text);
    }
    board_print("\n");
}

static enum modelfleet_image_status install(const uint8_t *bytes, uint32_t length) {
    enum modelfleet_image_status status = modelfleet_banks_begin(&banks, bytes, MODELFLEET_IMAGE_HEADER_BYTES);
    for (uint32_t at = MODELFLEET_IMAGE_HEADER_BYTES; status == MODELFLEET_IMAGE_OK && at < length; at += 256u) {
        status = modelfleet_banks_write(&banks, bytes + at, length - at < 256u ? length - at : 256u);
    }
    return status == MODELFLEET_IMAGE_OK ? modelfleet_banks_finish(&banks) : status;
}

static uint32_t painted(volatile uint8_t *top, int paint) {
    volatile uint8_t *low = top - PAINT_BYTES;
    if (paint) {
        while (low < top - 256) *low++ = 0xA5u;
        return 0;
    }
    while (low < top && *low == 0xA5u) ++low;
    return (uint32_t)(top - low);
}

int board_main(void) {
    volatile uint8_t *top;
    __asm__ volatile("mov %0, sp" : "=r"(top));
    memset(flash_bytes, 0x5a, sizeof flash_bytes);
    modelfleet_banks_open(&banks, &flash, &model_images, model_counter);
    put_number("builtin ", (uint64_t)modelfleet_banks_active(&banks));
    put_answer();
    for (uint32_t i = 0; i < sizeof IMAGES / sizeof IMAGES[0]; i++) {
        painted(top, 1);
        uint64_t begin = board_ticks();
        enum modelfleet_image_status status = install(IMAGES[i].bytes, IMAGES[i].length);
        uint64_t ticks = board_ticks() - begin;
        uint32_t stack = painted(top, 0);
        board_print(IMAGES[i].name);
        put_number(" status ", status);
        put_number(" ticks ", ticks);
        put_number(" stack ", stack);
        put_answer();
        painted(top, 1); /* a start: everything is forgotten but the flash */
        begin = board_ticks();
        modelfleet_banks_open(&banks, &flash, &model_images, model_counter);
        ticks = board_ticks() - begin;
        stack = painted(top, 0);
        put_number("start ", (uint64_t)modelfleet_banks_active(&banks));
        put_number(" ticks ", ticks);
        put_number(" stack ", stack);
        put_answer();
    }
    return 0;
}

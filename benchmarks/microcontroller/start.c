/* Start of an emulated Cortex-M: vectors, memory set up, a 56-bit count of SysTick, text out by semihosting. */
#include "board.h"

extern uint32_t stack_top, data_start, data_end, data_load, bss_start, bss_end;

static volatile uint32_t wraps;

static void semihost(uint32_t operation, const void *argument) {
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

void board_print(const char *text) { semihost(4, text); }

void board_finish(uint32_t code) {
    const uint32_t block[2] = {0x20026, code};
    for (;;) semihost(0x20, block);
}

int *__errno(void); /* newlib's math functions set it; its own would bring a kilobyte of RAM */
int *__errno(void) {
    static int number;
    return &number;
}

#define SYSTICK ((volatile uint32_t *)0xE000E010u)

uint64_t board_ticks(void) {
    uint32_t before, left;
    do {
        before = wraps;
        left = SYSTICK[2];
    } while (before != wraps);
    return ((uint64_t)before << 24) + (0xFFFFFFu - left);
}

static void tick(void) { ++wraps; }

static void fault(void) {
    board_print("fault\n");
    board_finish(3);
}

void board_reset(void) {
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: the FPU, and MVE with it */
    __asm__ volatile("dsb\n\tisb");
    const uint32_t *from = &data_load;
    for (uint32_t *to = &data_start; to < &data_end;) *to++ = *from++;
    for (uint32_t *to = &bss_start; to < &bss_end;) *to++ = 0;
    SYSTICK[1] = 0xFFFFFF;
    SYSTICK[2] = 0;
    SYSTICK[0] = 7;
    board_finish((uint32_t)board_main());
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &stack_top, (const void *)board_reset, (const void *)fault, (const void *)fault, (const void *)fault,
    (const void *)fault, (const void *)fault, (const void *)fault, 0, 0, 0, (const void *)fault, (const void *)fault, 0,
    (const void *)fault, (const void *)tick};

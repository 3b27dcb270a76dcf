/* Expand count groups of four bytes to two words each, three words apart. */
static void dsp_expand_triple(const int8_t *bytes, uint32_t *words, int32_t count) {
#if DSP_ASSEMBLY
    uint32_t first, second, odd;
    int32_t pairs = count / 2;
    if (pairs > 0) {
        __asm__ volatile(
            "1:\n"
            "ldr %0, [%3], #4\nldr %1, [%3], #4\n"
            "sxtb16 %2, %0\nsxtb16 %0, %0, ror #8\n"
            "str %2, [%4], #12\nstr %0, [%4], #12\n"
            "sxtb16 %2, %1\nsxtb16 %1, %1, ror #8\n"
            "str %2, [%4], #12\nstr %1, [%4], #12\n"
            "subs %5, %5, #1\n"
            "bne 1b\n"
            : "=&r"(first), "=&r"(second), "=&r"(odd), "+r"(bytes), "+r"(words), "+r"(pairs)
            :
            : "cc", "memory");
    }
    count %= 2;
#endif
    dsp_expand(bytes, words, 3, count);
}

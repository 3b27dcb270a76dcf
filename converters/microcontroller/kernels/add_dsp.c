/* Sum of two tensors, four elements at a time. parameters[6]: how far sums can be shifted left so that the upper half of the
   word is the sum shifted right by parameters[3]; below 0 where they would overflow (add_wide does it then, or add_int8). */
#if defined(__ARM_FEATURE_DSP)
typedef uint32_t __attribute__((may_alias)) add_word;

/* The upper halves of the sums of elements 0 and 2, saturated to int8; lanes: of a and of b, two int16 each. */
static inline uint32_t add_lanes(uint32_t a, uint32_t b, uint32_t factors, uint32_t offset, uint32_t left) {
    uint32_t even, odd;
    __asm__("pkhbt %0, %2, %3, lsl #16\n\t"
            "pkhtb %1, %3, %2, asr #16\n\t"
            "smlad %0, %0, %4, %5\n\t"
            "smlad %1, %1, %4, %5\n\t"
            "lsl %0, %0, %6\n\t"
            "lsl %1, %1, %6\n\t"
            "pkhtb %0, %1, %0, asr #16\n\t"
            "ssat16 %0, #8, %0\n\t"
            "uxtb16 %0, %0"
            : "=&r"(even), "=&r"(odd)
            : "r"(a), "r"(b), "r"(factors), "r"(offset), "r"(left));
    return even;
}

/* The sums of elements 0 and 2 shifted right by 16 or more, saturated to int8; their multipliers may be larger than int16. */
static inline uint32_t add_wide(uint32_t a, uint32_t b, const int32_t *parameters) {
    const uint32_t first = (uint32_t)parameters[0], second = (uint32_t)parameters[1], offset = (uint32_t)parameters[2];
    const uint32_t low = (uint32_t)(int8_t)a * first + offset + (uint32_t)(int8_t)b * second;
    const uint32_t high = (uint32_t)(int8_t)(a >> 16) * first + offset + (uint32_t)(int8_t)(b >> 16) * second;
    uint32_t both;
    __asm__("pkhbt %0, %1, %2, lsl #16\n\t"
            "ssat16 %0, #8, %0\n\t"
            "uxtb16 %0, %0"
            : "=r"(both)
            : "r"((int32_t)low >> parameters[3]), "r"((int32_t)high >> parameters[3]));
    return both;
}

static void add_int8_dsp(const int8_t *a, const int8_t *b, int8_t *output, const int32_t *parameters, int32_t count) {
    int32_t done = 0;
    if (parameters[6] >= 0 || parameters[3] >= 16) {
        const uint32_t factors = ((uint32_t)parameters[0] & 0xffffu) | ((uint32_t)parameters[1] << 16);
        const uint32_t offset = (uint32_t)parameters[2], left = (uint32_t)parameters[6];
        const uint32_t least = ((uint32_t)parameters[4] & 0xffu) * 0x01010101u;
        const uint32_t greatest = ((uint32_t)parameters[5] & 0xffu) * 0x01010101u;
        const add_word *word_a = (const add_word *)(const void *)a, *word_b = (const add_word *)(const void *)b;
        add_word *words = (add_word *)(void *)output;
        const int32_t wide[4] = {parameters[0], parameters[1], parameters[2], parameters[3]};
        done = count & ~3;
        for (const add_word *const end = words + count / 4; words != end;) {
            const uint32_t x = *word_a++, y = *word_b++;
            uint32_t sums, other;
            if (parameters[6] >= 0) {
                uint32_t x0, x1, y0, y1;
                __asm__("sxtb16 %0, %4\n\t"
                        "sxtb16 %1, %4, ror #8\n\t"
                        "sxtb16 %2, %5\n\t"
                        "sxtb16 %3, %5, ror #8"
                        : "=&r"(x0), "=&r"(x1), "=&r"(y0), "=r"(y1)
                        : "r"(x), "r"(y));
                sums = add_lanes(x0, y0, factors, offset, left) | add_lanes(x1, y1, factors, offset, left) << 8;
            } else {
                sums = add_wide(x, y, wide) | add_wide(x >> 8, y >> 8, wide) << 8;
            }
            __asm__("ssub8 %1, %0, %2\n\t" /* per byte: the greater of sum and least, then the less of that and greatest */
                    "sel %0, %0, %2\n\t"
                    "ssub8 %1, %3, %0\n\t"
                    "sel %0, %0, %3"
                    : "+r"(sums), "=&r"(other)
                    : "r"(least), "r"(greatest)
                    : "cc");
            *words++ = sums;
        }
    }
    add_int8(a + done, b + done, output + done, parameters, count - done);
}
#else
static void add_int8_dsp(const int8_t *a, const int8_t *b, int8_t *output, const int32_t *parameters, int32_t count) {
    add_int8(a, b, output, parameters, count);
}
#endif

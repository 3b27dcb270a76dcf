/* Weights for Armv7E-M: see kernels/dsp_pack.py for the layout. The header of an operator: zero point less the least value, then
   words for four bytes at once: what saturates the greatest value to 255, what moves 255 to it; then the pad value. */
struct dsp_header {
    int32_t zero;
    uint32_t above, sign;
    int32_t pad;
};

#if DSP_ASSEMBLY
/* The arguments lie where the procedure call standard says: no compiler may change the call. */
#if defined(__clang__)
#define DSP_NAKED __attribute__((naked, noinline, unused))
#else
#define DSP_NAKED __attribute__((naked, noipa, unused))
#endif
#define DSP_UNUSED __attribute__((unused))

static inline uint32_t dsp_word(const int8_t *bytes) {
    uint32_t word; /* at any address: Armv7E-M loads it in one instruction */
    __builtin_memcpy(&word, bytes, sizeof word);
    return word;
}

/* Bytes 0 and 2, or 1 and 3, as two int16. */
static inline uint32_t dsp_even(uint32_t word) {
    uint32_t pair;
    __asm__("sxtb16 %0, %1" : "=r"(pair) : "r"(word));
    return pair;
}

static inline uint32_t dsp_odd(uint32_t word) {
    uint32_t pair;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(word));
    return pair;
}
#else
static uint32_t dsp_word(const int8_t *bytes) {
    return (uint32_t)(uint8_t)bytes[0] | (uint32_t)(uint8_t)bytes[1] << 8 | (uint32_t)(uint8_t)bytes[2] << 16 |
           (uint32_t)(uint8_t)bytes[3] << 24;
}

static int32_t dsp_byte(uint32_t word) {
    return (int32_t)((word & 0xffu) ^ 0x80u) - 0x80;
}

static int32_t dsp_half(uint32_t word) {
    return (int32_t)((word & 0xffffu) ^ 0x8000u) - 0x8000;
}

static uint32_t dsp_even(uint32_t word) {
    return ((uint32_t)dsp_byte(word) & 0xffffu) | (uint32_t)dsp_byte(word >> 16) << 16;
}

static uint32_t dsp_odd(uint32_t word) {
    return dsp_even(word >> 8);
}

static int8_t dsp_requantize(int32_t accumulator, uint32_t word, const struct dsp_header *header) {
    const int32_t greatest = dsp_byte(header->sign - 1u);
    const int32_t least = greatest - (int32_t)(0xffu - (header->above & 0xffu));
    const int32_t parameters[5] = {header->zero + least, least, greatest, 0, 0};
    multiplier_t multiplier;
    uint8_t *const to = (uint8_t *)&multiplier;
    to[0] = (uint8_t)word;
    to[1] = (uint8_t)(word >> 8);
    to[2] = (uint8_t)(word >> 16);
    to[3] = (uint8_t)(word >> 24);
    return requantize(accumulator, multiplier, parameters);
}
#endif

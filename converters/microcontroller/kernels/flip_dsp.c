/* The top bits of words flipped. */
#if defined(__ARM_FEATURE_DSP)
typedef uint32_t __attribute__((may_alias)) flip_word;

static void flip_sign_dsp(const uint8_t *input, uint8_t *output, int32_t count) {
    const flip_word *from = (const flip_word *)(const void *)input;
    flip_word *to = (flip_word *)(void *)output;
    int32_t left = count;
    for (; left >= 8; left -= 8) {
        const uint32_t low = *from++, high = *from++;
        *to++ = low ^ 0x80808080u;
        *to++ = high ^ 0x80808080u;
    }
    flip_sign(input + (count - left), output + (count - left), left);
}
#else
static void flip_sign_dsp(const uint8_t *input, uint8_t *output, int32_t count) {
    flip_sign(input, output, count);
}
#endif

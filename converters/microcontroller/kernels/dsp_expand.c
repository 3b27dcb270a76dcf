/* Expand count groups of four bytes to two words each, step words apart. */
static void dsp_expand(const int8_t *bytes, uint32_t *words, int32_t step, int32_t count) {
    for (; count > 0; count--) {
        const uint32_t word = dsp_word(bytes);
        words[0] = dsp_even(word);
        words[step] = dsp_odd(word);
        bytes += 4;
        words += 2 * step;
    }
}

/* As dsp_expand, for the last 1 to 3 bytes: the others are 0. */
static void dsp_expand_rest(const int8_t *bytes, uint32_t *words, int32_t step, int32_t count) {
    uint32_t word = (uint8_t)bytes[0];
    if (count > 1) {
        word |= (uint32_t)(uint8_t)bytes[1] << 8;
    }
    if (count > 2) {
        word |= (uint32_t)(uint8_t)bytes[2] << 16;
    }
    words[0] = dsp_even(word);
    words[step] = dsp_odd(word);
}

/* A row, expanded: depth / 2 words, step words apart. depth: bytes rounded up to a multiple of 4. */
static void dense_dsp_row(const int8_t *input, uint32_t *columns, int32_t step, int32_t bytes) {
    dsp_expand(input, columns, step, bytes / 4);
    if (bytes % 4 != 0) {
        dsp_expand_rest(input + bytes / 4 * 4, columns + bytes / 4 * 2 * step, step, bytes % 4);
    }
}

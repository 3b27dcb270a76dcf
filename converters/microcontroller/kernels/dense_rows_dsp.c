/* Matrix product, every row by itself, three at a time. columns: scratch. */
static void dense_rows_dsp(const int8_t *input, int8_t *output, const uint32_t *constants, uint32_t *columns, int32_t rows,
                           int32_t bytes, int32_t channels) {
    const struct dsp_header *const header = (const struct dsp_header *)(const void *)constants;
    const int32_t whole = bytes / 4;
    for (; rows > 0; rows -= 3) {
        const int32_t taken = rows < 3 ? rows : 3;
        for (int32_t row = 0; row < taken; row++) {
            dsp_expand_triple(input, columns + row, whole);
            if (bytes % 4 != 0) {
                dsp_expand_rest(input + whole * 4, columns + row + whole * 6, 3, bytes % 4);
            }
            input += bytes;
        }
        dsp_triple(constants + 4, columns, output, channels, (bytes + 3) / 4 * 4, taken, header);
        output += taken * channels;
    }
}

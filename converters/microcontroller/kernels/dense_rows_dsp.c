/* Matrix product, every row by itself, two at a time. columns: scratch. */
static void dense_rows_dsp(const int8_t *input, int8_t *output, const uint32_t *constants, uint32_t *columns, int32_t rows,
                           int32_t bytes, int32_t channels) {
    const struct dsp_header *const header = (const struct dsp_header *)(const void *)constants;
    const int32_t depth = (bytes + 3) / 4 * 4;
    for (; rows > 1; rows -= 2) {
        dense_dsp_row(input, columns, 2, bytes);
        dense_dsp_row(input + bytes, columns + 1, 2, bytes);
        dsp_double(constants + 4, columns, output, channels, depth, header);
        input += 2 * bytes;
        output += 2 * channels;
    }
    if (rows > 0) {
        dense_dsp_row(input, columns, 1, bytes);
        dsp_single(constants + 4, columns, output, channels, depth, header);
    }
}

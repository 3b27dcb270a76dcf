/* Matrix product of one row. columns: scratch. */
static void dense_one_dsp(const int8_t *input, int8_t *output, const uint32_t *constants, uint32_t *columns, int32_t bytes,
                          int32_t channels) {
    dsp_expand(input, columns, 1, bytes / 4);
    if (bytes % 4 != 0) {
        dsp_expand_rest(input + bytes / 4 * 4, columns + bytes / 4 * 2, 1, bytes % 4);
    }
    dsp_single(constants + 4, columns, output, channels, (bytes + 3) / 4 * 4, (const struct dsp_header *)(const void *)constants);
}

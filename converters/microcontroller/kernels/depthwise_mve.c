/* ROW: the function of a row of outputs. */
static void mve_depthwise_ROW(const int8_t *x, const int8_t *weights, const int8_t *pad, int8_t *y, int8_t *columns,
                          const mve_depthwise_shape *shape) {
    static const uint8_t slots[3][16] = {
        {0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 0},
        {16, 32, 0, 64, 80, 48, 112, 128, 96, 160, 176, 144, 208, 224, 192, 0},
        {32, 0, 16, 80, 48, 64, 128, 96, 112, 176, 144, 160, 224, 192, 208, 0},
    };
    for (uint32_t slot = 0; slot < 3u; ++slot) {
        mve_fill_columns(columns + 16u * slot, *pad, &shape->all);
    }
    uint32_t next = 0; /* counts rows from the first one of the padding */
    for (uint32_t out = 0; out < shape->out_height; ++out) {
        const uint32_t first = out * shape->stride;
        for (next = next < first ? first : next; next < first + 3u; ++next) {
            int8_t *const place = columns + shape->pad_left_bytes + 16u * (next % 3u);
            const uint32_t own = next - shape->pad_top; /* wraps above the image */
            if (own < shape->height) {
                mve_copy_columns(place, x + (size_t)own * shape->row_bytes, &shape->image);
            } else {
                mve_fill_columns(place, *pad, &shape->image);
            }
        }
        ROW(columns, weights, y, &shape->row, slots[first % 3u]);
        y += shape->out_row_bytes;
    }
}

/* ROWS: the function of rows of this length. */
static void mve_conv_ROWS(const int8_t *x, const int8_t *weights, const int8_t *pad, int8_t *y, int8_t *stripe,
                     const mve_conv_shape *shape) {
    for (uint32_t k = 0; k < shape->kernel_height; ++k) {
        mve_fill_columns(stripe + (size_t)k * shape->image.channels, *pad, &shape->all);
    }
    for (uint32_t out = 0; out < shape->out_height; ++out) {
        for (uint32_t k = 0; k < shape->kernel_height; ++k) {
            int8_t *const place = stripe + shape->pad_left_bytes + (size_t)k * shape->image.channels;
            const uint32_t row = out * shape->stride + k * shape->dilation - shape->pad_top; /* wraps above the image */
            if (row < shape->height) {
                mve_copy_columns(place, x + (size_t)row * shape->row_bytes, &shape->image);
            } else {
                mve_fill_columns(place, *pad, &shape->image);
            }
        }
        ROWS(stripe, weights, y, &shape->rows);
        y += shape->out_row_bytes;
    }
}

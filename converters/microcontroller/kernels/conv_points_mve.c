/* Convolution of 1x1 with strides: rows of the input, a stride apart, times weights. ROWS: the function of rows of this length. */
static void mve_conv_points_ROWS(const int8_t *x, const int8_t *weights, int8_t *y, uint32_t out_height, uint32_t x_bytes, uint32_t y_bytes,
                            const mve_rows_shape *shape) {
    for (uint32_t out = 0; out < out_height; ++out) {
        ROWS(x + (size_t)out * x_bytes, weights, y + (size_t)out * y_bytes, shape);
    }
}

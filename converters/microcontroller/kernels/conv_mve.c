/* Convolution: the rows of the image that a row of outputs reads are laid column by column, so that every window is one run of
   bytes; then the windows are rows of a matrix product. */
typedef struct {
    uint32_t height, row_bytes;       /* of the input */
    uint32_t out_height, out_row_bytes;
    uint32_t kernel_height, dilation, stride, pad_top; /* of rows */
    uint32_t pad_left_bytes;
    mve_columns image; /* a row's columns among those of the stripe */
    mve_columns all;   /* all columns, pads too */
    mve_rows_shape rows;
} mve_conv_shape;

static void mve_conv(const int8_t *x, const int8_t *weights, const int8_t *pad, int8_t *y, int8_t *stripe,
                     const mve_conv_shape *shape, mve_rows_function rows) {
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
        rows(stripe, weights, y, &shape->rows);
        y += shape->out_row_bytes;
    }
}

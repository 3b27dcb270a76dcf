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

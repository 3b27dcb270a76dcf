/* What a convolution needs of its shapes. */
struct windows {
    int32_t height, width, depth;
    int32_t out_height, out_width, channels;
    int32_t kernel_height, kernel_width;
    int32_t stride_y, stride_x;
    int32_t dilation_y, dilation_x;
    int32_t pad_top, pad_left;
};

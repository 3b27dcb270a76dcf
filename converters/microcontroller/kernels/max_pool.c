/* The greatest of each window; taps outside the image are ignored. */
MODEL_MAY_BE_UNUSED static void max_pool(const int8_t *input, int8_t *output, const struct windows *shape) {
    const int32_t channels = shape->channels;
    for (int32_t y = 0; y < shape->out_height; y++) {
        for (int32_t x = 0; x < shape->out_width; x++) {
            for (int32_t channel = 0; channel < channels; channel++) {
                int32_t most = -128;
                for (int32_t i = 0; i < shape->kernel_height; i++) {
                    const int32_t row = y * shape->stride_y - shape->pad_top + i * shape->dilation_y;
                    for (int32_t j = 0; j < shape->kernel_width; j++) {
                        const int32_t column = x * shape->stride_x - shape->pad_left + j * shape->dilation_x;
                        if (row >= 0 && row < shape->height && column >= 0 && column < shape->width) {
                            const int32_t value = input[(row * shape->width + column) * channels + channel];
                            most = value > most ? value : most;
                        }
                    }
                }
                output[channel] = (int8_t)most;
            }
            output += channels;
        }
    }
}

/* The mean of each window. parameters: of requantize; the fifth is the input's zero point, which taps outside read. */
MODEL_MAY_BE_UNUSED static void average_pool(const int8_t *input, int8_t *output, const multiplier_t *multiplier, const int32_t *parameters,
                         const struct windows *shape) {
    const int32_t channels = shape->channels;
    for (int32_t y = 0; y < shape->out_height; y++) {
        for (int32_t x = 0; x < shape->out_width; x++) {
            const struct pool_window window = pool_window_at(shape, y, x);
            const int8_t *const begin = input + (window.top * shape->width + window.left) * channels;
            for (int32_t channel = 0; channel < channels; channel++) {
                int32_t sum = -parameters[4] * window.rows * window.columns;
                for (int32_t i = 0; i < window.rows; i++) {
                    for (int32_t j = 0; j < window.columns; j++) {
                        sum += begin[(i * shape->width + j) * channels + channel];
                    }
                }
                output[channel] = requantize(sum, multiplier[0], parameters);
            }
            output += channels;
        }
    }
}

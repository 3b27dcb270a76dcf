/* Convolution of every channel by itself, pixel by pixel, low addresses first. */
static void depthwise(const int8_t *input, int8_t *output, const int8_t *weights, const int32_t *bias,
                      const multiplier_t *multipliers, const int32_t *parameters, const struct windows *shape) {
    const int32_t channels = shape->channels;
    const int32_t pad = parameters[4];
    for (int32_t y = 0; y < shape->out_height; y++) {
        for (int32_t x = 0; x < shape->out_width; x++) {
            for (int32_t channel = 0; channel < channels; channel++) {
                const int8_t *weight = weights + channel;
                int32_t sum = bias[channel];
                for (int32_t i = 0; i < shape->kernel_height; i++) {
                    const int32_t row = y * shape->stride_y - shape->pad_top + i * shape->dilation_y;
                    for (int32_t j = 0; j < shape->kernel_width; j++) {
                        const int32_t column = x * shape->stride_x - shape->pad_left + j * shape->dilation_x;
                        const int inside = row >= 0 && row < shape->height && column >= 0 && column < shape->width;
                        sum += (inside ? input[(row * shape->width + column) * channels + channel] : pad) * *weight;
                        weight += channels;
                    }
                }
                output[channel] = requantize(sum, multipliers[channel], parameters);
            }
            output += channels;
        }
    }
}

/* Convolution: depth is the number of channels that one output channel reads, pixel by pixel, low addresses first. */
static void conv(const int8_t *input, int8_t *output, const int8_t *weights, const int32_t *bias,
                 const multiplier_t *multipliers, const int32_t *parameters, const struct windows *shape, int32_t groups) {
    const int32_t depth = shape->depth / groups;
    const int32_t group_channels = shape->channels / groups;
    const int32_t pad = parameters[4];
    for (int32_t y = 0; y < shape->out_height; y++) {
        for (int32_t x = 0; x < shape->out_width; x++) {
            const int8_t *weight = weights;
            for (int32_t channel = 0; channel < shape->channels; channel++) {
                const int8_t *const first = input + channel / group_channels * depth;
                int32_t sum = bias[channel];
                for (int32_t i = 0; i < shape->kernel_height; i++) {
                    const int32_t row = y * shape->stride_y - shape->pad_top + i * shape->dilation_y;
                    for (int32_t j = 0; j < shape->kernel_width; j++) {
                        const int32_t column = x * shape->stride_x - shape->pad_left + j * shape->dilation_x;
                        if (row >= 0 && row < shape->height && column >= 0 && column < shape->width) {
                            const int8_t *const pixel = first + (row * shape->width + column) * shape->depth;
                            for (int32_t d = 0; d < depth; d++) {
                                sum += pixel[d] * weight[d];
                            }
                        } else {
                            for (int32_t d = 0; d < depth; d++) {
                                sum += pad * weight[d];
                            }
                        }
                        weight += depth;
                    }
                }
                output[channel] = requantize(sum, multipliers[channel], parameters);
            }
            output += shape->channels;
        }
    }
}

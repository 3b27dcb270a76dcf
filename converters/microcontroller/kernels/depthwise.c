/* Convolution of every channel by itself, pixel by pixel, low addresses first, four channels at a time. taps: as many pointers as
   the kernel has taps; pads: a pixel outside the image. */
static void depthwise_taps(const int8_t *input, const int8_t **taps, const int8_t *pads, const struct windows *shape, int32_t y,
                           int32_t x) {
    for (int32_t i = 0; i < shape->kernel_height; i++) {
        const int32_t row = y * shape->stride_y - shape->pad_top + i * shape->dilation_y;
        for (int32_t j = 0; j < shape->kernel_width; j++) {
            const int32_t column = x * shape->stride_x - shape->pad_left + j * shape->dilation_x;
            const int inside = row >= 0 && row < shape->height && column >= 0 && column < shape->width;
            *taps++ = inside ? input + (row * shape->width + column) * shape->channels : pads;
        }
    }
}

static void depthwise(const int8_t *input, int8_t *output, const int8_t *weights, const int32_t *bias,
                      const multiplier_t *multipliers, const int32_t *parameters, const int8_t **taps, int8_t *pads,
                      const struct windows *shape) {
    const int32_t channels = shape->channels, count = shape->kernel_height * shape->kernel_width;
    for (int32_t channel = 0; channel < channels; channel++) {
        pads[channel] = (int8_t)parameters[4];
    }
    for (int32_t pixel = 0; pixel < shape->out_height * shape->out_width; pixel++) {
        int32_t channel = 0;
        depthwise_taps(input, taps, pads, shape, pixel / shape->out_width, pixel % shape->out_width);
        for (; channel + 4 <= channels; channel += 4) {
            const int8_t *weight = weights + channel;
            int32_t sum_0 = bias[channel], sum_1 = bias[channel + 1], sum_2 = bias[channel + 2], sum_3 = bias[channel + 3];
            for (int32_t tap = 0; tap < count; tap++) {
                const int8_t *const x = taps[tap] + channel;
                sum_0 += x[0] * weight[0];
                sum_1 += x[1] * weight[1];
                sum_2 += x[2] * weight[2];
                sum_3 += x[3] * weight[3];
                weight += channels;
            }
            output[channel] = requantize(sum_0, multipliers[channel], parameters);
            output[channel + 1] = requantize(sum_1, multipliers[channel + 1], parameters);
            output[channel + 2] = requantize(sum_2, multipliers[channel + 2], parameters);
            output[channel + 3] = requantize(sum_3, multipliers[channel + 3], parameters);
        }
        for (; channel < channels; channel++) {
            int32_t sum = bias[channel];
            for (int32_t tap = 0; tap < count; tap++) {
                sum += taps[tap][channel] * weights[tap * channels + channel];
            }
            output[channel] = requantize(sum, multipliers[channel], parameters);
        }
        output += channels;
    }
}

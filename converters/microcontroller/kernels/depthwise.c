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

/* Adds four channels of all taps to sums. */
MODEL_APART static void depthwise_four(const int8_t *const *taps, int32_t count, int32_t channel, const int8_t *weights,
                                       int32_t channels, int32_t *sums) {
    int32_t sum_0 = sums[0], sum_1 = sums[1], sum_2 = sums[2], sum_3 = sums[3];
    for (int32_t tap = 0; tap < count; tap++) {
        const int8_t *const x = taps[tap] + channel;
        sum_0 += x[0] * weights[0];
        sum_1 += x[1] * weights[1];
        sum_2 += x[2] * weights[2];
        sum_3 += x[3] * weights[3];
        weights += channels;
    }
    sums[0] = sum_0;
    sums[1] = sum_1;
    sums[2] = sum_2;
    sums[3] = sum_3;
}

static void depthwise(const int8_t *input, int8_t *output, const int8_t *weights, const int32_t *bias,
                      const multiplier_t *multipliers, const int32_t *parameters, const int8_t **taps, int8_t *pads,
                      const struct windows *shape) {
    const int32_t channels = shape->channels, count = shape->kernel_height * shape->kernel_width;
    const int32_t whole = channels - channels % 4;
    for (int32_t channel = 0; channel < channels; channel++) {
        pads[channel] = (int8_t)parameters[4];
    }
    for (int32_t pixel = 0; pixel < shape->out_height * shape->out_width; pixel++) {
        depthwise_taps(input, taps, pads, shape, pixel / shape->out_width, pixel % shape->out_width);
        for (int32_t channel = 0; channel < whole; channel += 4) {
            int32_t sums[4] = {bias[channel], bias[channel + 1], bias[channel + 2], bias[channel + 3]};
            depthwise_four(taps, count, channel, weights + channel, channels, sums);
            for (int32_t i = 0; i < 4; i++) {
                output[channel + i] = requantize(sums[i], multipliers[channel + i], parameters);
            }
        }
        for (int32_t channel = whole; channel < channels; channel++) {
            int32_t sum = bias[channel];
            for (int32_t tap = 0; tap < count; tap++) {
                sum += taps[tap][channel] * weights[tap * channels + channel];
            }
            output[channel] = requantize(sum, multipliers[channel], parameters);
        }
        output += channels;
    }
}

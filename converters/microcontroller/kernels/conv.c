/* Convolution, two pixels at a time: their windows are copied to scratch, tap by tap, and are rows of a product. */
static void conv_window(const int8_t *input, int8_t *to, const struct windows *shape, int32_t y, int32_t x, int32_t depth, int32_t pad) {
    for (int32_t i = 0; i < shape->kernel_height; i++) {
        const int32_t row = y * shape->stride_y - shape->pad_top + i * shape->dilation_y;
        for (int32_t j = 0; j < shape->kernel_width; j++) {
            const int32_t column = x * shape->stride_x - shape->pad_left + j * shape->dilation_x;
            if (row >= 0 && row < shape->height && column >= 0 && column < shape->width) {
                const int8_t *const pixel = input + (row * shape->width + column) * shape->depth;
                for (int32_t d = 0; d < depth; d++) {
                    to[d] = pixel[d];
                }
            } else {
                for (int32_t d = 0; d < depth; d++) {
                    to[d] = (int8_t)pad;
                }
            }
            to += depth;
        }
    }
}

static void conv(const int8_t *input, int8_t *output, const int8_t *weights, const int32_t *bias,
                 const multiplier_t *multipliers, const int32_t *parameters, int8_t *scratch, const struct windows *shape,
                 int32_t groups) {
    const int32_t depth = shape->depth / groups, channels = shape->channels / groups;
    const int32_t taps = shape->kernel_height * shape->kernel_width * depth;
    const int32_t pixels = shape->out_height * shape->out_width;
    for (int32_t pixel = 0; pixel < pixels; pixel += 2) {
        const int32_t now = pixel + 2 <= pixels ? 2 : 1;
        for (int32_t group = 0; group < groups; group++) {
            for (int32_t i = 0; i < now; i++) {
                const int32_t y = (pixel + i) / shape->out_width, x = (pixel + i) % shape->out_width;
                conv_window(input + group * depth, scratch + i * taps, shape, y, x, depth, parameters[4]);
            }
            const int32_t first = group * channels;
            products(scratch, output + first, weights + first * taps, bias + first, multipliers + first, parameters, now, taps,
                     channels, shape->channels);
        }
        output += now * shape->channels;
    }
}

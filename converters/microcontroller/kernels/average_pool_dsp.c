/* The mean of each window, four channels at a time; chunk: rows of a window whose sums fit in int16. */
#if defined(__ARM_FEATURE_DSP)
typedef uint32_t __attribute__((may_alias)) pool_word;

static void average_pool_dsp(const int8_t *input, int8_t *output, const multiplier_t *multiplier, const int32_t *parameters,
                             const struct windows *shape, int32_t chunk) {
    const int32_t channels = shape->channels;
    for (int32_t y = 0; y < shape->out_height; y++) {
        for (int32_t x = 0; x < shape->out_width; x++) {
            const struct pool_window window = pool_window_at(shape, y, x);
            const int8_t *begin = input + (window.top * shape->width + window.left) * channels;
            const int32_t start = -parameters[4] * window.rows * window.columns;
            for (int32_t channel = 0; channel < channels; channel += 4) {
                const int8_t *row = begin + channel;
                int32_t sums[4] = {start, start, start, start};
                for (int32_t left = window.rows; left > 0; left -= chunk) {
                    uint32_t even = 0, odd = 0;
                    for (int32_t i = left < chunk ? left : chunk; i > 0; i--) {
                        const int8_t *pixel = row;
                        for (int32_t j = window.columns; j > 0; j--) {
                            const uint32_t word = *(const pool_word *)(const void *)pixel;
                            __asm__("sxtab16 %0, %0, %2\n\t"
                                    "sxtab16 %1, %1, %2, ror #8"
                                    : "+&r"(even), "+&r"(odd)
                                    : "r"(word));
                            pixel += channels;
                        }
                        row += shape->width * channels;
                    }
                    sums[0] += (int16_t)even;
                    sums[1] += (int16_t)odd;
                    sums[2] += (int32_t)even >> 16;
                    sums[3] += (int32_t)odd >> 16;
                }
                for (int32_t i = 0; i < 4; i++) {
                    *output++ = requantize(sums[i], multiplier[0], parameters);
                }
            }
        }
    }
}
#else
static void average_pool_dsp(const int8_t *input, int8_t *output, const multiplier_t *multiplier, const int32_t *parameters,
                             const struct windows *shape, int32_t chunk) {
    (void)chunk;
    average_pool(input, output, multiplier, parameters, shape);
}
#endif

/* The greatest of each window, four channels at a time, dilation 1. */
#if defined(__ARM_FEATURE_DSP)
typedef uint32_t __attribute__((may_alias)) max_word;

static void max_pool_dsp(const int8_t *input, int8_t *output, const struct windows *shape) {
    const int32_t channels = shape->channels;
    for (int32_t y = 0; y < shape->out_height; y++) {
        for (int32_t x = 0; x < shape->out_width; x++) {
            const struct pool_window window = pool_window_at(shape, y, x);
            const int8_t *begin = input + (window.top * shape->width + window.left) * channels;
            for (int32_t channel = 0; channel < channels; channel += 4) {
                const int8_t *row = begin + channel;
                uint32_t most = 0x80808080u, difference;
                for (int32_t i = window.rows; i > 0; i--) {
                    const int8_t *pixel = row;
                    for (int32_t j = window.columns; j > 0; j--) {
                        const uint32_t word = *(const max_word *)(const void *)pixel;
                        __asm__("ssub8 %1, %0, %2\n\t"
                                "sel %0, %0, %2"
                                : "+r"(most), "=&r"(difference)
                                : "r"(word)
                                : "cc");
                        pixel += channels;
                    }
                    row += shape->width * channels;
                }
                *(max_word *)(void *)output = most;
                output += 4;
            }
        }
    }
}
#else
static void max_pool_dsp(const int8_t *input, int8_t *output, const struct windows *shape) {
    max_pool(input, output, shape);
}
#endif

/* Windows of more than 3x3, two side by side (depthwise_wide_mve.py says how weights lie): what the assembly computes. */
#if !defined(__ARM_FEATURE_MVE)
static void mve_depthwise_wide_rows(const int8_t *columns, const int8_t *weights, int8_t *y, const mve_depthwise_row *shape,
                                    const uint8_t *slots, uint32_t taps, uint32_t part, int exact) {
    const uint32_t record = (taps + 15u) / 16u * 16u, block_bytes = 4u * record + 32u;
    for (uint32_t out = 0; out < shape->out_width; ++out) {
        for (uint32_t c = 0; c < shape->channels; ++c) {
            const int8_t *const block = weights + 16 + (size_t)(c / 4u) * block_bytes;
            const uint32_t own = c % 4u, order = own == 1u ? 2u : own == 2u ? 1u : own;
            const int8_t *const with = block + order * record, *const numbers = block + 4u * record + 4u * own;
            const int8_t *const from = columns + c / part * (shape->part_step + part) + c % part + (size_t)out * shape->third;
            uint32_t sum = (uint32_t)mve_word(numbers + 16);
            for (uint32_t i = 0; i < taps; ++i) {
                sum += (uint32_t)(from[slots[i]] * with[i]);
            }
            y[c] = mve_scaled((int32_t)sum, weights, numbers, exact);
        }
        y += shape->channels;
    }
}
#endif

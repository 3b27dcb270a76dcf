/* Rows times packed weights (rows_mve.py says how they lie), four channels at a time. */
typedef struct {
    uint32_t rows;
    uint32_t stride; /* bytes from a row to the next */
    uint32_t channels;
} mve_rows_shape;

#if !defined(__ARM_FEATURE_MVE)
static int32_t mve_word(const int8_t *bytes) {
    uint32_t word = 0;
    for (uint32_t i = 4; i-- > 0;) {
        word = word << 8 | (uint8_t)bytes[i];
    }
    return (int32_t)word;
}

static int8_t mve_clamp(int64_t value, const int8_t *header) {
    const int32_t lo = mve_word(header + 8), hi = mve_word(header + 12);
    return (int8_t)(value < lo ? lo : value > hi ? hi : value);
}

/* header: shift, zero point, least, greatest; number: the multiplier, or the bits of the factor. */
static int8_t mve_scaled(int32_t sum, const int8_t *header, const int8_t *number, int exact) {
    const int32_t zero_point = mve_word(header + 4);
    if (exact == 0) {
        const int64_t product = (int64_t)sum * mve_word(number) * ((int64_t)1 << mve_word(header));
        return mve_clamp(((product + ((int64_t)1 << 31)) >> 32) + zero_point, header);
    }
    union {
        int32_t bits;
        float value;
    } factor;
    factor.bits = mve_word(number);
    const volatile float product = (float)sum * factor.value; /* rounded once, in float32, before it becomes an integer */
    if (product >= 1073741824.0F || product <= -1073741824.0F) {
        return mve_clamp(product > 0.0F ? 1073741824 : -1073741824, header);
    }
    int32_t whole = (int32_t)product;
    const float rest = product - (float)whole;
    if (rest > 0.5F || (rest == 0.5F && (whole & 1) != 0)) {
        ++whole;
    } else if (rest < -0.5F || (rest == -0.5F && (whole & 1) != 0)) {
        --whole;
    }
    return mve_clamp((int64_t)whole + zero_point, header);
}

static void mve_rows(const int8_t *x, const int8_t *weights, int8_t *y, const mve_rows_shape *shape, uint32_t length, int exact) {
    const uint32_t chunks = (length + 15u) / 16u, last = length < 16u ? 0u : length - 16u;
    const uint32_t block_bytes = 32u + 64u * chunks;
    for (uint32_t row = 0; row < shape->rows; ++row) {
        const int8_t *block = weights + 16;
        for (uint32_t channel = 0; channel < shape->channels; channel += 4u, block += block_bytes) {
            int8_t values[4]; /* stored together: an output may lie on what the next block still reads of the row before */
            for (uint32_t own = 0; own < 4u; ++own) {
                uint32_t sum = (uint32_t)mve_word(block + 4u * own);
                for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
                    const int8_t *const from = x + (chunk + 1u == chunks ? last : 16u * chunk);
                    const int8_t *const with = block + 16u + 64u * chunk + 16u * own;
                    for (uint32_t i = 0; i < 16u && i < length; ++i) {
                        sum += (uint32_t)(from[i] * with[i]);
                    }
                }
                values[own] = mve_scaled((int32_t)sum, weights, block + block_bytes - 16 + 4u * own, exact);
            }
            for (uint32_t own = 0; own < 4u && channel + own < shape->channels; ++own) {
                y[channel + own] = values[own];
            }
        }
        x += shape->stride;
        y += shape->channels;
    }
}
#endif

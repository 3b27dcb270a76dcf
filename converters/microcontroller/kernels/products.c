/* One or two rows of depth bytes times the weights of all channels (products.py says how they lie): four channels and two rows at
   a time, so that eight products take six bytes from memory. */
MODEL_APART static int32_t product_of(const int8_t *x, const int8_t *weights, int32_t depth) {
    int32_t sum = 0;
    for (int32_t i = 0; i < depth; i++) {
        sum += x[i] * weights[i];
    }
    return sum;
}

MODEL_APART static void products_of_one(const int8_t *x, const int8_t *weights, int32_t depth, int32_t *sums) {
    int32_t sum_0 = sums[0], sum_1 = sums[1], sum_2 = sums[2], sum_3 = sums[3];
    const int8_t *const end = x + depth;
    for (const int8_t *const even = x + (depth & ~1); x != even; x += 2, weights += 8) {
        const int32_t a = x[0], b = x[1];
        sum_0 += a * weights[0] + b * weights[4];
        sum_1 += a * weights[1] + b * weights[5];
        sum_2 += a * weights[2] + b * weights[6];
        sum_3 += a * weights[3] + b * weights[7];
    }
    if (x != end) {
        sum_0 += x[0] * weights[0];
        sum_1 += x[0] * weights[1];
        sum_2 += x[0] * weights[2];
        sum_3 += x[0] * weights[3];
    }
    sums[0] = sum_0;
    sums[1] = sum_1;
    sums[2] = sum_2;
    sums[3] = sum_3;
}

MODEL_APART static void products_of_two(const int8_t *x, const int8_t *weights, int32_t depth, int32_t *sums) {
    const int8_t *y = x + depth;
    int32_t sum_0 = sums[0], sum_1 = sums[1], sum_2 = sums[2], sum_3 = sums[3];
    int32_t sum_4 = sums[4], sum_5 = sums[5], sum_6 = sums[6], sum_7 = sums[7];
    for (const int8_t *const end = y; x != end; x++, y++, weights += 4) {
        const int32_t a = x[0], b = y[0];
        sum_0 += a * weights[0];
        sum_4 += b * weights[0];
        sum_1 += a * weights[1];
        sum_5 += b * weights[1];
        sum_2 += a * weights[2];
        sum_6 += b * weights[2];
        sum_3 += a * weights[3];
        sum_7 += b * weights[3];
    }
    sums[0] = sum_0;
    sums[1] = sum_1;
    sums[2] = sum_2;
    sums[3] = sum_3;
    sums[4] = sum_4;
    sums[5] = sum_5;
    sums[6] = sum_6;
    sums[7] = sum_7;
}

static void products(const int8_t *x, int8_t *output, const int8_t *weights, const int32_t *bias, const multiplier_t *multipliers,
                     const int32_t *parameters, int32_t rows, int32_t depth, int32_t channels, int32_t stride) {
    const int32_t whole = channels - channels % 4;
    for (int32_t channel = 0; channel < whole; channel += 4) {
        int32_t sums[8];
        for (int32_t i = 0; i < 8; i++) {
            sums[i] = bias[channel + (i & 3)];
        }
        if (rows == 2) {
            products_of_two(x, weights, depth, sums);
        } else {
            products_of_one(x, weights, depth, sums);
        }
        for (int32_t row = 0; row < rows; row++) {
            for (int32_t i = 0; i < 4; i++) {
                output[row * stride + channel + i] = requantize(sums[4 * row + i], multipliers[channel + i], parameters);
            }
        }
        weights += 4 * depth;
    }
    for (int32_t channel = whole; channel < channels; channel++) {
        for (int32_t row = 0; row < rows; row++) {
            const int32_t sum = bias[channel] + product_of(x + row * depth, weights, depth);
            output[row * stride + channel] = requantize(sum, multipliers[channel], parameters);
        }
        weights += depth;
    }
}

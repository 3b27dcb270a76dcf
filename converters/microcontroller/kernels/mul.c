/* Product of two tensors; b repeats every `period` elements. parameters: of requantize, then the zero points of a and of b. */
static void mul_int8(const int8_t *a, const int8_t *b, int8_t *output, const multiplier_t *multiplier,
                     const int32_t *parameters, int32_t count, int32_t period) {
    int32_t other = 0;
    for (int32_t i = 0; i < count; i++) {
        output[i] = requantize((a[i] - parameters[5]) * (b[other] - parameters[6]), multiplier[0], parameters);
        other = other + 1 == period ? 0 : other + 1;
    }
}

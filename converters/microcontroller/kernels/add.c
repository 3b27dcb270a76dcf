/* Sum of two tensors. parameters: multipliers of a and of b, offset, shift, least, greatest, (of the DSP kernel: left shift). */
static void add_int8(const int8_t *a, const int8_t *b, int8_t *output, const int32_t *parameters, int32_t count) {
    const int32_t factor_a = parameters[0], factor_b = parameters[1], offset = parameters[2], shift = parameters[3];
    const int32_t least = parameters[4], greatest = parameters[5];
    for (int32_t i = 0; i < count; i++) {
        const int32_t sum = (a[i] * factor_a + b[i] * factor_b + offset) >> shift;
        const int32_t high = sum < greatest ? sum : greatest;
        output[i] = (int8_t)(high > least ? high : least);
    }
}

/* Matrix product, every row by itself. scratch: depth bytes, so that a row's answer may take the row's place. */
static void dense(const int8_t *input, int8_t *output, const int8_t *weights, const int32_t *bias,
                  const multiplier_t *multipliers, const int32_t *parameters, int8_t *scratch, int32_t rows, int32_t depth,
                  int32_t channels) {
    for (int32_t row = 0; row < rows; row++) {
        const int8_t *weight = weights;
        for (int32_t i = 0; i < depth; i++) {
            scratch[i] = input[i];
        }
        for (int32_t channel = 0; channel < channels; channel++) {
            int32_t sum = bias[channel];
            for (int32_t i = 0; i < depth; i++) {
                sum += scratch[i] * weight[i];
            }
            output[channel] = requantize(sum, multipliers[channel], parameters);
            weight += depth;
        }
        input += depth;
        output += channels;
    }
}

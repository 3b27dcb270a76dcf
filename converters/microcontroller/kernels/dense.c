/* Matrix product, two rows at a time. scratch: as many rows, so that their answers may take their place. */
static void dense(const int8_t *input, int8_t *output, const int8_t *weights, const int32_t *bias,
                  const multiplier_t *multipliers, const int32_t *parameters, int8_t *scratch, int32_t rows, int32_t depth,
                  int32_t channels) {
    for (int32_t row = 0; row < rows; row += 2) {
        const int32_t now = row + 2 <= rows ? 2 : 1;
        for (int32_t i = 0; i < now * depth; i++) {
            scratch[i] = input[i];
        }
        products(scratch, output, weights, bias, multipliers, parameters, now, depth, channels, channels);
        input += now * depth;
        output += now * channels;
    }
}

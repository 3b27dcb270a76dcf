/* Softmax of each row. parameters: inverse of the output's scale, its zero point. */
static void softmax_int8(const int8_t *input, int8_t *output, const uint32_t *exponentials, const int32_t *parameters,
                         int32_t rows, int32_t length) {
    for (int32_t row = 0; row < rows; row++) {
        int32_t most = -128;
        uint32_t sum = 0;
        for (int32_t i = 0; i < length; i++) {
            most = input[i] > most ? input[i] : most;
        }
        for (int32_t i = 0; i < length; i++) {
            sum += exponentials[most - input[i]];
        }
        for (int32_t i = 0; i < length; i++) {
            const uint32_t scaled = exponentials[most - input[i]] * (uint32_t)parameters[0] + sum / 2u;
            const int32_t value = (int32_t)(scaled / sum) + parameters[1];
            const int32_t high = value < 127 ? value : 127;
            output[i] = (int8_t)(high > -128 ? high : -128);
        }
        input += length;
        output += length;
    }
}

/* Requantization in integers. parameters: zero point, least, greatest, shift, pad value (5 words; kernels of all kinds share them). */
typedef int32_t multiplier_t;

static int8_t requantize(int32_t accumulator, multiplier_t multiplier, const int32_t *parameters) {
    const int32_t shifted = (int32_t)((uint32_t)accumulator << parameters[3]); /* does not overflow: see ir.py */
    const int32_t value = (int32_t)(((int64_t)shifted * multiplier + 2147483648LL) >> 32) + parameters[0];
    const int32_t high = value < parameters[2] ? value : parameters[2];
    return (int8_t)(high > parameters[1] ? high : parameters[1]);
}

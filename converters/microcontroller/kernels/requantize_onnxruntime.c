/* Requantization as onnxruntime's kernels do it: a product of float32, rounded half to even. parameters: as in integers. */
typedef float multiplier_t;

static int8_t requantize(int32_t accumulator, multiplier_t multiplier, const int32_t *parameters) {
    const volatile float exact = (float)accumulator;            /* volatile: no compiler fuses the product with what follows */
    const volatile float product = exact * multiplier;
    const float value_32 = product;
    const float low = value_32 > -1024.0f ? value_32 : -1024.0f;
    const float near = low < 1024.0f ? low : 1024.0f; /* beyond, the result is a bound all the same */
    const int32_t whole = (int32_t)near;              /* towards zero */
    const float rest = near - (float)whole;           /* exact */
    const int32_t odd = whole & 1;
    const int32_t up = rest > 0.5f || (rest == 0.5f && odd != 0) ? 1 : 0;
    const int32_t down = rest < -0.5f || (rest == -0.5f && odd != 0) ? 1 : 0;
    const int32_t value = whole + up - down + parameters[0];
    const int32_t high = value < parameters[2] ? value : parameters[2];
    return (int8_t)(high > parameters[1] ? high : parameters[1]);
}

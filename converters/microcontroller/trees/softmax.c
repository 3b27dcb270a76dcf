/* onnxruntime's SOFTMAX, or with `zero` its SOFTMAX_ZERO, where a score of 0 keeps out of the sum. */
static void trees_softmax(float *y, uint32_t count, int zero)
{
    float greatest = y[0], sum = 0.0f;
    for (uint32_t i = 1; i < count; i++) {
        greatest = y[i] > greatest ? y[i] : greatest;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (zero && !(y[i] > 1e-7f) && !(y[i] < -1e-7f)) {
            y[i] *= trees_exp(-greatest);
        } else {
            y[i] = trees_exp(y[i] - greatest);
            sum += y[i];
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        y[i] /= sum;
    }
}

/* onnxruntime's: symmetric by construction. */
static float trees_logistic(float x)
{
    const float v = 1.0f / (1.0f + trees_exp(x < 0.0f ? x : -x));
    return x < 0.0f ? 1.0f - v : v;
}

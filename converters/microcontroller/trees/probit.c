/* onnxruntime's PROBIT: Winitzki's approximation of the inverse error function. */
static float trees_probit(float score)
{
    const float x = 2.0f * score - 1.0f, log = logf((1.0f - x) * (1.0f + x));
    const float v = 2.0f / (3.14159f * 0.147f) + 0.5f * log, v2 = 1.0f / 0.147f * log;
    const float size = sqrtf(sqrtf(v * v - v2) - v);
    return (x < 0.0f ? -size : size) * 1.41421356f;
}

/* e to the power of x within 1.1 units in the last place, without libc: x = n ln 2 + r, a polynomial for |r| <= ln 2 / 2. */
static float trees_exp(float x)
{
    union {
        float number;
        int32_t bits;
    } power;
    float n, r, sum;
    int32_t whole;
    if (!(x > -104.0f)) {
        return x != x ? x : 0.0f;
    }
    if (x > 88.73f) {
        x = 88.73f; /* the last step overflows to infinity, as it should */
    }
    n = x * 0x1.715476p0f;
    whole = (int32_t)(n < 0.0f ? n - 0.5f : n + 0.5f);
    n = (float)whole;
    r = x - n * 0x1.62e4p-1f;  /* exact: 14 bits of ln 2 times 8 bits of n */
    r = r - n * 0x1.7f7d1cp-20f;
    sum = 0x1.6850e4p-10f;
    sum = sum * r + 0x1.123bccp-7f;
    sum = sum * r + 0x1.555b98p-5f;
    sum = sum * r + 0x1.55548ep-3f;
    sum = sum * r + 0x1.fffff8p-2f;
    sum = (r + sum * (r * r)) + 1.0f;
    power.bits = (whole / 2 + 127) << 23;
    sum *= power.number;
    power.bits = (whole - whole / 2 + 127) << 23;
    return sum * power.number;
}

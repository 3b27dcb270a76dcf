/* Functions of floats/: one to a block, blocks parted by blank lines, no blank line within. */

static float mf_from_float16(uint16_t half)
{
    union { uint32_t bits; float value; } result;
    uint32_t magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) {
        result.bits = 0x7f800000u | (magnitude & 0x3ffu) << 13;
    } else if (magnitude >= 0x400u) {
        result.bits = (magnitude << 13) + (112u << 23);
    } else {
        result.value = (float)magnitude * 5.9604644775390625e-8f;
    }
    result.bits |= (uint32_t)(half & 0x8000u) << 16;
    return result.value;
}

/* Rounds to nearest, ties to even. */
static uint16_t mf_to_float16(float number)
{
    union { float value; uint32_t bits; } given;
    uint32_t sign, magnitude;
    given.value = number;
    sign = given.bits >> 16 & 0x8000u;
    magnitude = given.bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u);
    }
    if (magnitude >= 0x47800000u) {
        return (uint16_t)(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) { /* below the least normal number: 0.5 has units of 2^-24 */
        given.bits = magnitude;
        given.value += 0.5f;
        return (uint16_t)(sign | (given.bits - 0x3f000000u));
    }
    magnitude += 0xfffu + (magnitude >> 13 & 1u);
    return (uint16_t)(sign | (magnitude - (112u << 23)) >> 13);
}

static float mf_from_bfloat16(uint16_t half)
{
    union { uint32_t bits; float value; } result;
    result.bits = (uint32_t)half << 16;
    return result.value;
}

/* Rounds to nearest, ties to even. */
static uint16_t mf_to_bfloat16(float number)
{
    union { float value; uint32_t bits; } given;
    given.value = number;
    if ((given.bits & 0x7fffffffu) > 0x7f800000u) {
        return 0x7fc0u;
    }
    return (uint16_t)((given.bits + 0x7fffu + (given.bits >> 16 & 1u)) >> 16);
}

/* An index into n places: counted from the end where negative, and never outside. */
static int32_t mf_index(int64_t index, int32_t n)
{
    if (index < 0) {
        index += n;
    }
    return index < 0 ? 0 : index >= n ? n - 1 : (int32_t)index;
}

/* To whole numbers as x86 does it: what does not fit (NaN too) is the least number. */
static int32_t mf_int32(double number)
{
    return number > -2147483649.0 && number < 2147483648.0 ? (int32_t)number : INT32_MIN;
}

static int64_t mf_int64(double number)
{
    return number >= -9223372036854775808.0 && number < 9223372036854775808.0 ? (int64_t)number : INT64_MIN;
}

static uint64_t mf_uint64(double number)
{
    if (number >= 9223372036854775808.0) {
        return (uint64_t)mf_int64(number - 9223372036854775808.0) ^ UINT64_C(0x8000000000000000);
    }
    return (uint64_t)mf_int64(number);
}

static int32_t mf_saturate(double number, int32_t least, int32_t greatest)
{
    return number >= (double)greatest ? greatest : number > (double)least ? (int32_t)number : least;
}

/* A place beyond lo or hi, folded back between them. */
static double mf_reflect(double v, double lo, double hi)
{
    const double range = hi - lo;
    if (range > 0 && (v < lo || v > hi)) {
        const double beyond = v < lo ? lo - v : v - hi;
        const int32_t turns = (int32_t)(beyond / range);
        const double rest = beyond - (double)turns * range;
        v = (turns % 2 == 0) == (v < lo) ? lo + rest : hi - rest;
    }
    return v;
}

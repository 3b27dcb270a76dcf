/* A float as a whole number of the same order, -0.0 just below 0.0; NaN, whatever its sign, is above all. */
static int32_t trees_key(float value)
{
    union {
        float number;
        int32_t bits;
    } is;
    int32_t key;
    is.number = value;
    key = is.bits < 0 ? is.bits ^ INT32_MAX : is.bits;
    return key < -0x7f800001 ? INT32_MAX : key; /* below -infinity: NaN with a sign */
}

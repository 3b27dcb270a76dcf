/* A double as a whole number of the same order, -0.0 just below 0.0; NaN, whatever its sign, is above all. */
static int64_t trees_key_double(double value)
{
    union {
        double number;
        int64_t bits;
    } is;
    int64_t key;
    is.number = value;
    key = is.bits < 0 ? is.bits ^ INT64_MAX : is.bits;
    return key < -0x7ff0000000000001 ? INT64_MAX : key; /* below -infinity: NaN with a sign */
}

/* The bits of floats, read where they lie; where a compiler does not promise that, they are copied first. */
#if defined(__GNUC__)
typedef uint32_t __attribute__((may_alias)) trees_bits;
#define TREES_COPY 0
#else
typedef uint32_t trees_bits;
#define TREES_COPY 1
#endif

/* Copies bits, NaN without its sign: so it is above all numbers in both comparisons. */
static const trees_bits *trees_copied(const float *x, uint32_t *copy, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        union {
            float number;
            uint32_t bits;
        } is;
        is.number = x[i];
        copy[i] = is.bits > 0xff800000u ? 0x7fc00000u : is.bits;
    }
    return copy;
}

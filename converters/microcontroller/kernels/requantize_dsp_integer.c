/* What assembly puts for one accumulator: requantized, less the least value. */
#define DSP_REQUANTIZE(accumulator, multiplier, zero) \
    "smmlar " accumulator ", " accumulator ", " multiplier ", " zero "\n"
#define DSP_CLOBBERED "cc"
#if defined(__ARM_FEATURE_DSP) && defined(__thumb2__) && defined(__GNUC__)
#define DSP_ASSEMBLY 1
#else
#define DSP_ASSEMBLY 0
#endif

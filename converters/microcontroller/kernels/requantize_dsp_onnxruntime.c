/* What assembly puts for one accumulator: the product of float32 rounded half to even, less the least value. */
#define DSP_REQUANTIZE(accumulator, multiplier, zero)                    \
    "vmov s0, " accumulator "\nvmov s1, " multiplier "\n"                \
    "vcvt.f32.s32 s0, s0\nvmul.f32 s0, s0, s1\nvcvtr.s32.f32 s0, s0\n"   \
    "vmov " accumulator ", s0\nqadd " accumulator ", " accumulator ", " zero "\n"
#define DSP_CLOBBERED "cc", "s0", "s1"
#if defined(__ARM_FEATURE_DSP) && defined(__thumb2__) && defined(__GNUC__) && defined(__ARM_FP)
#define DSP_ASSEMBLY 1
#else
#define DSP_ASSEMBLY 0
#endif

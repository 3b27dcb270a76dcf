/* Sum of two tensors on MVE, four elements at a time. parameters: of add_int8. */
#if defined(__ARM_FEATURE_MVE)
static void add_int8_mve(const int8_t *a, const int8_t *b, int8_t *output, const int32_t *parameters, int32_t count) {
    if (count >= 4) {
        const int32_t right = -parameters[3];
        __asm__ volatile("vdup.32 q2, %[least]\n\t"
                         "vdup.32 q3, %[greatest]\n\t"
                         "vdup.32 q4, %[factor_a]\n\t"
                         "dls lr, %[groups]\n"
                         "1:\n\t"
                         "vldrb.s32 q0, [%[a]], #4\n\t"
                         "vldrb.s32 q1, [%[b]], #4\n\t"
                         "vmlas.s32 q0, q4, %[offset]\n\t"
                         "vmla.s32 q0, q1, %[factor_b]\n\t"
                         "vshl.s32 q0, %[right]\n\t"
                         "vmax.s32 q0, q0, q2\n\t"
                         "vmin.s32 q0, q0, q3\n\t"
                         "vstrb.32 q0, [%[output]], #4\n\t"
                         "le lr, 1b"
                         : [a] "+l"(a), [b] "+l"(b), [output] "+l"(output)
                         : [groups] "r"(count / 4), [factor_a] "r"(parameters[0]), [factor_b] "r"(parameters[1]),
                           [offset] "r"(parameters[2]), [right] "r"(right), [least] "r"(parameters[4]), [greatest] "r"(parameters[5])
                         : "lr", "q0", "q1", "q2", "q3", "q4", "memory");
    }
    add_int8(a, b, output, parameters, count % 4);
}
#else
static void add_int8_mve(const int8_t *a, const int8_t *b, int8_t *output, const int32_t *parameters, int32_t count) {
    add_int8(a, b, output, parameters, count);
}
#endif

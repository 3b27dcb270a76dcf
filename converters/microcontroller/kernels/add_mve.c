/* Sum of two tensors on MVE, four elements at a time. parameters: of add_int8. */
#if defined(__ARM_FEATURE_MVE)
static void add_int8_mve(const int8_t *a, const int8_t *b, int8_t *output, const int32_t *parameters, int32_t count) {
    if (count >= 4) {
        int32_t groups = count / 4; /* then the offset */
        const int32_t *numbers = parameters;
        __asm__ volatile("ldr r12, [%[numbers]]\n\t"
                         "vdup.32 q4, r12\n\t"
                         "ldr r12, [%[numbers], #16]\n\t"
                         "vdup.32 q2, r12\n\t"
                         "ldr r12, [%[numbers], #20]\n\t"
                         "vdup.32 q3, r12\n\t"
                         "dls lr, %[groups]\n\t"
                         "ldr r12, [%[numbers], #12]\n\t"
                         "rsb r12, r12, #0\n\t"
                         "ldr %[groups], [%[numbers], #8]\n\t"
                         "ldr %[numbers], [%[numbers], #4]\n"
                         "1:\n\t"
                         "vldrb.s32 q0, [%[a]], #4\n\t"
                         "vldrb.s32 q1, [%[b]], #4\n\t"
                         "vmlas.s32 q0, q4, %[groups]\n\t"
                         "vmla.s32 q0, q1, %[numbers]\n\t"
                         "vshl.s32 q0, r12\n\t"
                         "vmax.s32 q0, q0, q2\n\t"
                         "vmin.s32 q0, q0, q3\n\t"
                         "vstrb.32 q0, [%[output]], #4\n\t"
                         "le lr, 1b"
                         : [a] "+l"(a), [b] "+l"(b), [output] "+l"(output), [groups] "+r"(groups), [numbers] "+r"(numbers)
                         :
                         : "r12", "lr", "q0", "q1", "q2", "q3", "q4", "memory");
    }
    add_int8(a, b, output, parameters, count % 4);
}
#else
static void add_int8_mve(const int8_t *a, const int8_t *b, int8_t *output, const int32_t *parameters, int32_t count) {
    add_int8(a, b, output, parameters, count);
}
#endif

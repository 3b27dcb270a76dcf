/* A function of one int8, as a table, sixteen elements at a time. */
#if defined(__ARM_FEATURE_MVE)
static void lookup_int8_mve(const int8_t *input, int8_t *output, const int8_t *table, int32_t count) {
    if (count >= 16) {
        __asm__ volatile("movs r12, #128\n\t"
                         "vdup.8 q1, r12\n\t"
                         "dls lr, %[groups]\n"
                         "1:\n\t"
                         "vldrb.u8 q0, [%[input]], #16\n\t"
                         "veor q0, q0, q1\n\t"
                         "vldrb.u8 q2, [%[table], q0]\n\t"
                         "vstrb.8 q2, [%[output]], #16\n\t"
                         "le lr, 1b"
                         : [input] "+r"(input), [output] "+r"(output)
                         : [groups] "r"(count / 16), [table] "r"(table)
                         : "r12", "lr", "q0", "q1", "q2", "cc", "memory");
    }
    lookup_int8(input, output, table, count % 16);
}
#else
static void lookup_int8_mve(const int8_t *input, int8_t *output, const int8_t *table, int32_t count) {
    lookup_int8(input, output, table, count);
}
#endif

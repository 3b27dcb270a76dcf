#if DSP_ASSEMBLY
/* Add to three sums, of three pixels, the products of one channel. */
DSP_NAKED static void dsp_plain_stack_28(const uint32_t *weights DSP_UNUSED, const uint32_t *end DSP_UNUSED,
                                         const uint32_t *columns DSP_UNUSED, int32_t *sums DSP_UNUSED) {
    __asm__ volatile(
        "push {r4-r9, lr}\n"
        "ldm r3, {r4-r6}\n"
        "1:\n"
        "ldr r12, [r0], #4\n"
        "ldm r2!, {r7-r9}\n"
        "sxtb16 lr, r12, ror #8\nsxtb16 r12, r12\n"
        "smlad r4, r12, r7, r4\nsmlad r5, r12, r8, r5\nsmlad r6, r12, r9, r6\n"
        "ldm r2!, {r7-r9}\n"
        "smlad r4, lr, r7, r4\nsmlad r5, lr, r8, r5\nsmlad r6, lr, r9, r6\n"
        "cmp r0, r1\n"
        "bne 1b\n"
        "stm r3, {r4-r6}\n"
        "pop {r4-r9, pc}\n");
}
#endif

/* One channel at a time of three pixels, for weights and sums that no pair holds. A block: bias, multiplier, weights as bytes. */
static void dsp_plain(const uint32_t *blocks, const uint32_t *columns, int8_t *output, int32_t channels, int32_t depth,
                      int32_t pixels, const struct dsp_header *header) {
    for (int32_t channel = 0; channel < channels; channel++) {
        int32_t sums[3] = {(int32_t)blocks[0], (int32_t)blocks[0], (int32_t)blocks[0]};
        const uint32_t multiplier = blocks[1];
        const uint32_t *const weights = blocks + 2;
        const uint32_t *const end = weights + depth / 4;
#if DSP_ASSEMBLY
        dsp_plain_stack_28(weights, end, columns, sums);
        for (int32_t pixel = 0; pixel < pixels; pixel++) {
            int32_t value = sums[pixel];
            __asm__(DSP_REQUANTIZE("%0", "%1", "%2") "usat %0, #8, %0\nuqadd8 %0, %0, %3\nsadd8 %0, %0, %4\n"
                    : "+&r"(value)
                    : "r"(multiplier), "r"(header->zero), "r"(header->above), "r"(header->sign)
                    : DSP_CLOBBERED);
            output[pixel * channels + channel] = (int8_t)value;
        }
#else
        const uint32_t *column = columns;
        for (const uint32_t *weight = weights; weight != end; weight++) {
            const uint32_t even = dsp_even(*weight), odd = dsp_odd(*weight);
            for (int32_t pixel = 0; pixel < pixels; pixel++) {
                const uint32_t first = column[pixel], second = column[3 + pixel];
                sums[pixel] += dsp_half(even) * dsp_half(first) + dsp_half(even >> 16) * dsp_half(first >> 16) +
                               dsp_half(odd) * dsp_half(second) + dsp_half(odd >> 16) * dsp_half(second >> 16);
            }
            column += 6;
        }
        for (int32_t pixel = 0; pixel < pixels; pixel++) {
            output[pixel * channels + channel] = dsp_requantize(sums[pixel], multiplier, header);
        }
#endif
        blocks = end;
    }
}

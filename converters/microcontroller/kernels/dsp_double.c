/* Four channels at a time of two pixels: as dsp_single.c. columns: expanded, a word of one pixel beside the same of the other. */
#if DSP_ASSEMBLY
#define DSP_DOUBLE_STEP                                    \
    "ldrd r0, r1, [r12], #8\n"                             \
    "ldrd r2, r3, [lr], #8\n"                              \
    "smlad r5, r0, r2, r5\nsmlad r9, r0, r3, r9\n"         \
    "smlad r7, r1, r2, r7\nsmlad r11, r1, r3, r11\n"       \
    "sxtb16 r0, r0\nsxtb16 r1, r1\n"                       \
    "smlad r4, r0, r2, r4\nsmlad r8, r0, r3, r8\n"         \
    "smlad r6, r1, r2, r6\nsmlad r10, r1, r3, r10\n"

DSP_NAKED static void dsp_double_run(const uint32_t *blocks DSP_UNUSED, const uint32_t *columns DSP_UNUSED,
                                     int8_t *first DSP_UNUSED, int8_t *second DSP_UNUSED, uint32_t skip DSP_UNUSED,
                                     const uint32_t *end DSP_UNUSED, const struct dsp_header *header DSP_UNUSED,
                                     int32_t channels DSP_UNUSED) {
    __asm__ volatile(
        "push {r0-r11, lr}\n"
        "mov r12, r0\n"
        "ldr r0, [sp, #52]\n"
        "adr r1, 1f\n"
        "add r0, r0, r1\n"
        "orr r0, r0, #1\n"
        "str r0, [sp, #52]\n"
        "0:\n"
        "ldm r12!, {r4-r7}\n"
        "ldr lr, [sp, #4]\n"
        "ldr r0, [sp, #52]\n"
        "mov r8, r4\nmov r9, r5\nmov r10, r6\nmov r11, r7\n"
        "bx r0\n"
        ".balign 4\n"
        "1:\n" DSP_DOUBLE_STEP DSP_DOUBLE_STEP DSP_DOUBLE_STEP DSP_DOUBLE_STEP DSP_DOUBLE_STEP DSP_DOUBLE_STEP DSP_DOUBLE_STEP
            DSP_DOUBLE_STEP
        "ldr r0, [sp, #56]\n"
        "cmp lr, r0\n"
        "bne 1b\n"
        "ldr r0, [sp, #60]\n"
        "ldr lr, [r0]\n"
        "ldm r12!, {r0-r3}\n"
        "sub r5, r5, r4\nasr r5, r5, #8\n"
        "sub r7, r7, r6\nasr r7, r7, #8\n"
        "sub r9, r9, r8\nasr r9, r9, #8\n"
        "sub r11, r11, r10\nasr r11, r11, #8\n" DSP_REQUANTIZE("r4", "r0", "lr") DSP_REQUANTIZE("r5", "r1", "lr")
            DSP_REQUANTIZE("r6", "r2", "lr") DSP_REQUANTIZE("r7", "r3", "lr") DSP_REQUANTIZE("r8", "r0", "lr")
                DSP_REQUANTIZE("r9", "r1", "lr") DSP_REQUANTIZE("r10", "r2", "lr") DSP_REQUANTIZE("r11", "r3", "lr")
        "usat r4, #8, r4\nusat r5, #8, r5\nusat r6, #8, r6\nusat r7, #8, r7\n"
        "usat r8, #8, r8\nusat r9, #8, r9\nusat r10, #8, r10\nusat r11, #8, r11\n"
        "orr r4, r4, r5, lsl #8\norr r6, r6, r7, lsl #8\norr r4, r4, r6, lsl #16\n"
        "orr r8, r8, r9, lsl #8\norr r10, r10, r11, lsl #8\norr r8, r8, r10, lsl #16\n"
        "ldrd r5, r6, [sp, #60]\n"
        "ldrd r0, r1, [r5, #4]\n"
        "ldrd r2, r3, [sp, #8]\n"
        "uqadd8 r4, r4, r0\nsadd8 r4, r4, r1\n"
        "uqadd8 r8, r8, r0\nsadd8 r8, r8, r1\n"
        "subs r6, r6, #4\n"
        "blt 2f\n"
        "str r4, [r2], #4\n"
        "str r8, [r3], #4\n"
        "strd r2, r3, [sp, #8]\n"
        "str r6, [sp, #64]\n"
        "bgt 0b\n"
        "pop {r0-r11, pc}\n"
        "2:\n"
        "strb r4, [r2], #1\n"
        "strb r8, [r3], #1\n"
        "lsr r4, r4, #8\n"
        "lsr r8, r8, #8\n"
        "adds r0, r6, #3\n"
        "sub r6, r6, #1\n"
        "bne 2b\n"
        "pop {r0-r11, pc}\n");
}

/* The second pixel's answers lie behind the first's. */
static void dsp_double(const uint32_t *blocks, const uint32_t *columns, int8_t *output, int32_t channels, int32_t depth,
                       const struct dsp_header *header) {
    const uint32_t steps = (uint32_t)depth / 2u;
    dsp_double_run(blocks, columns, output, output + channels, (0u - steps) % 8u * 48u, columns + 2u * steps, header, channels);
}
#else
static void dsp_double(const uint32_t *blocks, const uint32_t *columns, int8_t *output, int32_t channels, int32_t depth,
                       const struct dsp_header *header) {
    for (int32_t pixel = 0; pixel < 2; pixel++) {
        for (int32_t channel = 0; channel < channels; channel++) {
            const uint32_t *const block = blocks + channel / 4 * (8 + depth);
            const int32_t pair = channel % 4 / 2;
            uint32_t low = block[2 * pair];
            uint32_t both = block[2 * pair + 1];
            for (int32_t i = 0; i < depth / 2; i++) {
                const uint32_t word = block[4 + 2 * i + pair];
                const uint32_t column = columns[2 * i + pixel];
                low += (uint32_t)(dsp_byte(word) * dsp_half(column)) + (uint32_t)(dsp_byte(word >> 16) * dsp_half(column >> 16));
                both += (uint32_t)(dsp_half(word) * dsp_half(column)) + (uint32_t)(dsp_half(word >> 16) * dsp_half(column >> 16));
            }
            const int32_t sum = (int32_t)(channel % 2 ? (uint32_t)((int32_t)(both - low) >> 8) : low);
            output[channel] = dsp_requantize(sum, block[4 + depth + channel % 4], header);
        }
        output += channels;
    }
}
#endif

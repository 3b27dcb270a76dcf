/* Two channels at a time of three pixels: see kernels/dsp_pack.py. columns: expanded, words of three pixels side by side. */
#if DSP_ASSEMBLY
#define DSP_TRIPLE_PAIR(weights)                                                                             \
    "ldm lr!, {r2, r3, r10}\n"                                                                               \
    "smlad r5, " weights ", r2, r5\nsmlad r7, " weights ", r3, r7\nsmlad r9, " weights ", r10, r9\n"         \
    "sxtb16 " weights ", " weights "\n"                                                                      \
    "smlad r4, " weights ", r2, r4\nsmlad r6, " weights ", r3, r6\nsmlad r8, " weights ", r10, r8\n"
#define DSP_TRIPLE_STEP "ldrd r0, r1, [r12], #8\n" DSP_TRIPLE_PAIR("r0") DSP_TRIPLE_PAIR("r1")

/* first, second, third: where the pixels' answers go; of two that are the same the lower one counts. skip: bytes of the unrolled
   loop to jump over the first time. */
DSP_NAKED static void dsp_triple_stack_52(int8_t *first DSP_UNUSED, int8_t *second DSP_UNUSED, int8_t *third DSP_UNUSED,
                                     int32_t channels DSP_UNUSED, const uint32_t *blocks DSP_UNUSED,
                                     const uint32_t *columns DSP_UNUSED, uint32_t skip DSP_UNUSED,
                                     const uint32_t *end DSP_UNUSED, const struct dsp_header *header DSP_UNUSED) {
    __asm__ volatile(
        "push {r0-r11, lr}\n"
        "ldr r12, [sp, #52]\n"
        "ldr r0, [sp, #60]\n"
        "adr r1, 1f\n"
        "add r0, r0, r1\n"
        "orr r0, r0, #1\n"
        "str r0, [sp, #60]\n"
        "ldr r11, [sp, #64]\n"
        "0:\n"
        "ldm r12!, {r4, r5}\n"
        "ldr lr, [sp, #56]\n"
        "ldr r0, [sp, #60]\n"
        "mov r6, r4\nmov r7, r5\nmov r8, r4\nmov r9, r5\n"
        "bx r0\n"
        ".balign 4\n"
        "1:\n" DSP_TRIPLE_STEP DSP_TRIPLE_STEP DSP_TRIPLE_STEP DSP_TRIPLE_STEP DSP_TRIPLE_STEP DSP_TRIPLE_STEP DSP_TRIPLE_STEP
            DSP_TRIPLE_STEP
        "cmp lr, r11\n"
        "bne 1b\n"
        "ldr lr, [sp, #68]\n"
        "ldm r12!, {r0, r1}\n"
        "ldm lr, {r2, r3, r10}\n"
        "sub r5, r5, r4\nasr r5, r5, #8\n"
        "sub r7, r7, r6\nasr r7, r7, #8\n"
        "sub r9, r9, r8\nasr r9, r9, #8\n" DSP_REQUANTIZE("r4", "r0", "r2") DSP_REQUANTIZE("r5", "r1", "r2")
            DSP_REQUANTIZE("r6", "r0", "r2") DSP_REQUANTIZE("r7", "r1", "r2") DSP_REQUANTIZE("r8", "r0", "r2")
                DSP_REQUANTIZE("r9", "r1", "r2")
        "usat r4, #8, r4\nusat r5, #8, r5\nusat r6, #8, r6\n"
        "usat r7, #8, r7\nusat r8, #8, r8\nusat r9, #8, r9\n"
        "orr r4, r4, r5, lsl #8\norr r6, r6, r7, lsl #8\norr r8, r8, r9, lsl #8\n"
        "orr r4, r4, r6, lsl #16\n"
        "uqadd8 r4, r4, r3\nuqadd8 r8, r8, r3\n"
        "sadd8 r4, r4, r10\nsadd8 r8, r8, r10\n"
        "ldm sp, {r0-r3}\n"
        "lsr r6, r4, #16\n"
        "subs r3, r3, #2\n"
        "blt 2f\n"
        "strh r8, [r2], #2\n"
        "strh r6, [r1], #2\n"
        "strh r4, [r0], #2\n"
        "stm sp, {r0-r3}\n"
        "bgt 0b\n"
        "pop {r0-r11, pc}\n"
        "2:\n"
        "strb r8, [r2]\n"
        "strb r6, [r1]\n"
        "strb r4, [r0]\n"
        "pop {r0-r11, pc}\n");
}

/* pixels: 1 to 3 that count; their answers lie one behind the other. */
static void dsp_triple(const uint32_t *blocks, const uint32_t *columns, int8_t *output, int32_t channels, int32_t depth,
                       int32_t pixels, const struct dsp_header *header) {
    const uint32_t steps = (uint32_t)depth / 4u;
    dsp_triple_stack_52(output, output + (pixels > 1 ? channels : 0), output + (pixels > 2 ? 2 * channels : 0), channels, blocks,
                   columns, (0u - steps) % 8u * 68u, columns + 6u * steps, header);
}
#else
static void dsp_triple(const uint32_t *blocks, const uint32_t *columns, int8_t *output, int32_t channels, int32_t depth,
                       int32_t pixels, const struct dsp_header *header) {
    for (int32_t channel = 0; channel < channels; channel += 2) {
        const uint32_t *const words = blocks + 2;
        const uint32_t *const multipliers = words + depth / 2;
        for (int32_t pixel = 0; pixel < pixels; pixel++) {
            int8_t *const to = output + pixel * channels + channel;
            uint32_t low = blocks[0];
            uint32_t both = blocks[1];
            for (int32_t i = 0; i < depth / 2; i++) {
                const int32_t first = dsp_half(columns[3 * i + pixel]);
                const int32_t second = dsp_half(columns[3 * i + pixel] >> 16);
                low += (uint32_t)(dsp_byte(words[i]) * first) + (uint32_t)(dsp_byte(words[i] >> 16) * second);
                both += (uint32_t)(dsp_half(words[i]) * first) + (uint32_t)(dsp_half(words[i] >> 16) * second);
            }
            to[0] = dsp_requantize((int32_t)low, multipliers[0], header);
            if (channel + 1 < channels) {
                to[1] = dsp_requantize((int32_t)(both - low) >> 8, multipliers[1], header);
            }
        }
        blocks = multipliers + 2;
    }
}
#endif

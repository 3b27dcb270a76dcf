/* Four channels at a time of one pixel, by pairs of channels: see kernels/dsp_pack.py. columns: expanded, depth / 2 words. */
#if DSP_ASSEMBLY
#define DSP_SINGLE_STEP                                    \
    "ldm r12!, {r0-r3}\n"                                  \
    "ldrd r8, r9, [r10], #8\n"                             \
    "smlad r5, r0, r8, r5\nsmlad r7, r1, r8, r7\n"         \
    "smlad r5, r2, r9, r5\nsmlad r7, r3, r9, r7\n"         \
    "sxtb16 r0, r0\nsxtb16 r1, r1\n"                       \
    "sxtb16 r2, r2\nsxtb16 r3, r3\n"                       \
    "smlad r4, r0, r8, r4\nsmlad r6, r1, r8, r6\n"         \
    "smlad r4, r2, r9, r4\nsmlad r6, r3, r9, r6\n"

/* skip: bytes of the unrolled loop to jump over the first time. */
DSP_NAKED static void dsp_single_stack_52(const uint32_t *blocks DSP_UNUSED, const uint32_t *columns DSP_UNUSED,
                                     int8_t *output DSP_UNUSED, int32_t channels DSP_UNUSED, uint32_t skip DSP_UNUSED,
                                     const uint32_t *end DSP_UNUSED, const struct dsp_header *header DSP_UNUSED) {
    __asm__ volatile(
        "push {r0-r11, lr}\n"
        "mov r12, r0\n"
        "ldrd r0, r11, [sp, #52]\n"
        "adr lr, 1f\n"
        "add lr, lr, r0\n"
        "orr lr, lr, #1\n"
        "0:\n"
        "ldm r12!, {r4-r7}\n"
        "ldr r10, [sp, #4]\n"
        "bx lr\n"
        ".balign 4\n"
        "1:\n" DSP_SINGLE_STEP DSP_SINGLE_STEP DSP_SINGLE_STEP DSP_SINGLE_STEP DSP_SINGLE_STEP DSP_SINGLE_STEP DSP_SINGLE_STEP
            DSP_SINGLE_STEP
        "cmp r10, r11\n"
        "bne 1b\n"
        "ldm r12!, {r0-r3}\n"
        "ldr r10, [sp, #60]\n"
        "ldr r8, [r10]\n"
        "sub r5, r5, r4\nasr r5, r5, #8\n"
        "sub r7, r7, r6\nasr r7, r7, #8\n" DSP_REQUANTIZE("r4", "r0", "r8") DSP_REQUANTIZE("r5", "r1", "r8")
            DSP_REQUANTIZE("r6", "r2", "r8") DSP_REQUANTIZE("r7", "r3", "r8")
        "usat r4, #8, r4\nusat r5, #8, r5\nusat r6, #8, r6\nusat r7, #8, r7\n"
        "orr r4, r4, r5, lsl #8\norr r6, r6, r7, lsl #8\norr r4, r4, r6, lsl #16\n"
        "ldrd r0, r1, [r10, #4]\n"
        "ldrd r2, r3, [sp, #8]\n"
        "uqadd8 r4, r4, r0\nsadd8 r4, r4, r1\n"
        "subs r3, r3, #4\n"
        "blt 2f\n"
        "str r4, [r2], #4\n"
        "strd r2, r3, [sp, #8]\n"
        "bgt 0b\n"
        "pop {r0-r11, pc}\n"
        "2:\n"
        "strb r4, [r2], #1\n"
        "lsr r4, r4, #8\n"
        "adds r0, r3, #3\n"
        "sub r3, r3, #1\n"
        "bne 2b\n"
        "pop {r0-r11, pc}\n");
}

static void dsp_single(const uint32_t *blocks, const uint32_t *columns, int8_t *output, int32_t channels, int32_t depth,
                       const struct dsp_header *header) {
    const uint32_t steps = (uint32_t)depth / 4u;
    dsp_single_stack_52(blocks, columns, output, channels, (0u - steps) % 8u * 56u, columns + 2u * steps, header);
}
#else
static void dsp_single(const uint32_t *blocks, const uint32_t *columns, int8_t *output, int32_t channels, int32_t depth,
                       const struct dsp_header *header) {
    for (int32_t channel = 0; channel < channels; channel += 4) {
        const uint32_t *const multipliers = blocks + 4 + depth;
        for (int32_t pair = 0; pair < 2 && channel + 2 * pair < channels; pair++) {
            uint32_t low = blocks[2 * pair];
            uint32_t both = blocks[2 * pair + 1];
            for (int32_t i = 0; i < depth / 2; i++) {
                const uint32_t word = blocks[4 + 2 * i + pair];
                const int32_t first = dsp_half(columns[i]);
                const int32_t second = dsp_half(columns[i] >> 16);
                low += (uint32_t)(dsp_byte(word) * first) + (uint32_t)(dsp_byte(word >> 16) * second);
                both += (uint32_t)(dsp_half(word) * first) + (uint32_t)(dsp_half(word >> 16) * second);
            }
            const int32_t high = (int32_t)(both - low) >> 8;
            output[channel + 2 * pair] = dsp_requantize((int32_t)low, multipliers[2 * pair], header);
            if (channel + 2 * pair + 1 < channels) {
                output[channel + 2 * pair + 1] = dsp_requantize(high, multipliers[2 * pair + 1], header);
            }
        }
        blocks += 8 + depth;
    }
}
#endif

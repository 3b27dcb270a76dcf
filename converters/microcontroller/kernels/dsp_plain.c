/* One channel at a time of three pixels, for weights and sums that no pair holds. A block: bias, multiplier, weights as bytes. */
static void dsp_plain(const uint32_t *blocks, const uint32_t *columns, int8_t *output, int32_t channels, int32_t depth,
                      int32_t pixels, const struct dsp_header *header) {
    for (int32_t channel = 0; channel < channels; channel++) {
        int32_t sums[3] = {(int32_t)blocks[0], (int32_t)blocks[0], (int32_t)blocks[0]};
        const uint32_t multiplier = blocks[1];
        const uint32_t *weights = blocks + 2;
        const uint32_t *const end = weights + depth / 4;
        const uint32_t *column = columns;
#if DSP_ASSEMBLY
        uint32_t even, odd;
        __asm__ volatile(
            "1:\n"
            "ldr %[even], [%[weights]], #4\n"
            "ldm %[column]!, {r4-r6}\n"
            "sxtb16 %[odd], %[even], ror #8\nsxtb16 %[even], %[even]\n"
            "smlad %[first], %[even], r4, %[first]\n"
            "smlad %[second], %[even], r5, %[second]\n"
            "smlad %[third], %[even], r6, %[third]\n"
            "ldm %[column]!, {r4-r6}\n"
            "smlad %[first], %[odd], r4, %[first]\n"
            "smlad %[second], %[odd], r5, %[second]\n"
            "smlad %[third], %[odd], r6, %[third]\n"
            "cmp %[weights], %[end]\n"
            "bne 1b\n"
            : [first] "+r"(sums[0]), [second] "+r"(sums[1]), [third] "+r"(sums[2]), [even] "=&r"(even), [odd] "=&r"(odd),
              [weights] "+r"(weights), [column] "+r"(column)
            : [end] "r"(end)
            : "r4", "r5", "r6", "cc", "memory");
        for (int32_t pixel = 0; pixel < pixels; pixel++) {
            int32_t value = sums[pixel];
            __asm__(DSP_REQUANTIZE("%0", "%1", "%2") "usat %0, #8, %0\nuqadd8 %0, %0, %3\nsadd8 %0, %0, %4\n"
                    : "+&r"(value)
                    : "r"(multiplier), "r"(header->zero), "r"(header->above), "r"(header->sign)
                    : DSP_CLOBBERED);
            output[pixel * channels + channel] = (int8_t)value;
        }
#else
        for (; weights != end; weights++) {
            const uint32_t even = dsp_even(*weights), odd = dsp_odd(*weights);
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

/* Convolution of every channel by itself, kernels of up to 3 x 3: four channels at a time are copied to planes of int16 in scratch,
   two neighbours of a row in a word, the words of a column side by side. A plane reads `rows` lines. */
struct dsp_depthwise {
    uint32_t multiplier;
    struct dsp_header header; /* all but pad are read */
    int32_t channels;
    int8_t *output;
    int32_t bias;
    int32_t step;        /* bytes from column to column */
    const uint32_t *end; /* of the columns that whole steps read */
    const uint32_t *start;
    int32_t row_step; /* bytes from an output row's first word to the next one's */
    int32_t rows;
    int32_t odd; /* whether one answer is left after the steps */
    int32_t width, stride;
};

static uint32_t depthwise_dsp_lanes(const int8_t *pixel, int32_t lanes) {
    uint32_t word = 0;
    for (int32_t i = lanes - 1; i >= 0; i--) {
        word = word << 8 | (uint8_t)pixel[i];
    }
    return word;
}

/* Put one pixel's four channels into one half of a word of each plane. */
static inline void depthwise_dsp_put(uint32_t word, uint32_t *to, int32_t plane, int32_t side) {
#if DSP_ASSEMBLY
    uint32_t even, odd;
    __asm__ volatile(
        "sxtb16 %[even], %[word]\nsxtb16 %[odd], %[word], ror #8\n"
        "strh %[even], [%[to]]\nstrh %[odd], [%[to], %[plane]]\n"
        "lsr %[even], %[even], #16\nlsr %[odd], %[odd], #16\n"
        "strh %[even], [%[to], %[plane], lsl #1]\nstrh %[odd], [%[last], %[plane], lsl #1]\n"
        : [even] "=&r"(even), [odd] "=&r"(odd)
        : [word] "r"(word), [to] "r"((uint16_t *)(void *)to + side), [last] "r"((uint16_t *)(void *)(to + plane) + side),
          [plane] "r"(4 * plane)
        : "memory");
#else
    const uint32_t even = dsp_even(word), odd = dsp_odd(word);
    const uint32_t lanes[4] = {even, odd, even >> 16, odd >> 16};
    for (int32_t lane = 0; lane < 4; lane++) {
        *to = side == 0 ? (*to & 0xffff0000u) | (lanes[lane] & 0xffffu) : (*to & 0xffffu) | lanes[lane] << 16;
        to += plane;
    }
#endif
}

/* Put pairs of pixels into whole words of each plane, step words apart; pairs: 1 or more. */
static void depthwise_dsp_pairs(const int8_t *pixels, int32_t depth, int32_t pairs, uint32_t *to, int32_t plane, int32_t step) {
#if DSP_ASSEMBLY
    uint32_t left, right, low, high, word;
    __asm__ volatile(
        "1:\n"
        "ldr %[left], [%[pixels]]\nldr %[right], [%[pixels], %[depth]]\nadd %[pixels], %[pixels], %[depth], lsl #1\n"
        "sxtb16 %[low], %[left]\nsxtb16 %[high], %[right]\n"
        "sxtb16 %[left], %[left], ror #8\nsxtb16 %[right], %[right], ror #8\n"
        "pkhtb %[word], %[high], %[low], asr #16\npkhbt %[low], %[low], %[high], lsl #16\n"
        "str %[word], [%[to], %[plane], lsl #1]\nstr %[low], [%[to]]\n"
        "pkhtb %[high], %[right], %[left], asr #16\npkhbt %[left], %[left], %[right], lsl #16\n"
        "add %[low], %[to], %[plane]\n"
        "str %[left], [%[to], %[plane]]\nstr %[high], [%[low], %[plane], lsl #1]\n"
        "add %[to], %[to], %[step]\n"
        "subs %[pairs], %[pairs], #1\n"
        "bne 1b\n"
        : [left] "=&r"(left), [right] "=&r"(right), [low] "=&r"(low), [high] "=&r"(high), [word] "=&r"(word),
          [pixels] "+r"(pixels), [to] "+r"(to), [pairs] "+r"(pairs)
        : [depth] "r"(depth), [plane] "r"(4 * plane), [step] "r"(4 * step)
        : "cc", "memory");
#else
    for (; pairs > 0; pairs--) {
        depthwise_dsp_put(dsp_word(pixels), to, plane, 0);
        depthwise_dsp_put(dsp_word(pixels + depth), to, plane, 1);
        pixels += 2 * depth;
        to += step;
    }
#endif
}

/* Spread lines of an image over the planes; at: where a first pixel goes, in pixels; step: words from column to column. What is
   beside them stays as it is. */
static void depthwise_dsp_spread(const int8_t *line, const struct windows *shape, int32_t lanes, int32_t lines, int32_t count,
                                 uint32_t *planes, int32_t plane, int32_t step) {
    const int32_t depth = shape->depth, at = shape->pad_left, line_bytes = shape->width * depth;
    planes += at / 2 * step;
    for (; lines > 0; lines--) {
        const int8_t *pixel = line;
        uint32_t *to = planes;
        int32_t left = count;
        if (depth < 4) {
            for (int32_t i = at % 2; left > 0; left--) {
                depthwise_dsp_put(depthwise_dsp_lanes(pixel, lanes), to, plane, i);
                pixel += depth;
                to += i * step;
                i = 1 - i;
            }
        }
        if (at % 2 != 0 && left > 0) {
            depthwise_dsp_put(dsp_word(pixel), to, plane, 1);
            pixel += depth;
            to += step;
            left--;
        }
        if (left > 1) {
            depthwise_dsp_pairs(pixel, depth, left / 2, to, plane, step);
        }
        if (left > 0 && left % 2 != 0) {
            depthwise_dsp_put(dsp_word(pixel + (left - 1) * depth), to + left / 2 * step, plane, 0);
        }
        line += line_bytes;
        planes++;
    }
}

#if DSP_ASSEMBLY
#define DEPTHWISE_DSP_START \
    "push {r4-r11, lr}\nsub sp, sp, #52\nmov r2, sp\nldm r0!, {r3-r6}\nadd r0, r0, #4\nstm r2!, {r3-r6}\n" \
    "ldm r0!, {r3-r8}\nstm r2!, {r3-r8}\nldm r0!, {r3-r5}\nstm r2!, {r3-r5}\nldm r1, {r3, r5, r7}\n" \
    "sxtb16 r4, r3, ror #8\nsxtb16 r3, r3\nsxtb16 r6, r5, ror #8\nsxtb16 r5, r5\n" \
    "sxtb16 r8, r7, ror #8\nsxtb16 r7, r7\n"

/* An answer is stored, or two: between any bounds, or all of int8 (then the zero point is itself, not less the least value). */
#define DEPTHWISE_DSP_ONE_BOUNDED \
    "ldm sp, {r0-r2}\n" DSP_REQUANTIZE("r9", "r0", "r1") \
    "usat r9, #8, r9\nuqadd8 r9, r9, r2\nldrd r0, r1, [sp, #12]\nsadd8 r9, r9, r0\n" \
    "ldr r2, [sp, #20]\nstrb r9, [r2]\nadd r2, r2, r1\nstr r2, [sp, #20]\n"
#define DEPTHWISE_DSP_TWO_BOUNDED \
    "ldm sp, {r0-r2}\n" DSP_REQUANTIZE("r9", "r0", "r1") DSP_REQUANTIZE("r10", "r0", "r1") \
    "usat r9, #8, r9\nusat r10, #8, r10\norr r9, r9, r10, lsl #16\nuqadd8 r9, r9, r2\nldrd r0, r1, [sp, #12]\n" \
    "sadd8 r9, r9, r0\nldr r2, [sp, #20]\nstrb r9, [r2]\nlsr r9, r9, #16\nstrb r9, [r2, r1]\n" \
    "add r2, r2, r1, lsl #1\nstr r2, [sp, #20]\n"
#define DEPTHWISE_DSP_FULL "ldr r2, [sp, #4]\nsub r2, r2, #128\nstr r2, [sp, #4]\n"
#define DEPTHWISE_DSP_ONE_FULL \
    "ldrd r0, r1, [sp]\n" DSP_REQUANTIZE("r9", "r0", "r1") \
    "ssat r9, #8, r9\nldrd r0, r1, [sp, #16]\nstrb r9, [r1]\nadd r1, r1, r0\nstr r1, [sp, #20]\n"
#define DEPTHWISE_DSP_TWO_FULL \
    "ldrd r0, r1, [sp]\n" DSP_REQUANTIZE("r9", "r0", "r1") DSP_REQUANTIZE("r10", "r0", "r1") \
    "ssat r9, #8, r9\nssat r10, #8, r10\nldrd r0, r1, [sp, #16]\nstrb r9, [r1]\nstrb r10, [r1, r0]\n" \
    "add r1, r1, r0, lsl #1\nstr r1, [sp, #20]\n"

#define DEPTHWISE_DSP_END \
    "ldrd r0, r1, [sp, #32]\nldrd r2, r9, [sp, #40]\nadd r0, r0, r2\nadd r1, r1, r2\n" \
    "subs r9, r9, #1\nstrd r0, r1, [sp, #32]\nstr r9, [sp, #44]\nbne 0b\nadd sp, sp, #52\npop {r4-r11, pc}\n"

/* Rows of answers of one channel, two answers a step: a column adds to two that end with it and to two that begin. */
#define DEPTHWISE_DSP_DENSE(one, two) \
    "0:\n" \
    "ldr lr, [sp, #36]\nldr r11, [sp, #24]\nldm lr, {r0-r2}\nsmlabt r12, r3, r0, r11\nsmlad r11, r3, r0, r11\n" \
    "smlabt r12, r5, r1, r12\nsmlad r11, r5, r1, r11\nsmlabt r12, r7, r2, r12\nsmlad r11, r7, r2, r11\n" \
    "ldrd r0, r1, [sp, #28]\nadd lr, lr, r0\ncmp lr, r1\nbhs 2f\n" \
    "1:\n" \
    "ldm lr, {r0-r2}\nsmlatb r9, r4, r0, r11\nsmlad r10, r4, r0, r12\nsmlatb r9, r6, r1, r9\n" \
    "smlad r10, r6, r1, r10\nsmlatb r9, r8, r2, r9\nsmlad r10, r8, r2, r10\nldr r11, [sp, #24]\n" \
    "smlabt r12, r3, r0, r11\nsmlad r11, r3, r0, r11\nsmlabt r12, r5, r1, r12\nsmlad r11, r5, r1, r11\n" \
    "smlabt r12, r7, r2, r12\nsmlad r11, r7, r2, r11\n" two \
    "ldrd r0, r1, [sp, #28]\nadd lr, lr, r0\ncmp lr, r1\nblo 1b\n" \
    "2:\n" \
    "ldr r0, [sp, #48]\ncmp r0, #0\nbeq 3f\nldm lr, {r0-r2}\nsmlatb r9, r4, r0, r11\nsmlatb r9, r6, r1, r9\n" \
    "smlatb r9, r8, r2, r9\n" one \
    "3:\n" DEPTHWISE_DSP_END

/* The same where answers are two pixels apart. */
#define DEPTHWISE_DSP_SPARSE(one) \
    "0:\n" \
    "ldr lr, [sp, #36]\nldr r11, [sp, #24]\nldm lr, {r0-r2}\nsmlad r11, r3, r0, r11\nsmlad r11, r5, r1, r11\n" \
    "smlad r11, r7, r2, r11\nldr r1, [sp, #28]\nadd lr, lr, r1\n" \
    "1:\n" \
    "ldm lr, {r0-r2}\nsmlatb r9, r4, r0, r11\nsmlatb r9, r6, r1, r9\nsmlatb r9, r8, r2, r9\n" \
    "ldr r11, [sp, #24]\nsmlad r11, r3, r0, r11\nsmlad r11, r5, r1, r11\nsmlad r11, r7, r2, r11\n" one \
    "ldrd r0, r1, [sp, #28]\nadd lr, lr, r0\ncmp lr, r1\nblo 1b\n" DEPTHWISE_DSP_END

DSP_NAKED static void depthwise_dsp_dense_bounded_stack_88(struct dsp_depthwise *run DSP_UNUSED,
                                                        const uint32_t *weights DSP_UNUSED) {
    __asm__ volatile(DEPTHWISE_DSP_START DEPTHWISE_DSP_DENSE(DEPTHWISE_DSP_ONE_BOUNDED, DEPTHWISE_DSP_TWO_BOUNDED));
}

DSP_NAKED static void depthwise_dsp_dense_full_stack_88(struct dsp_depthwise *run DSP_UNUSED,
                                                        const uint32_t *weights DSP_UNUSED) {
    __asm__ volatile(DEPTHWISE_DSP_START DEPTHWISE_DSP_FULL DEPTHWISE_DSP_DENSE(DEPTHWISE_DSP_ONE_FULL, DEPTHWISE_DSP_TWO_FULL));
}

DSP_NAKED static void depthwise_dsp_sparse_bounded_stack_88(struct dsp_depthwise *run DSP_UNUSED,
                                                        const uint32_t *weights DSP_UNUSED) {
    __asm__ volatile(DEPTHWISE_DSP_START DEPTHWISE_DSP_SPARSE(DEPTHWISE_DSP_ONE_BOUNDED));
}

DSP_NAKED static void depthwise_dsp_sparse_full_stack_88(struct dsp_depthwise *run DSP_UNUSED,
                                                        const uint32_t *weights DSP_UNUSED) {
    __asm__ volatile(DEPTHWISE_DSP_START DEPTHWISE_DSP_FULL DEPTHWISE_DSP_SPARSE(DEPTHWISE_DSP_ONE_FULL));
}

static void depthwise_dsp_rows(struct dsp_depthwise *run, const uint32_t *weights) {
    const int full = run->header.above == 0u && run->header.sign == 0x80808080u;
    if (run->stride == 1) {
        if (full) {
            depthwise_dsp_dense_full_stack_88(run, weights);
        } else {
            depthwise_dsp_dense_bounded_stack_88(run, weights);
        }
    } else if (full) {
        depthwise_dsp_sparse_full_stack_88(run, weights);
    } else {
        depthwise_dsp_sparse_bounded_stack_88(run, weights);
    }
}
#else
static void depthwise_dsp_rows(const struct dsp_depthwise *run, const uint32_t *weights) {
    for (int32_t y = 0; y < run->rows; y++) {
        for (int32_t x = 0; x < run->width; x++) {
            int32_t sum = run->bias;
            for (int32_t i = 0; i < 3; i++) {
                for (int32_t j = 0; j < 3; j++) {
                    const int32_t at = x * run->stride + j;
                    const uint32_t pixels = run->start[at / 2 * (run->step / 4) + y * (run->row_step / 4) + i];
                    sum += dsp_byte(weights[i] >> (j == 2 ? 24 : 8 * j)) * dsp_half(pixels >> at % 2 * 16);
                }
            }
            run->output[(y * run->width + x) * run->channels] = dsp_requantize(sum, run->multiplier, &run->header);
        }
    }
}
#endif

/* at_once: output rows that are made from one set of planes. */
static void depthwise_dsp(const int8_t *input, int8_t *output, const uint32_t *constants, uint32_t *planes,
                          const struct windows *shape, int32_t at_once) {
    const int32_t channels = shape->channels, out_width = shape->out_width;
    const int32_t pairs = shape->stride_x == 1 ? out_width / 2 : out_width;
    const int32_t columns = shape->stride_x == 1 ? (out_width + 1) / 2 + 1 : out_width + 1;
    const int32_t room = 2 * columns - shape->pad_left;
    const int32_t inside = shape->width < room ? shape->width : room;
    struct dsp_depthwise run;
    run.header = *(const struct dsp_header *)(const void *)constants;
    const uint32_t pads = ((uint32_t)run.header.pad & 0xffffu) * 0x00010001u;
    run.channels = channels;
    run.odd = shape->stride_x == 1 ? out_width % 2 : 0;
    run.width = out_width;
    run.stride = shape->stride_x;
    run.row_step = 4 * shape->stride_y;
    for (int32_t y = 0; y < shape->out_height; y += at_once) {
        const int32_t made = shape->out_height - y < at_once ? shape->out_height - y : at_once;
        const int32_t rows = (made - 1) * shape->stride_y + 3;
        const uint32_t *weights = constants + 4;
        const int32_t plane = columns * rows;
        const int32_t line = y * shape->stride_y - shape->pad_top;
        const int32_t first = line > 0 ? line : 0;
        const int32_t last = line + rows < shape->height ? line + rows : shape->height;
        run.step = 4 * rows;
        for (int32_t i = 0; i < 4 * plane; i++) {
            planes[i] = pads;
        }
        for (int32_t channel = 0; channel < channels; channel += 4) {
            const int32_t lanes = channels - channel < 4 ? channels - channel : 4;
            const int32_t back = channels < 4 ? 0 : 4 - lanes; /* a word that ends with these channels lies within the image */
            if (last > first) {
                depthwise_dsp_spread(input + first * shape->width * channels + channel - back, shape, lanes, last - first,
                                     inside, planes + (first - line), plane, rows);
            }
            for (int32_t lane = 0; lane < lanes; lane++) {
                run.start = planes + (lane + back) * plane;
                run.end = run.start + (pairs + 1) * rows;
                run.rows = made;
                run.output = output + y * out_width * channels + channel + lane;
                run.bias = (int32_t)weights[3];
                run.multiplier = weights[4];
                depthwise_dsp_rows(&run, weights);
                weights += 5;
            }
        }
    }
}

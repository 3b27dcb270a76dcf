/* Convolution of every channel by itself, kernels of up to 3 x 3: four channels at a time are copied to planes of int16 in scratch,
   two neighbours of a row in a word, the words of a column side by side. A plane reads `rows` lines. */
struct dsp_depthwise {
    uint32_t multiplier;
    struct dsp_header header; /* all but pad are read */
    int32_t channels;
    int8_t *output;
    int32_t bias;
    const uint32_t *end; /* of the columns that whole steps read */
    int32_t step;        /* bytes from column to column */
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

#if DSP_ASSEMBLY
static inline uint32_t depthwise_dsp_low(uint32_t left, uint32_t right) {
    uint32_t pair;
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(pair) : "r"(left), "r"(right));
    return pair;
}

static inline uint32_t depthwise_dsp_high(uint32_t left, uint32_t right) {
    uint32_t pair;
    __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(pair) : "r"(right), "r"(left));
    return pair;
}
#else
static uint32_t depthwise_dsp_low(uint32_t left, uint32_t right) {
    return (left & 0xffffu) | right << 16;
}

static uint32_t depthwise_dsp_high(uint32_t left, uint32_t right) {
    return left >> 16 | (right & 0xffff0000u);
}
#endif

static void depthwise_dsp_put(uint32_t *to, int32_t plane, uint32_t left, uint32_t right) {
    const uint32_t even_left = dsp_even(left), even_right = dsp_even(right);
    const uint32_t odd_left = dsp_odd(left), odd_right = dsp_odd(right);
    to[0] = depthwise_dsp_low(even_left, even_right);
    to[plane] = depthwise_dsp_low(odd_left, odd_right);
    to[2 * plane] = depthwise_dsp_high(even_left, even_right);
    to[3 * plane] = depthwise_dsp_high(odd_left, odd_right);
}

/* One line of up to four channels; line: its first channel of these in the image, NULL outside. */
static void depthwise_dsp_line(const int8_t *line, const struct windows *shape, int32_t lanes, int32_t whole, int32_t pad,
                               uint32_t *to, int32_t columns, int32_t rows) {
    const int32_t depth = shape->depth, width = shape->width, plane = columns * rows;
    const uint32_t pads = ((uint32_t)pad & 0xffu) * 0x01010101u;
    const int32_t back = 4 - lanes;
    int32_t x = -shape->pad_left;
    for (int32_t column = 0; column < columns; column++) {
        if (line != NULL && whole != 0 && x >= 0 && x + 1 < width) {
            const int8_t *pixel = line + x * depth - back;
            do {
                const uint32_t left = dsp_word(pixel) >> 8 * back;
                const uint32_t right = dsp_word(pixel + depth) >> 8 * back;
                depthwise_dsp_put(to, plane, left, right);
                pixel += 2 * depth;
                to += rows;
                x += 2;
                column++;
            } while (x + 1 < width && column < columns);
            column--;
            continue;
        }
        const uint32_t left = line != NULL && x >= 0 && x < width ? depthwise_dsp_lanes(line + x * depth, lanes) : pads;
        const uint32_t right =
            line != NULL && x + 1 >= 0 && x + 1 < width ? depthwise_dsp_lanes(line + (x + 1) * depth, lanes) : pads;
        depthwise_dsp_put(to, plane, left, right);
        to += rows;
        x += 2;
    }
}

#if DSP_ASSEMBLY
/* Rows of answers of one channel, two answers a step: a column adds to two that end with it and to two that begin. */
DSP_NAKED static void depthwise_dsp_dense(struct dsp_depthwise *run DSP_UNUSED, const uint32_t *weights DSP_UNUSED) {
    __asm__ volatile(
        "push {r4-r11, lr}\nsub sp, sp, #52\nmov r2, sp\nldm r0!, {r3-r6}\nadd r0, r0, #4\nstm r2!, {r3-r6}\n"
        "ldm r0!, {r3-r8}\nstm r2!, {r3-r8}\nldm r0!, {r3-r5}\nstm r2!, {r3-r5}\nldm r1, {r3, r5, r7}\n"
        "sxtb16 r4, r3, ror #8\nsxtb16 r3, r3\nsxtb16 r6, r5, ror #8\nsxtb16 r5, r5\n"
        "sxtb16 r8, r7, ror #8\nsxtb16 r7, r7\n"
        "0:\n"
        "ldr lr, [sp, #36]\nldr r11, [sp, #24]\nldm lr, {r0-r2}\nsmlabt r12, r3, r0, r11\nsmlad r11, r3, r0, r11\n"
        "smlabt r12, r5, r1, r12\nsmlad r11, r5, r1, r11\nsmlabt r12, r7, r2, r12\nsmlad r11, r7, r2, r11\n"
        "ldrd r0, r1, [sp, #28]\nadd lr, lr, r1\ncmp lr, r0\nbhs 2f\n"
        "1:\n"
        "ldm lr, {r0-r2}\nsmlatb r9, r4, r0, r11\nsmlad r10, r4, r0, r12\nsmlatb r9, r6, r1, r9\n"
        "smlad r10, r6, r1, r10\nsmlatb r9, r8, r2, r9\nsmlad r10, r8, r2, r10\nldr r11, [sp, #24]\n"
        "smlabt r12, r3, r0, r11\nsmlad r11, r3, r0, r11\nsmlabt r12, r5, r1, r12\nsmlad r11, r5, r1, r11\n"
        "smlabt r12, r7, r2, r12\nsmlad r11, r7, r2, r11\n"
        "ldm sp, {r0-r2}\n" DSP_REQUANTIZE("r9", "r0", "r1") DSP_REQUANTIZE("r10", "r0", "r1")
        "usat r9, #8, r9\nusat r10, #8, r10\norr r9, r9, r10, lsl #16\nuqadd8 r9, r9, r2\nldrd r0, r1, [sp, #12]\n"
        "sadd8 r9, r9, r0\nldr r2, [sp, #20]\nstrb r9, [r2]\nlsr r9, r9, #16\nstrb r9, [r2, r1]\n"
        "add r2, r2, r1, lsl #1\nstr r2, [sp, #20]\nldrd r0, r1, [sp, #28]\nadd lr, lr, r1\ncmp lr, r0\nblo 1b\n"
        "2:\n"
        "ldr r0, [sp, #48]\ncmp r0, #0\nbeq 3f\nldm lr, {r0-r2}\nsmlatb r9, r4, r0, r11\nsmlatb r9, r6, r1, r9\n"
        "smlatb r9, r8, r2, r9\n"
        "ldm sp, {r0-r2}\n" DSP_REQUANTIZE("r9", "r0", "r1")
        "usat r9, #8, r9\nuqadd8 r9, r9, r2\nldrd r0, r1, [sp, #12]\nsadd8 r9, r9, r0\n"
        "ldr r2, [sp, #20]\nstrb r9, [r2]\nadd r2, r2, r1\nstr r2, [sp, #20]\n"
        "3:\n"
        "ldrd r0, r1, [sp, #36]\nldr r2, [sp, #28]\nadd r0, r0, r1\nadd r2, r2, r1\n"
        "str r0, [sp, #36]\nstr r2, [sp, #28]\nldr r0, [sp, #44]\nsubs r0, r0, #1\nstr r0, [sp, #44]\nbne 0b\n"
        "add sp, sp, #52\npop {r4-r11, pc}\n");
}

/* The same where answers are two pixels apart. */
DSP_NAKED static void depthwise_dsp_sparse(struct dsp_depthwise *run DSP_UNUSED, const uint32_t *weights DSP_UNUSED) {
    __asm__ volatile(
        "push {r4-r11, lr}\nsub sp, sp, #52\nmov r2, sp\nldm r0!, {r3-r6}\nadd r0, r0, #4\nstm r2!, {r3-r6}\n"
        "ldm r0!, {r3-r8}\nstm r2!, {r3-r8}\nldm r0!, {r3-r5}\nstm r2!, {r3-r5}\nldm r1, {r3, r5, r7}\n"
        "sxtb16 r4, r3, ror #8\nsxtb16 r3, r3\nsxtb16 r6, r5, ror #8\nsxtb16 r5, r5\n"
        "sxtb16 r8, r7, ror #8\nsxtb16 r7, r7\n"
        "0:\n"
        "ldr lr, [sp, #36]\nldr r11, [sp, #24]\nldm lr, {r0-r2}\nsmlad r11, r3, r0, r11\nsmlad r11, r5, r1, r11\n"
        "smlad r11, r7, r2, r11\nldr r1, [sp, #32]\nadd lr, lr, r1\n"
        "1:\n"
        "ldm lr, {r0-r2}\nsmlatb r9, r4, r0, r11\nsmlatb r9, r6, r1, r9\nsmlatb r9, r8, r2, r9\n"
        "ldr r11, [sp, #24]\nsmlad r11, r3, r0, r11\nsmlad r11, r5, r1, r11\nsmlad r11, r7, r2, r11\n"
        "ldm sp, {r0-r2}\n" DSP_REQUANTIZE("r9", "r0", "r1")
        "usat r9, #8, r9\nuqadd8 r9, r9, r2\nldrd r0, r1, [sp, #12]\nsadd8 r9, r9, r0\n"
        "ldr r2, [sp, #20]\nstrb r9, [r2]\nadd r2, r2, r1\nstr r2, [sp, #20]\nldrd r0, r1, [sp, #28]\n"
        "add lr, lr, r1\ncmp lr, r0\nblo 1b\nldrd r0, r1, [sp, #36]\nldr r2, [sp, #28]\n"
        "add r0, r0, r1\nadd r2, r2, r1\nstr r0, [sp, #36]\nstr r2, [sp, #28]\n"
        "ldr r0, [sp, #44]\nsubs r0, r0, #1\nstr r0, [sp, #44]\nbne 0b\nadd sp, sp, #52\npop {r4-r11, pc}\n");
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

#define depthwise_dsp_dense depthwise_dsp_rows
#define depthwise_dsp_sparse depthwise_dsp_rows
#endif

/* at_once: output rows that are made from one set of planes. */
static void depthwise_dsp(const int8_t *input, int8_t *output, const uint32_t *constants, uint32_t *planes,
                          const struct windows *shape, int32_t at_once) {
    const int32_t channels = shape->channels, out_width = shape->out_width;
    const int32_t pairs = shape->stride_x == 1 ? out_width / 2 : out_width;
    const int32_t columns = shape->stride_x == 1 ? (out_width + 1) / 2 + 1 : out_width + 1;
    struct dsp_depthwise run;
    run.header = *(const struct dsp_header *)(const void *)constants;
    run.channels = channels;
    run.odd = shape->stride_x == 1 ? out_width % 2 : 0;
    run.width = out_width;
    run.stride = shape->stride_x;
    run.row_step = 4 * shape->stride_y;
    for (int32_t y = 0; y < shape->out_height; y += at_once) {
        const int32_t made = shape->out_height - y < at_once ? shape->out_height - y : at_once;
        const int32_t rows = (made - 1) * shape->stride_y + 3;
        const uint32_t *weights = constants + 4;
        run.step = 4 * rows;
        for (int32_t channel = 0; channel < channels; channel += 4) {
            const int32_t lanes = channels - channel < 4 ? channels - channel : 4;
            for (int32_t row = 0; row < rows; row++) {
                const int32_t line = y * shape->stride_y - shape->pad_top + row;
                const int inside = line >= 0 && line < shape->height;
                depthwise_dsp_line(inside ? input + line * shape->width * channels + channel : NULL, shape, lanes,
                                   channels >= 4, run.header.pad, planes + row, columns, rows);
            }
            for (int32_t lane = 0; lane < lanes; lane++) {
                run.start = planes + lane * columns * rows;
                run.end = run.start + (pairs + 1) * rows;
                run.rows = made;
                run.output = output + y * out_width * channels + channel + lane;
                run.bias = (int32_t)weights[3];
                run.multiplier = weights[4];
                if (shape->stride_x == 1) {
                    depthwise_dsp_dense(&run, weights);
                } else {
                    depthwise_dsp_sparse(&run, weights);
                }
                weights += 5;
            }
        }
    }
}

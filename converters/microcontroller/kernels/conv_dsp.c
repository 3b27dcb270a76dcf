/* Convolution without groups: the windows of three pixels are expanded side by side to scratch, then multiplied as rows of Dense. */

static int8_t *conv_dsp_copy(int8_t *to, const int8_t *from, int32_t count) {
#if DSP_ASSEMBLY
    for (; count >= 4; count -= 4) {
        const uint32_t word = dsp_word(from);
        __builtin_memcpy(to, &word, sizeof word);
        to += 4;
        from += 4;
    }
#endif
    for (; count > 0; count--) {
        *to++ = *from++;
    }
    return to;
}

static int8_t *conv_dsp_fill(int8_t *to, int32_t pad, int32_t count) {
#if DSP_ASSEMBLY
    const uint32_t word = ((uint32_t)pad & 0xffu) * 0x01010101u;
    for (; count >= 4; count -= 4) {
        __builtin_memcpy(to, &word, sizeof word);
        to += 4;
    }
#endif
    for (; count > 0; count--) {
        *to++ = (int8_t)pad;
    }
    return to;
}

/* Copy the pixels of one line from a column on, which may lie outside the image. */
static int8_t *conv_dsp_taps(int8_t *to, const int8_t *line, const struct windows *shape, int32_t column, int32_t taps,
                             int32_t pad) {
    const int32_t depth = shape->depth, left = shape->width - column;
    const int32_t before = column >= 0 ? 0 : -column < taps ? -column : taps;
    const int32_t until = left >= taps ? taps : left > before ? left : before;
    to = conv_dsp_fill(to, pad, before * depth);
    if (until > before) {
        to = conv_dsp_copy(to, line + (column + before) * depth, (until - before) * depth);
    }
    return conv_dsp_fill(to, pad, (taps - until) * depth);
}

/* Copy a window that leaves the image, or has holes, to bytes. */
static void conv_dsp_window(const int8_t *input, const struct windows *shape, int32_t line, int32_t column, int32_t pad,
                            int8_t *bytes) {
    const int32_t apart = shape->dilation_x == 1 ? 1 : shape->kernel_width;
    const int32_t taps = shape->kernel_width / apart;
    for (int32_t i = 0; i < shape->kernel_height; i++) {
        const int inside = line >= 0 && line < shape->height;
        const int8_t *const pixels = input + (inside ? line * shape->width * shape->depth : 0);
        for (int32_t j = 0; j < apart; j++) {
            bytes = conv_dsp_taps(bytes, pixels, shape, inside ? column + j * shape->dilation_x : -taps, taps, pad);
        }
        line += shape->dilation_y;
    }
}

/* scratch: the windows of three pixels expanded, then the bytes of one. */
static void conv_dsp(const int8_t *input, int8_t *output, const uint32_t *constants, uint32_t *scratch,
                     const struct windows *shape) {
    const struct dsp_header *const header = (const struct dsp_header *)(const void *)constants;
    const int32_t channels = shape->channels, lines = shape->kernel_height;
    const int32_t run = shape->kernel_width * shape->depth, size = lines * run;
    const int32_t line_bytes = shape->width * shape->depth;
    const int32_t depth = (size + 3) / 4 * 4;
    const int32_t last_line = shape->height - 1 - (lines - 1) * shape->dilation_y;
    const int32_t last_column = shape->dilation_x == 1 ? shape->width - shape->kernel_width : -1;
    int8_t *const bytes = (int8_t *)(scratch + depth / 2 * 3);
    int32_t waiting = 0;
    for (int32_t y = 0; y < shape->out_height; y++) {
        const int32_t line = y * shape->stride_y - shape->pad_top;
        int32_t column = -shape->pad_left;
        for (int32_t x = 0; x < shape->out_width; x++) {
            uint32_t *columns = scratch + waiting;
            if (line < 0 || line > last_line || column < 0 || column > last_column) {
                conv_dsp_window(input, shape, line, column, header->pad, bytes);
                dsp_expand_triple(bytes, columns, size / 4);
            } else {
                const int8_t *from = input + line * line_bytes + column * shape->depth;
                int8_t *to = bytes;
                for (int32_t i = 0; i < lines; i++) {
                    if (run % 4 == 0) {
                        dsp_expand_triple(from, columns, run / 4);
                        columns += run / 4 * 6;
                    } else {
                        to = conv_dsp_copy(to, from, run);
                    }
                    from += line_bytes * shape->dilation_y;
                }
                if (run % 4 != 0) {
                    dsp_expand_triple(bytes, columns, size / 4);
                }
            }
            if (size % 4 != 0) {
                dsp_expand_rest(bytes + size / 4 * 4, scratch + waiting + size / 4 * 6, 3, size % 4);
            }
            column += shape->stride_x;
            waiting++;
            if (waiting == 3 || (x + 1 == shape->out_width && y + 1 == shape->out_height)) {
                dsp_triple(constants + 4, scratch, output, channels, depth, waiting, header);
                output += waiting * channels;
                waiting = 0;
            }
        }
    }
}

/* Convolution without groups: the windows of three pixels are expanded side by side to scratch, then multiplied as rows of Dense. */

static void conv_dsp_copy(int8_t *to, const int8_t *from, int32_t count) {
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
}

/* The bytes of one row of a window: where they lie, or a copy where the row leaves the image. */
static const int8_t *conv_dsp_row(const int8_t *row, const struct windows *shape, int32_t column, int32_t pad, int8_t *copy) {
    const int32_t depth = shape->depth;
    const int32_t last = column + (shape->kernel_width - 1) * shape->dilation_x;
    int8_t *to = copy;
    if (shape->dilation_x == 1 && column >= 0 && last < shape->width) {
        return row + column * depth;
    }
    for (; column <= last; column += shape->dilation_x) {
        const int inside = column >= 0 && column < shape->width;
        const int8_t *const pixel = row + (inside ? column * depth : 0);
        for (int32_t i = 0; i < depth; i++) {
            *to++ = inside ? pixel[i] : (int8_t)pad;
        }
    }
    return copy;
}

/* The window of one output pixel; bytes: scratch for a window (or a row of it, where rows are whole words). */
static void conv_dsp_window(const int8_t *input, const struct windows *shape, int32_t y, int32_t x, int32_t pad, int8_t *bytes,
                            uint32_t *columns) {
    const int32_t run = shape->kernel_width * shape->depth;
    const int32_t column = x * shape->stride_x - shape->pad_left;
    int32_t line = y * shape->stride_y - shape->pad_top;
    int32_t held = 0;
    for (int32_t i = 0; i < shape->kernel_height; i++) {
        int8_t *const to = bytes + held;
        const int8_t *from = to;
        if (line >= 0 && line < shape->height) {
            from = conv_dsp_row(input + line * shape->width * shape->depth, shape, column, pad, to);
        } else {
            for (int32_t j = 0; j < run; j++) {
                to[j] = (int8_t)pad;
            }
        }
        line += shape->dilation_y;
        if (run % 4 == 0) {
            dsp_expand_triple(from, columns, run / 4);
            columns += run / 4 * 6;
        } else {
            held += run;
            if (from != to) {
                conv_dsp_copy(to, from, run);
            }
        }
    }
    if (held > 0) {
        dsp_expand_triple(bytes, columns, held / 4);
        if (held % 4 != 0) {
            dsp_expand_rest(bytes + held / 4 * 4, columns + held / 4 * 6, 3, held % 4);
        }
    }
}

/* scratch: the windows of three pixels expanded, then bytes. */
static void conv_dsp(const int8_t *input, int8_t *output, const uint32_t *constants, uint32_t *scratch,
                     const struct windows *shape) {
    const struct dsp_header *const header = (const struct dsp_header *)(const void *)constants;
    const int32_t channels = shape->channels;
    const int32_t depth = (shape->kernel_height * shape->kernel_width * shape->depth + 3) / 4 * 4;
    int8_t *const bytes = (int8_t *)(scratch + depth / 2 * 3);
    int32_t waiting = 0;
    for (int32_t y = 0; y < shape->out_height; y++) {
        for (int32_t x = 0; x < shape->out_width; x++) {
            conv_dsp_window(input, shape, y, x, header->pad, bytes, scratch + waiting);
            waiting++;
            if (waiting == 3) {
                dsp_triple(constants + 4, scratch, output, channels, depth, 3, header);
                output += 3 * channels;
                waiting = 0;
            }
        }
    }
    if (waiting > 0) {
        dsp_triple(constants + 4, scratch, output, channels, depth, waiting, header);
    }
}

/* Depthwise convolution of up to 3x3: the three rows of the image that a row of outputs reads lie in scratch, sixteen channels of
   three rows of a column together (depthwise_mve.py says how). A row of the image is copied once, into the slot of the one that
   nobody needs any more; slots: where sixteen bytes of one channel's window lie, for each of the three orders of the slots. */
typedef struct {
    uint32_t out_width, channels;
    uint32_t second, third; /* bytes from an output to the next, and to the one after: 0 and second where there is none */
    uint32_t out_step, step; /* bytes of output and scratch from a group of outputs to the next */
    uint32_t part_step;      /* bytes of scratch from the end of sixteen channels to the next sixteen */
} mve_depthwise_row;

typedef struct {
    uint32_t height, row_bytes, out_height, out_row_bytes, stride, pad_top, pad_left_bytes;
    mve_columns image, all;
    mve_depthwise_row row;
} mve_depthwise_shape;

typedef void (*mve_depthwise_function)(const int8_t *columns, const int8_t *weights, int8_t *y, const mve_depthwise_row *shape,
                                       const uint8_t *slots);

static void mve_depthwise(const int8_t *x, const int8_t *weights, const int8_t *pad, int8_t *y, int8_t *columns,
                          const mve_depthwise_shape *shape, mve_depthwise_function row) {
    static const uint8_t slots[3][16] = {
        {0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 0},
        {16, 32, 0, 64, 80, 48, 112, 128, 96, 160, 176, 144, 208, 224, 192, 0},
        {32, 0, 16, 80, 48, 64, 128, 96, 112, 176, 144, 160, 224, 192, 208, 0},
    };
    for (uint32_t slot = 0; slot < 3u; ++slot) {
        mve_fill_columns(columns + 16u * slot, *pad, &shape->all);
    }
    uint32_t next = 0; /* counts rows from the first one of the padding */
    for (uint32_t out = 0; out < shape->out_height; ++out) {
        const uint32_t first = out * shape->stride;
        for (next = next < first ? first : next; next < first + 3u; ++next) {
            int8_t *const place = columns + shape->pad_left_bytes + 16u * (next % 3u);
            const uint32_t own = next - shape->pad_top; /* wraps above the image */
            if (own < shape->height) {
                mve_copy_columns(place, x + (size_t)own * shape->row_bytes, &shape->image);
            } else {
                mve_fill_columns(place, *pad, &shape->image);
            }
        }
        row(columns, weights, y, &shape->row, slots[first % 3u]);
        y += shape->out_row_bytes;
    }
}

#if !defined(__ARM_FEATURE_MVE)
static void mve_depthwise_rows(const int8_t *columns, const int8_t *weights, int8_t *y, const mve_depthwise_row *shape,
                               const uint8_t *slots, uint32_t stride, int exact) {
    for (uint32_t out = 0; out < shape->out_width; ++out) {
        for (uint32_t c = 0; c < shape->channels; ++c) {
            const int8_t *const block = weights + 16 + (size_t)(c / 4u) * 104u;
            const int8_t *const with = block + 38 + 16u * (c % 4u);
            const int8_t *const from = columns + c / 16u * (shape->part_step + 16u) + c % 16u + (size_t)out * stride * 48u;
            uint32_t sum = (uint32_t)mve_word(block + 4u * (c % 4u));
            for (uint32_t i = 0; i < 9u; ++i) {
                sum += (uint32_t)(from[slots[i]] * with[i]);
            }
            y[c] = mve_scaled((int32_t)sum, weights, block + 16 + 4u * (c % 4u), exact);
        }
        y += shape->channels;
    }
}
#endif

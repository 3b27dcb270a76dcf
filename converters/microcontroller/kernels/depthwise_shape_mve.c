/* Depthwise convolution: the rows of the image that a row of outputs reads lie in scratch as a ring, a few channels of all rows
   of a column together (depthwise_mve.py says how). A row of the image is copied once, into the slot of the one that nobody needs
   any more. */
typedef struct {
    uint32_t out_width, channels;
    uint32_t second;         /* bytes from an output to the next, 0 where there is none */
    uint32_t third;          /* bytes to the one after; with windows of more than 3x3: of scratch, from a window to the next */
    uint32_t out_step, step; /* bytes of output and scratch from a group of outputs to the next */
    uint32_t part_step;      /* bytes of scratch from the end of channels that lie together to the next ones */
} mve_depthwise_row;

typedef struct {
    uint32_t height, row_bytes, out_height, out_row_bytes, stride, pad_top, pad_left_bytes;
    mve_columns image, all;
    mve_depthwise_row row;
} mve_depthwise_shape;

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

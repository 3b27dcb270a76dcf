/* ROW_FUNCTION: of a row of outputs; RING: rows in scratch; PART: channels that lie together; TABLE: for every order of the ring's
   slots, where the bytes of a channel's window lie. */
static void mve_depthwise_ROW_FUNCTION(const int8_t *x, const int8_t *weights, const int8_t *pad, int8_t *y, int8_t *columns,
                                       const mve_depthwise_shape *shape) {
    static const uint8_t slots[][PLACES] = {TABLE};
    for (uint32_t slot = 0; slot < RING; ++slot) {
        mve_fill_columns(columns + PART * slot, *pad, &shape->all);
    }
    uint32_t next = 0; /* counts rows from the first one of the padding */
    for (uint32_t out = 0; out < shape->out_height; ++out) {
        const uint32_t first = out * shape->stride;
        for (next = next < first ? first : next; next < first + RING; ++next) {
            int8_t *const place = columns + shape->pad_left_bytes + PART * (next % RING);
            const uint32_t own = next - shape->pad_top; /* wraps above the image */
            if (own < shape->height) {
                mve_copy_columns(place, x + (size_t)own * shape->row_bytes, &shape->image);
            } else {
                mve_fill_columns(place, *pad, &shape->image);
            }
        }
        ROW_FUNCTION(columns, weights, y, &shape->row, slots[first % RING]);
        y += shape->out_row_bytes;
    }
}

/* Moves a tensor up or down within the workspace, four words at a time; both places are aligned to words and may overlap. */
static void model_move(uint8_t *to, const uint8_t *from, uint32_t count) {
    uint32_t *target = (uint32_t *)(void *)to;
    const uint32_t *source = (const uint32_t *)(const void *)from;
    uint32_t words = (count + 3u) / 4u;
    if (to < from) {
        for (; words >= 4u; words -= 4u) {
            const uint32_t a = source[0], b = source[1], c = source[2], d = source[3];
            target[0] = a;
            target[1] = b;
            target[2] = c;
            target[3] = d;
            source += 4;
            target += 4;
        }
        for (; words > 0u; words--) {
            *target++ = *source++;
        }
    } else {
        source += words;
        target += words;
        for (; words >= 4u; words -= 4u) {
            source -= 4;
            target -= 4;
            const uint32_t a = source[0], b = source[1], c = source[2], d = source[3];
            target[0] = a;
            target[1] = b;
            target[2] = c;
            target[3] = d;
        }
        for (; words > 0u; words--) {
            *--target = *--source;
        }
    }
}

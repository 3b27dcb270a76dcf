/* Moves a tensor up or down within the workspace, word by word; both places are aligned to words and may overlap. */
static void model_move(uint8_t *to, const uint8_t *from, uint32_t count) {
    uint32_t *const target = (uint32_t *)(void *)to;
    const uint32_t *const source = (const uint32_t *)(const void *)from;
    const uint32_t words = (count + 3u) / 4u;
    if (to < from) {
        for (uint32_t i = 0; i < words; i++) {
            target[i] = source[i];
        }
    } else {
        for (uint32_t i = words; i-- > 0u;) {
            target[i] = source[i];
        }
    }
}

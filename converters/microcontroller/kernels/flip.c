/* uint8 to int8 or back: the top bit flipped. */
static void flip_sign(const uint8_t *input, uint8_t *output, int32_t count) {
    for (int32_t i = 0; i < count; i++) {
        output[i] = (uint8_t)(input[i] ^ 0x80u);
    }
}

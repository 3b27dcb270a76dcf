/* A function of one int8, as a table; its first entry is that of -128. */
static void lookup_int8(const int8_t *input, int8_t *output, const int8_t *table, int32_t count) {
    for (int32_t i = 0; i < count; i++) {
        output[i] = table[input[i] + 128];
    }
}

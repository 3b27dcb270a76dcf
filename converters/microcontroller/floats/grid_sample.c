/* t: batch, channels, sizes of the image (3), places sampled in an image, dimensions of the grid (2 or 3). */
static void NAME(const STORED *x, const STORED *g, STORED *y, const int32_t *t)
{
    const int32_t plane = t[2] * t[3] * t[4];
    for (int32_t n = 0; n < t[0]; ++n) {
        for (int32_t o = 0; o < t[5]; ++o) {
            int32_t place[3][TAPS] = {{0}};
            VALUE weight[3][TAPS] = {{1}};
            for (int32_t a = 3 - t[6]; a < 3; ++a) {
                const int32_t at = (n * t[5] + o) * t[6] + 2 - a, size = t[2 + a];
                const VALUE lo = LOWEST, hi = HIGHEST;
                VALUE v = LOAD_G, part;
                int32_t base;
                v = POSITION;
                v = v > -LIMIT && v < LIMIT ? v : -LIMIT;
                FIRST
                BORDER
                base = (int32_t)FLOOR(v);
                part = v - (VALUE)base;
                WEIGHTS
                for (int32_t k = 0; k < TAPS; ++k) {
                    int32_t p = base + k - BEFORE;
                    OUTSIDE
                    place[a][k] = p < 0 ? 0 : p >= size ? size - 1 : p;
                }
            }
            for (int32_t c = 0; c < t[1]; ++c) {
                VALUE s = 0;
                for (int32_t k = 0; k < (t[6] == 3 ? TAPS : 1); ++k) {
                    for (int32_t j = 0; j < TAPS; ++j) {
                        for (int32_t l = 0; l < TAPS; ++l) {
                            const VALUE factor = weight[0][k] * weight[1][j] * weight[2][l];
                            const int32_t i = (n * t[1] + c) * plane + (place[0][k] * t[3] + place[1][j]) * t[4] + place[2][l];
                            if (factor != 0) {
                                s += factor * LOAD_X;
                            }
                        }
                    }
                }
                const int32_t at = (n * t[1] + c) * t[5] + o;
                STORE_Y
            }
        }
    }
}

/* Each output gathers the inputs whose windows hold it. t: as conv; weights are (channels in, channels out of a group, taps). */
static void NAME(const STORED *x, const STORED *w, const STORED *b, STORED *y, const int32_t *t)
{
    const int32_t plane = t[0] * t[1] * t[2], taps = t[6] * t[7] * t[8];
    int32_t at = 0;
    for (int32_t n = 0; n < t[18]; ++n) {
        for (int32_t m = 0; m < t[19] * t[21]; ++m) {
            const int32_t group = m / t[21];
            for (int32_t o = 0; o < t[3] * t[4] * t[5]; ++o) {
                const int32_t oz = o / (t[4] * t[5]) + t[15], orow = o / t[5] % t[4] + t[16], oc = o % t[5] + t[17];
                VALUE s = 0;
                for (int32_t j = 0; j < taps; ++j) {
                    const int32_t z = oz - j / (t[7] * t[8]) * t[12], r = orow - j / t[8] % t[7] * t[13];
                    const int32_t c = oc - j % t[8] * t[14];
                    const int32_t iz = z / t[9], ir = r / t[10], ic = c / t[11];
                    if (z < 0 || r < 0 || c < 0 || iz * t[9] != z || ir * t[10] != r || ic * t[11] != c || iz >= t[0]
                        || ir >= t[1] || ic >= t[2]) {
                        continue;
                    }
                    for (int32_t d = group * t[20]; d < (group + 1) * t[20]; ++d) {
                        const int32_t i = (n * t[19] * t[20] + d) * plane + (iz * t[1] + ir) * t[2] + ic;
                        const int32_t k = (d * t[21] + m % t[21]) * taps + j;
                        s += LOAD_X * LOAD_W;
                    }
                }
                if (b) {
                    s += LOAD_B;
                }
                STORE_Y
                ++at;
            }
        }
    }
}

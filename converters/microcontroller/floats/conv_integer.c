/* As conv, on whole numbers less their zero points. */
static void NAME(const XTYPE *x, const WTYPE *w, int32_t *y, int32_t zero, int32_t of, const int32_t *t)
{
    const int32_t plane = t[0] * t[1] * t[2], taps = t[6] * t[7] * t[8];
    int32_t at = 0;
    for (int32_t n = 0; n < t[18]; ++n) {
        for (int32_t m = 0; m < t[19] * t[21]; ++m) {
            const int32_t from = (n * t[19] + m / t[21]) * t[20] * plane;
            for (int32_t o = 0; o < t[3] * t[4] * t[5]; ++o) {
                const int32_t z0 = o / (t[4] * t[5]) * t[9] - t[15], r0 = o / t[5] % t[4] * t[10] - t[16];
                const int32_t c0 = o % t[5] * t[11] - t[17];
                uint32_t s = 0;
                for (int32_t d = 0; d < t[20]; ++d) {
                    for (int32_t k = 0; k < taps; ++k) {
                        const int32_t iz = z0 + k / (t[7] * t[8]) * t[12], ir = r0 + k / t[8] % t[7] * t[13];
                        const int32_t ic = c0 + k % t[8] * t[14];
                        if (iz >= 0 && iz < t[0] && ir >= 0 && ir < t[1] && ic >= 0 && ic < t[2]) {
                            const int32_t i = from + d * plane + (iz * t[1] + ir) * t[2] + ic;
                            s += (uint32_t)(((int32_t)x[i] - zero) * ((int32_t)w[(m * t[20] + d) * taps + k] - of));
                        }
                    }
                }
                y[at++] = (int32_t)s;
            }
        }
    }
}

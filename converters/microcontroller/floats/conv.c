/* t: sizes of the input (3), of the output (3), of the kernel (3), strides, dilations, pads before; batch, groups, channels in
   and out of a group. */
static void NAME(const STORED *x, const STORED *w, const STORED *b, STORED *y, const int32_t *t)
{
    const int32_t plane = t[0] * t[1] * t[2], taps = t[6] * t[7] * t[8];
    int32_t at = 0;
    for (int32_t n = 0; n < t[18]; ++n) {
        for (int32_t m = 0; m < t[19] * t[21]; ++m) {
            const int32_t from = (n * t[19] + m / t[21]) * t[20] * plane;
            for (int32_t z = 0; z < t[3]; ++z) {
                for (int32_t r = 0; r < t[4]; ++r) {
                    for (int32_t c = 0; c < t[5]; ++c) {
                        const int32_t z0 = z * t[9] - t[15], r0 = r * t[10] - t[16], c0 = c * t[11] - t[17];
                        VALUE s = 0;
                        for (int32_t d = 0; d < t[20]; ++d) {
                            const int32_t first = from + d * plane;
                            int32_t k = (m * t[20] + d) * taps;
                            for (int32_t kz = 0, iz = z0; kz < t[6]; ++kz, iz += t[12]) {
                                for (int32_t kr = 0, ir = r0; kr < t[7]; ++kr, ir += t[13]) {
                                    if (iz < 0 || iz >= t[0] || ir < 0 || ir >= t[1]) {
                                        k += t[8];
                                        continue;
                                    }
                                    for (int32_t kc = 0, ic = c0; kc < t[8]; ++kc, ic += t[14], ++k) {
                                        if (ic >= 0 && ic < t[2]) {
                                            const int32_t i = first + (iz * t[1] + ir) * t[2] + ic;
                                            s += LOAD_X * LOAD_W;
                                        }
                                    }
                                }
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
    }
}

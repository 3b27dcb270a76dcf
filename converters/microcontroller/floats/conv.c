/* t: sizes of the input (3), of the output (3), of the kernel (3), strides, dilations, pads before; batch, groups, channels in
   and out of a group. */
static void NAME(const STORED *x, const STORED *w, const STORED *b, STORED *y, const int32_t *t)
{
    const int32_t plane = t[0] * t[1] * t[2], taps = t[6] * t[7] * t[8];
    int32_t at = 0;
    for (int32_t n = 0; n < t[18]; ++n) {
        for (int32_t m = 0; m < t[19] * t[21]; ++m) {
            const int32_t from = (n * t[19] + m / t[21]) * t[20] * plane;
            for (int32_t o = 0; o < t[3] * t[4]; ++o) {
                const int32_t z0 = o / t[4] * t[9] - t[15], r0 = o % t[4] * t[10] - t[16];
                for (int32_t c = 0; c < t[5]; ++c, ++at) {
                    /* Taps of a row that lie within the input: begin to end. */
                    const int32_t c0 = c * t[11] - t[17];
                    const int32_t begin = c0 >= 0 ? 0 : (t[14] - 1 - c0) / t[14];
                    int32_t end = c0 >= t[2] ? 0 : (t[2] - 1 - c0) / t[14] + 1;
                    VALUE s = 0;
                    end = end > t[8] ? t[8] : end;
                    for (int32_t d = 0; d < t[20]; ++d) {
                        const int32_t first = from + d * plane, weight = (m * t[20] + d) * taps;
                        for (int32_t kz = 0, iz = z0; kz < t[6]; ++kz, iz += t[12]) {
                            for (int32_t kr = 0, ir = r0; kr < t[7]; ++kr, ir += t[13]) {
                                if (iz >= 0 && iz < t[0] && ir >= 0 && ir < t[1]) {
                                    const int32_t row = weight + (kz * t[7] + kr) * t[8];
                                    int32_t i = first + (iz * t[1] + ir) * t[2] + c0 + begin * t[14];
                                    for (int32_t k = row + begin; k < row + end; ++k, i += t[14]) {
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
                }
            }
        }
    }
}

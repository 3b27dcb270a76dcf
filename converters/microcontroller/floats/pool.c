/* t: sizes of the input (3), of the output (3), of the kernel (3), strides, dilations, pads before; planes, and the places from
   and to which taps count (3 each). */
static void NAME(const STORED *x, STORED *y, INDICESconst int32_t *t)
{
    int32_t at = 0;
    for (int32_t n = 0; n < t[18]; ++n) {
        for (int32_t o = 0; o < t[3] * t[4] * t[5]; ++o) {
            const int32_t z0 = o / (t[4] * t[5]) * t[9] - t[15], r0 = o / t[5] % t[4] * t[10] - t[16];
            const int32_t c0 = o % t[5] * t[11] - t[17];
            VALUE s = START;
            ANY
            for (int32_t kz = 0, z = z0; kz < t[6]; ++kz, z += t[12]) {
                for (int32_t kr = 0, r = r0; kr < t[7]; ++kr, r += t[13]) {
                    for (int32_t kc = 0, c = c0; kc < t[8]; ++kc, c += t[14]) {
                        if (z < t[19] || z >= t[22] || r < t[20] || r >= t[23] || c < t[21] || c >= t[24]) {
                            continue;
                        }
                        COUNT
                        if (z >= 0 && z < t[0] && r >= 0 && r < t[1] && c >= 0 && c < t[2]) {
                            const int32_t i = ((n * t[0] + z) * t[1] + r) * t[2] + c;
                            const VALUE v = LOAD;
                            STEP
                        }
                    }
                }
            }
            FINISH
            STORE_INDEX
            ++at;
        }
    }
}

/* One direction; gates z, r, h. t: steps, batch, inputs, hidden; steps of x (time, batch), of y (time, batch), of a state (batch);
   backward. */
static void NAME(const VALUE *x, const VALUE *w, const VALUE *r, const VALUE *b, const int32_t *lengths, const VALUE *h0, VALUE *y,
                 VALUE *yh, VALUE *work, const int32_t *t)
{
    const int32_t size = t[3];
    VALUE *h = work, *z = work + size, *reset = work + 2 * size, *next = work + 3 * size;
    for (int32_t n = 0; n < t[1]; ++n) {
        int32_t length = lengths ? lengths[n] : t[0];
        length = length < 0 ? 0 : length > t[0] ? t[0] : length;
        for (int32_t j = 0; j < size; ++j) {
            h[j] = h0 ? h0[n * t[8] + j] : 0;
        }
        for (int32_t k = 0; k < length; ++k) {
            const int32_t at = t[9] ? length - 1 - k : k;
            const VALUE *now = x + at * t[4] + n * t[5];
            for (int32_t j = 0; j < 2 * size; ++j) {
                VALUE v = b ? b[j] + b[3 * size + j] : 0;
                for (int32_t i = 0; i < t[2]; ++i) {
                    v += now[i] * w[j * t[2] + i];
                }
                for (int32_t i = 0; i < size; ++i) {
                    v += h[i] * r[j * size + i];
                }
                z[j] = ACT_F(v);
            }
            for (int32_t j = 0; j < size; ++j) {
                VALUE v = b ? b[2 * size + j] : 0, u = b ? b[5 * size + j] : 0;
                for (int32_t i = 0; i < t[2]; ++i) {
                    v += now[i] * w[(2 * size + j) * t[2] + i];
                }
                for (int32_t i = 0; i < size; ++i) {
                    u += (RESET ? h[i] : reset[i] * h[i]) * r[(2 * size + j) * size + i];
                }
                v += RESET ? reset[j] * u : u;
                next[j] = ACT_G(v);
            }
            for (int32_t j = 0; j < size; ++j) {
                h[j] = (1 - z[j]) * next[j] + z[j] * h[j];
                if (y) {
                    y[at * t[6] + n * t[7] + j] = h[j];
                }
            }
        }
        for (int32_t k = length; y && k < t[0]; ++k) {
            for (int32_t j = 0; j < size; ++j) {
                y[k * t[6] + n * t[7] + j] = 0;
            }
        }
        for (int32_t j = 0; yh && j < size; ++j) {
            yh[n * t[8] + j] = h[j];
        }
    }
}

/* One direction. t: steps, batch, inputs, hidden; steps of x (time, batch), of y (time, batch), of a state (batch); backward. */
static void NAME(const VALUE *x, const VALUE *w, const VALUE *r, const VALUE *b, const int32_t *lengths, const VALUE *h0, VALUE *y,
                 VALUE *yh, VALUE *work, const int32_t *t)
{
    VALUE *h = work, *next = work + t[3];
    for (int32_t n = 0; n < t[1]; ++n) {
        int32_t length = lengths ? lengths[n] : t[0];
        length = length < 0 ? 0 : length > t[0] ? t[0] : length;
        for (int32_t j = 0; j < t[3]; ++j) {
            h[j] = h0 ? h0[n * t[8] + j] : 0;
        }
        for (int32_t k = 0; k < length; ++k) {
            const int32_t at = t[9] ? length - 1 - k : k;
            for (int32_t j = 0; j < t[3]; ++j) {
                VALUE v = b ? b[j] + b[t[3] + j] : 0;
                for (int32_t i = 0; i < t[2]; ++i) {
                    v += x[at * t[4] + n * t[5] + i] * w[j * t[2] + i];
                }
                for (int32_t i = 0; i < t[3]; ++i) {
                    v += h[i] * r[j * t[3] + i];
                }
                next[j] = ACT_F(v);
            }
            for (int32_t j = 0; j < t[3]; ++j) {
                h[j] = next[j];
                if (y) {
                    y[at * t[6] + n * t[7] + j] = h[j];
                }
            }
        }
        for (int32_t k = length; y && k < t[0]; ++k) {
            for (int32_t j = 0; j < t[3]; ++j) {
                y[k * t[6] + n * t[7] + j] = 0;
            }
        }
        for (int32_t j = 0; yh && j < t[3]; ++j) {
            yh[n * t[8] + j] = h[j];
        }
    }
}

/* One direction; gates i, o, f, c; peepholes p of i, o, f. t: steps, batch, inputs, hidden; steps of x (time, batch), of y (time,
   batch), of a state (batch); backward. */
static void NAME(const VALUE *x, const VALUE *w, const VALUE *r, const VALUE *b, const int32_t *lengths, const VALUE *h0, VALUE *y,
                 VALUE *yh, const VALUE *c0, VALUE *yc, const VALUE *p, VALUE *work, const int32_t *t)
{
    const int32_t size = t[3];
    VALUE *h = work, *c = work + size, *gates = work + 2 * size;
    for (int32_t n = 0; n < t[1]; ++n) {
        int32_t length = lengths ? lengths[n] : t[0];
        length = length < 0 ? 0 : length > t[0] ? t[0] : length;
        for (int32_t j = 0; j < size; ++j) {
            h[j] = h0 ? h0[n * t[8] + j] : 0;
            c[j] = c0 ? c0[n * t[8] + j] : 0;
        }
        for (int32_t k = 0; k < length; ++k) {
            const int32_t at = t[9] ? length - 1 - k : k;
            const VALUE *now = x + at * t[4] + n * t[5];
            for (int32_t j = 0; j < 4 * size; ++j) {
                VALUE v = b ? b[j] + b[4 * size + j] : 0;
                for (int32_t i = 0; i < t[2]; ++i) {
                    v += now[i] * w[j * t[2] + i];
                }
                for (int32_t i = 0; i < size; ++i) {
                    v += h[i] * r[j * size + i];
                }
                gates[j] = v;
            }
            for (int32_t j = 0; j < size; ++j) {
                VALUE v = gates[j] + (p ? p[j] * c[j] : 0), in, forget;
                in = ACT_F(v);
                v = gates[2 * size + j] + (p ? p[2 * size + j] * c[j] : 0);
                forget = ACT_F(v);
                v = gates[3 * size + j];
                v = ACT_G(v);
                c[j] = forget * c[j] + in * v;
                v = gates[size + j] + (p ? p[size + j] * c[j] : 0);
                in = ACT_F(v);
                v = c[j];
                v = ACT_H(v);
                h[j] = in * v;
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
        for (int32_t j = 0; j < size; ++j) {
            if (yh) {
                yh[n * t[8] + j] = h[j];
            }
            if (yc) {
                yc[n * t[8] + j] = c[j];
            }
        }
    }
}

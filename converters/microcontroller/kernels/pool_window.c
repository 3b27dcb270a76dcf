/* The part of a pool's window that lies inside the image, dilation 1; no rows or no columns where none does. */
struct pool_window {
    int32_t top, left, rows, columns;
};

static void pool_clip(int32_t begin, int32_t length, int32_t size, int32_t *first, int32_t *count) {
    const int32_t low = begin > 0 ? begin : 0;
    const int32_t high = begin + length < size ? begin + length : size;
    *first = high > low ? low : 0;
    *count = high > low ? high - low : 0;
}

static struct pool_window pool_window_at(const struct windows *shape, int32_t y, int32_t x) {
    struct pool_window window;
    pool_clip(y * shape->stride_y - shape->pad_top, shape->kernel_height, shape->height, &window.top, &window.rows);
    pool_clip(x * shape->stride_x - shape->pad_left, shape->kernel_width, shape->width, &window.left, &window.columns);
    return window;
}

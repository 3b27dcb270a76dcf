/* Pixels of C bytes copied to places with a stride of their own: what convolutions build their windows from. */
typedef struct {
    uint32_t count;       /* pixels */
    uint32_t channels;    /* bytes of one */
    uint32_t stride;      /* bytes from a pixel's place to the next */
    uint32_t part_stride; /* bytes from the place of a pixel's first 16 bytes to that of the next 16 */
} mve_columns;

#if defined(__ARM_FEATURE_MVE)
static void mve_copy_columns(int8_t *to, const int8_t *from, const mve_columns *columns) {
    for (uint32_t part = 0; part < columns->channels; part += 16u) {
        int8_t *place = to;
        const int8_t *source = from + part;
        __asm__ volatile("vctp.8 %[left]\n\t"
                         "dls lr, %[count]\n"
                         "1:\n\t"
                         "vpstt\n\t"
                         "vldrbt.u8 q0, [%[source]]\n\t"
                         "vstrbt.8 q0, [%[place]]\n\t"
                         "add %[source], %[channels]\n\t"
                         "add %[place], %[stride]\n\t"
                         "le lr, 1b"
                         : [source] "+r"(source), [place] "+r"(place)
                         : [left] "r"(columns->channels - part), [count] "r"(columns->count), [channels] "r"(columns->channels),
                           [stride] "r"(columns->stride)
                         : "lr", "q0", "cc", "memory");
        to += columns->part_stride;
    }
}

static void mve_fill_columns(int8_t *to, int8_t value, const mve_columns *columns) {
    for (uint32_t part = 0; part < columns->channels; part += 16u) {
        int8_t *place = to;
        __asm__ volatile("vctp.8 %[left]\n\t"
                         "vdup.8 q0, %[value]\n\t"
                         "dls lr, %[count]\n"
                         "1:\n\t"
                         "vpst\n\t"
                         "vstrbt.8 q0, [%[place]]\n\t"
                         "add %[place], %[stride]\n\t"
                         "le lr, 1b"
                         : [place] "+r"(place)
                         : [left] "r"(columns->channels - part), [count] "r"(columns->count), [value] "r"(value),
                           [stride] "r"(columns->stride)
                         : "lr", "q0", "cc", "memory");
        to += columns->part_stride;
    }
}
#else
static void mve_copy_columns(int8_t *to, const int8_t *from, const mve_columns *columns) {
    for (uint32_t i = 0; i < columns->count; ++i) {
        for (uint32_t c = 0; c < columns->channels; ++c) {
            to[i * columns->stride + c / 16u * columns->part_stride + c % 16u] = from[i * columns->channels + c];
        }
    }
}

static void mve_fill_columns(int8_t *to, int8_t value, const mve_columns *columns) {
    for (uint32_t i = 0; i < columns->count; ++i) {
        for (uint32_t c = 0; c < columns->channels; ++c) {
            to[i * columns->stride + c / 16u * columns->part_stride + c % 16u] = value;
        }
    }
}
#endif

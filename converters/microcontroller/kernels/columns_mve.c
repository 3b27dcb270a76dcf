/* Pixels of C bytes copied to places with a stride of their own: what convolutions build their windows from. */
typedef struct {
    uint32_t count;       /* pixels */
    uint32_t channels;    /* bytes of one */
    uint32_t stride;      /* bytes from a pixel's place to the next */
    uint32_t part;        /* bytes of a pixel that lie together, 16 at most */
    uint32_t part_stride; /* bytes from the place of a part to that of the next */
    uint32_t together;    /* how many small pixels one register takes; 1 for others */
    const uint8_t *places; /* of the bytes of those pixels, 16; none where there is one pixel */
} mve_columns;

#if defined(__ARM_FEATURE_MVE)
/* Copies small pixels, as many together as a register takes; returns how many are left. */
static uint32_t mve_copy_small(int8_t **to, const int8_t **from, const mve_columns *columns, uint32_t count, uint32_t together) {
    const uint32_t bytes = together * columns->channels;
    if (count < together) {
        return count;
    }
    __asm__ volatile("vctp.8 %[bytes]\n\t"
                     "vldrb.u8 q1, [%[places]]\n\t"
                     "dls lr, %[count]\n"
                     "1:\n\t"
                     "vpstt\n\t"
                     "vldrbt.u8 q0, [%[from]]\n\t"
                     "vstrbt.8 q0, [%[to], q1]\n\t"
                     "add %[from], %[bytes]\n\t"
                     "add %[to], %[stride]\n\t"
                     "le lr, 1b"
                     : [from] "+r"(*from), [to] "+r"(*to)
                     : [bytes] "r"(bytes), [count] "r"(count / together), [stride] "r"(together * columns->stride),
                       [places] "r"(columns->places)
                     : "lr", "q0", "q1", "cc", "memory");
    return count % together;
}

static void mve_copy_columns(int8_t *to, const int8_t *from, const mve_columns *columns) {
    if (columns->together > 1u) {
        const uint32_t left = mve_copy_small(&to, &from, columns, columns->count, columns->together);
        (void)mve_copy_small(&to, &from, columns, left, left > 0u ? left : 1u);
        return;
    }
    for (uint32_t part = 0; part < columns->channels; part += columns->part) {
        const uint32_t left = columns->channels - part;
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
                         : [left] "r"(left < columns->part ? left : columns->part), [count] "r"(columns->count), [channels] "r"(columns->channels),
                           [stride] "r"(columns->stride)
                         : "lr", "q0", "cc", "memory");
        to += columns->part_stride;
    }
}

static void mve_fill_columns(int8_t *to, int8_t value, const mve_columns *columns) {
    for (uint32_t part = 0; part < columns->channels; part += columns->part) {
        const uint32_t left = columns->channels - part;
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
                         : [left] "r"(left < columns->part ? left : columns->part), [count] "r"(columns->count), [value] "r"(value),
                           [stride] "r"(columns->stride)
                         : "lr", "q0", "cc", "memory");
        to += columns->part_stride;
    }
}
#else
static void mve_copy_columns(int8_t *to, const int8_t *from, const mve_columns *columns) {
    for (uint32_t i = 0; i < columns->count; ++i) {
        for (uint32_t c = 0; c < columns->channels; ++c) {
            to[i * columns->stride + c / columns->part * columns->part_stride + c % columns->part] = from[i * columns->channels + c];
        }
    }
}

static void mve_fill_columns(int8_t *to, int8_t value, const mve_columns *columns) {
    for (uint32_t i = 0; i < columns->count; ++i) {
        for (uint32_t c = 0; c < columns->channels; ++c) {
            to[i * columns->stride + c / columns->part * columns->part_stride + c % columns->part] = value;
        }
    }
}
#endif

#include "modelfleet_image.h"

#include <string.h>

#include "bearssl_ec.h"
#include "bearssl_hash.h"
#include "modelfleet_image_inner.h"

enum offset {
    AT_FORMAT = 16,
    AT_FLAGS = 20,
    AT_SERIAL = 24,
    AT_COUNTER = 32,
    AT_REPLACES = 40,
    AT_LENGTH = 48,
    AT_RESERVED = 52,
    AT_SHAPES = 56,
    AT_PAYLOAD = 88,
    AT_MANIFEST = 120,
    AT_TENANT = 152,
    AT_GROUP = 216,
    AT_PROFILE = 280,
    AT_VERSION = 344,
    AT_MODEL = 408,
    AT_KEY = 672,
    AT_SIGNATURE = 704
};

enum size { NAME_BYTES = 64, MODEL_BYTES = 264, SIGNATURE_BYTES = 64, POINT_BYTES = 65 };

static const uint8_t MAGIC[16] = {'M', 'O', 'D', 'E', 'L', 'F', 'L', 'E', 'E', 'T', '-', 'I', 'M', 'A', 'G', 'E'};

uint64_t modelfleet_image_number(const uint8_t *bytes, unsigned length) {
    uint64_t value = 0;
    while (length-- > 0) {
        value = value << 8 | bytes[length];
    }
    return value;
}

int modelfleet_image_same(const uint8_t *a, const uint8_t *b, size_t length) {
    unsigned differences = 0;
    for (size_t i = 0; i < length; i++) {
        differences |= (unsigned)(a[i] ^ b[i]);
    }
    return differences == 0;
}

/* Whether a field of `size` bytes holds this text and zeros; a text that does not fit is in no field. */
static int holds(const uint8_t *field, size_t size, const char *text) {
    size_t i = 0;
    while (i < size && text[i] != '\0') {
        if (field[i] != (uint8_t)text[i]) {
            return 0;
        }
        i++;
    }
    if (text[i] != '\0') {
        return 0;
    }
    while (i < size) {
        if (field[i++] != 0) {
            return 0;
        }
    }
    return 1;
}

enum modelfleet_image_status modelfleet_image_parse(const uint8_t *bytes, size_t length,
                                                    struct modelfleet_image_header *header) {
    if (length < MODELFLEET_IMAGE_HEADER_BYTES) {
        return MODELFLEET_IMAGE_TRUNCATED;
    }
    if (!modelfleet_image_same(bytes, MAGIC, sizeof MAGIC)) {
        return MODELFLEET_IMAGE_NOT_ONE;
    }
    header->flags = (uint32_t)modelfleet_image_number(bytes + AT_FLAGS, 4);
    header->serial = modelfleet_image_number(bytes + AT_SERIAL, 8);
    header->counter = modelfleet_image_number(bytes + AT_COUNTER, 8);
    header->replaces = modelfleet_image_number(bytes + AT_REPLACES, 8);
    header->payload_bytes = (uint32_t)modelfleet_image_number(bytes + AT_LENGTH, 4);
    memcpy(header->payload_sha256, bytes + AT_PAYLOAD, sizeof header->payload_sha256);
    memcpy(header->manifest_sha256, bytes + AT_MANIFEST, sizeof header->manifest_sha256);
    memcpy(header->version, bytes + AT_VERSION, NAME_BYTES);
    header->version[NAME_BYTES] = '\0';
    if (modelfleet_image_number(bytes + AT_FORMAT, 4) != 1 || (header->flags & ~MODELFLEET_IMAGE_DOWNGRADE) != 0 ||
        (header->flags != 0) != (header->replaces != 0) || modelfleet_image_number(bytes + AT_RESERVED, 4) != 0 ||
        header->serial == 0) {
        return MODELFLEET_IMAGE_FORMAT;
    }
    return MODELFLEET_IMAGE_OK;
}

static const struct modelfleet_image_key *find_key(const struct modelfleet_image_expected *expected,
                                                   const uint8_t *id) {
    for (size_t i = 0; i < expected->keys_count; i++) {
        if (modelfleet_image_same(expected->keys[i].id, id, MODELFLEET_IMAGE_DIGEST_BYTES)) {
            return &expected->keys[i];
        }
    }
    return NULL;
}

static void digest_of(const uint8_t *bytes, size_t length, uint8_t *digest) {
    br_sha256_context context;
    br_sha256_init(&context);
    br_sha256_update(&context, bytes, length);
    br_sha256_out(&context, digest);
}

MODELFLEET_APART enum modelfleet_image_status modelfleet_image_inspect(
    const uint8_t *bytes, size_t length, const struct modelfleet_image_expected *expected,
    struct modelfleet_image_header *header, struct modelfleet_image_claim *claim) {
    enum modelfleet_image_status status = modelfleet_image_parse(bytes, length, header);
    if (status != MODELFLEET_IMAGE_OK) {
        return status;
    }
    if (!holds(bytes + AT_TENANT, NAME_BYTES, expected->tenant) ||
        !holds(bytes + AT_MODEL, MODEL_BYTES, expected->model)) {
        return MODELFLEET_IMAGE_MODEL;
    }
    if (!holds(bytes + AT_PROFILE, NAME_BYTES, expected->profile)) {
        return MODELFLEET_IMAGE_PROFILE;
    }
    if (!modelfleet_image_same(bytes + AT_SHAPES, expected->shapes, MODELFLEET_IMAGE_DIGEST_BYTES)) {
        return MODELFLEET_IMAGE_SHAPES;
    }
    if (header->payload_bytes != expected->weights_bytes) {
        return MODELFLEET_IMAGE_LENGTH;
    }
    claim->key = find_key(expected, bytes + AT_KEY);
    if (claim->key == NULL) {
        return MODELFLEET_IMAGE_KEY;
    }
    digest_of(bytes, AT_SIGNATURE, claim->digest);
    memcpy(claim->signature, bytes + AT_SIGNATURE, SIGNATURE_BYTES);
    return MODELFLEET_IMAGE_OK;
}

MODELFLEET_APART enum modelfleet_image_status modelfleet_image_verify(const struct modelfleet_image_claim *claim) {
    unsigned char point[POINT_BYTES]; /* BearSSL's type has no const */
    br_ec_public_key key;
    memcpy(point, claim->key->point, sizeof point);
    key.curve = BR_EC_secp256r1;
    key.q = point;
    key.qlen = sizeof point;
    if (br_ecdsa_i31_vrfy_raw(&br_ec_p256_m31, claim->digest, sizeof claim->digest, &key, claim->signature,
                              sizeof claim->signature) != 1) {
        return MODELFLEET_IMAGE_SIGNATURE;
    }
    return MODELFLEET_IMAGE_OK;
}

enum modelfleet_image_status modelfleet_image_require_group(const uint8_t *bytes, const char *group) {
    return holds(bytes + AT_GROUP, NAME_BYTES, group) ? MODELFLEET_IMAGE_OK : MODELFLEET_IMAGE_GROUP;
}

enum modelfleet_image_status modelfleet_image_check(const uint8_t *bytes, size_t length,
                                                    const struct modelfleet_image_expected *expected,
                                                    struct modelfleet_image_header *header) {
    struct modelfleet_image_claim claim;
    enum modelfleet_image_status status = modelfleet_image_inspect(bytes, length, expected, header, &claim);
    if (status == MODELFLEET_IMAGE_OK) {
        status = modelfleet_image_require_group(bytes, expected->group);
    }
    return status == MODELFLEET_IMAGE_OK ? modelfleet_image_verify(&claim) : status;
}

enum modelfleet_image_status modelfleet_image_check_whole(const uint8_t *bytes, size_t length,
                                                          const struct modelfleet_image_expected *expected,
                                                          struct modelfleet_image_header *header) {
    uint8_t digest[MODELFLEET_IMAGE_DIGEST_BYTES];
    enum modelfleet_image_status status = modelfleet_image_check(bytes, length, expected, header);
    if (status != MODELFLEET_IMAGE_OK) {
        return status;
    }
    if (length - MODELFLEET_IMAGE_HEADER_BYTES != header->payload_bytes) {
        return MODELFLEET_IMAGE_TRUNCATED;
    }
    digest_of(bytes + MODELFLEET_IMAGE_HEADER_BYTES, header->payload_bytes, digest);
    return modelfleet_image_same(digest, header->payload_sha256, sizeof digest) ? MODELFLEET_IMAGE_OK
                                                                                : MODELFLEET_IMAGE_PAYLOAD;
}

/* Add a text as a header has it: `size` bytes, zeros after it. */
static void add_field(br_sha256_context *context, const char *text, size_t size) {
    static const uint8_t zero[1] = {0};
    size_t i = 0;
    for (; i < size && text[i] != '\0'; i++) {
        br_sha256_update(context, text + i, 1);
    }
    for (; i < size; i++) {
        br_sha256_update(context, zero, 1);
    }
}

void modelfleet_image_scope(const struct modelfleet_image_expected *expected, uint8_t *digest) {
    br_sha256_context context;
    br_sha256_init(&context);
    add_field(&context, expected->tenant, NAME_BYTES);
    add_field(&context, expected->profile, NAME_BYTES);
    add_field(&context, expected->model, MODEL_BYTES);
    br_sha256_out(&context, digest);
}

/* A data image: new weights for a model whose code this firmware has, signed by the fleet's releases key (ECDSA P-256).
 *
 * Freestanding C99: no malloc, no state, nothing of libc but memcpy, memmove and memset. Offsets are in docs/microcontroller.md.
 * Which flash an image lies in, and which one runs, is modelfleet_banks.h's business.
 */
#ifndef MODELFLEET_IMAGE_H
#define MODELFLEET_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MODELFLEET_IMAGE_HEADER_BYTES 768u
#define MODELFLEET_IMAGE_DIGEST_BYTES 32u
#define MODELFLEET_IMAGE_DOWNGRADE 1u /* flag: may replace a higher release counter, up to `replaces` */

enum modelfleet_image_status {
    MODELFLEET_IMAGE_OK = 0,
    MODELFLEET_IMAGE_TRUNCATED,   /* fewer or more bytes than the header says */
    MODELFLEET_IMAGE_NOT_ONE,     /* another magic */
    MODELFLEET_IMAGE_FORMAT,      /* a format, a flag or reserved bytes that this code does not know */
    MODELFLEET_IMAGE_MODEL,       /* of another tenant or model */
    MODELFLEET_IMAGE_PROFILE,     /* for another hardware profile */
    MODELFLEET_IMAGE_GROUP,       /* approved for another group */
    MODELFLEET_IMAGE_SHAPES,      /* for other code: a firmware update is needed */
    MODELFLEET_IMAGE_LENGTH,      /* not as long as this model's weights, or longer than a bank */
    MODELFLEET_IMAGE_KEY,         /* signed by a key that this firmware does not trust */
    MODELFLEET_IMAGE_SIGNATURE,   /* not what that key signed */
    MODELFLEET_IMAGE_PAYLOAD,     /* other weights than were signed, or flash that does not hold what was written */
    MODELFLEET_IMAGE_REPLAY,      /* no newer than an image that was taken before */
    MODELFLEET_IMAGE_COUNTER,     /* a lower release counter, and no signed leave to go back */
    MODELFLEET_IMAGE_FLASH,       /* the flash driver failed */
    MODELFLEET_IMAGE_ORDER        /* called out of order */
};

/* A key that may sign: id and public point (0x04, x, y), as `modelfleet microcontroller export` writes them. */
struct modelfleet_image_key {
    uint8_t id[MODELFLEET_IMAGE_DIGEST_BYTES];
    uint8_t point[65];
};

/* What this firmware takes; all texts end with a zero. `shapes` is the SHA-256 of model.c, `weights_bytes` the length of
 * weights.bin. Two keys let the releases key be rotated. */
struct modelfleet_image_expected {
    const char *tenant;
    const char *model;
    const char *profile;
    const char *group;
    const uint8_t *shapes;
    uint32_t weights_bytes;
    const struct modelfleet_image_key *keys;
    size_t keys_count;
};

/* What a header says; believe none of it before modelfleet_image_check. */
struct modelfleet_image_header {
    uint64_t serial;
    uint64_t counter;
    uint64_t replaces; /* of a downgrade: the highest release counter that it may replace */
    uint32_t flags;
    uint32_t payload_bytes;
    uint8_t payload_sha256[MODELFLEET_IMAGE_DIGEST_BYTES];
    uint8_t manifest_sha256[MODELFLEET_IMAGE_DIGEST_BYTES];
    char version[65];
};

/* Read a header's fields. `length`: of `bytes`, the header's at least; nothing beyond it is read. */
enum modelfleet_image_status modelfleet_image_parse(const uint8_t *bytes, size_t length,
                                                    struct modelfleet_image_header *header);

/* Whether a header is for this firmware and signed; the payload's digest is then header->payload_sha256. */
enum modelfleet_image_status modelfleet_image_check(const uint8_t *bytes, size_t length,
                                                    const struct modelfleet_image_expected *expected,
                                                    struct modelfleet_image_header *header);

/* Whether a whole image, in memory or in mapped flash, is for this firmware, signed, and complete. */
enum modelfleet_image_status modelfleet_image_check_whole(const uint8_t *bytes, size_t length,
                                                          const struct modelfleet_image_expected *expected,
                                                          struct modelfleet_image_header *header);

#ifdef __cplusplus
}
#endif
#endif

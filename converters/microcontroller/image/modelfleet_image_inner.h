/* What modelfleet_image.c and modelfleet_banks.c share; no part of the interface. */
#ifndef MODELFLEET_IMAGE_INNER_H
#define MODELFLEET_IMAGE_INNER_H

#include "modelfleet_image.h"

#if defined(__GNUC__)
#define MODELFLEET_APART __attribute__((noinline)) /* its stack is gone before the signature is verified */
#else
#define MODELFLEET_APART
#endif

/* What a signature is verified with, taken out of the header so that it need not stay in memory. */
struct modelfleet_image_claim {
    uint8_t digest[MODELFLEET_IMAGE_DIGEST_BYTES]; /* of the signed bytes */
    uint8_t signature[64];
    const struct modelfleet_image_key *key;
};

/* All of modelfleet_image_check but the group and the signature. */
enum modelfleet_image_status modelfleet_image_inspect(const uint8_t *bytes, size_t length,
                                                      const struct modelfleet_image_expected *expected,
                                                      struct modelfleet_image_header *header,
                                                      struct modelfleet_image_claim *claim);
enum modelfleet_image_status modelfleet_image_verify(const struct modelfleet_image_claim *claim);
enum modelfleet_image_status modelfleet_image_require_group(const uint8_t *bytes, const char *group);

/* Which model this firmware has: SHA-256 of tenant, profile and model. */
void modelfleet_image_scope(const struct modelfleet_image_expected *expected, uint8_t *digest);
int modelfleet_image_same(const uint8_t *a, const uint8_t *b, size_t length);
uint64_t modelfleet_image_number(const uint8_t *bytes, unsigned length); /* little endian, 8 bytes at most */

#endif

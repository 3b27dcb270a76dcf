/* Two banks of flash for data images: whatever is cut off when, the model that runs is a whole and signed one.
 *
 *   bank + 0      commit record, 128 bytes, written last; its place is 256 bytes
 *   bank + 256    the image's header
 *   bank + 1024   the weights, which model_run reads in place
 *
 * An update erases the bank that does not run, fills it, reads it back from flash, and only then writes its record. At start
 * the newest bank whose record, header, signature and digest hold is taken, then the other, then the firmware's own weights.
 *
 * Not reentrant on one struct modelfleet_banks, which is all the state there is.
 */
#ifndef MODELFLEET_BANKS_H
#define MODELFLEET_BANKS_H

#include "modelfleet_image.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of each write to flash, and its alignment: a power of two, the flash's unit of programming at least, 256 at most. */
#ifndef MODELFLEET_BANKS_WRITE_BYTES
#define MODELFLEET_BANKS_WRITE_BYTES 32u
#endif

/* 0: at start a bank's record and digests are enough (flash that only this firmware can write). */
#ifndef MODELFLEET_BANKS_BOOT_SIGNATURE
#define MODELFLEET_BANKS_BOOT_SIGNATURE 1
#endif

#define MODELFLEET_BANKS_PAYLOAD 1024u
#define MODELFLEET_BANKS_BUILTIN 2 /* no bank: the weights that the firmware was built with */

/* The flash driver: each function returns 0 when it is done. erase leaves 0xff in the whole range, from its lowest address up;
 * write is only asked for what was erased since. Banks lie on erase units and apart from everything else. */
struct modelfleet_flash {
    int (*read)(void *context, uint32_t address, void *bytes, uint32_t length);
    int (*erase)(void *context, uint32_t address, uint32_t length);
    int (*write)(void *context, uint32_t address, const void *bytes, uint32_t length);
    void *context;
    uint32_t bank[2];    /* address of each, a multiple of 16 */
    uint32_t bank_bytes; /* of each: MODELFLEET_BANKS_PAYLOAD and the weights, in whole writes */
};

struct modelfleet_banks {
    const struct modelfleet_flash *flash;
    const struct modelfleet_image_expected *expected;
    uint64_t serial;  /* of the newest image that was ever committed */
    uint64_t counter; /* the highest release counter that was ever committed, or that the firmware has */
    uint64_t active_serial; /* of what runs, 0 for the firmware's own weights */
    uint64_t next_serial, next_counter;
    uint32_t position, end; /* of the update that is being written, in its bank */
    uint8_t active;
    uint8_t target; /* the bank that is being written; MODELFLEET_BANKS_BUILTIN: none */
    uint8_t header_sha256[MODELFLEET_IMAGE_DIGEST_BYTES];
    uint8_t payload_sha256[MODELFLEET_IMAGE_DIGEST_BYTES];
    uint8_t unit[MODELFLEET_BANKS_WRITE_BYTES];
};

/* Find what runs; never fails, since the firmware's own weights are always there. `counter`: their release counter. Both
 * pointers must stay. */
void modelfleet_banks_open(struct modelfleet_banks *banks, const struct modelfleet_flash *flash,
                           const struct modelfleet_image_expected *expected, uint64_t counter);

/* 0 or 1: the weights lie at modelfleet_banks_weights; MODELFLEET_BANKS_BUILTIN: take model_weights. */
int modelfleet_banks_active(const struct modelfleet_banks *banks);
uint32_t modelfleet_banks_weights(const struct modelfleet_banks *banks);

/* Take an update in: the header at once (nothing is erased before it has proved to be wanted, signed and newer), the payload
 * in pieces of any length, and the end. What ran before runs on until finish returns MODELFLEET_IMAGE_OK, and after anything
 * else. No inference may still read the other bank when begin is called. */
enum modelfleet_image_status modelfleet_banks_begin(struct modelfleet_banks *banks, const uint8_t *header, size_t length);
enum modelfleet_image_status modelfleet_banks_write(struct modelfleet_banks *banks, const uint8_t *bytes, size_t length);
enum modelfleet_image_status modelfleet_banks_finish(struct modelfleet_banks *banks);

#ifdef __cplusplus
}
#endif
#endif

#include "modelfleet_banks.h"

#include <string.h>

#include "bearssl_hash.h"
#include "modelfleet_image_inner.h"

/* The commit record: magic, serial, highest release counter so far, zeros; then SHA-256 of the header, of the scope, and of
 * these 96 bytes. */
enum record {
    RECORD_SERIAL = 8,
    RECORD_COUNTER = 16,
    RECORD_HEADER = 32,
    RECORD_SCOPE = 64,
    RECORD_DIGEST = 96,
    RECORD_BYTES = 128
};

enum place { HEADER_AT = 256, CHUNK_BYTES = 64 };

static const uint8_t RECORD_MAGIC[8] = {'M', 'F', 'B', 'A', 'N', 'K', 0, 1};

typedef char unit_divides_a_record_place[(256u % MODELFLEET_BANKS_WRITE_BYTES) == 0 ? 1 : -1];

static int digest_of_flash(const struct modelfleet_flash *flash, uint32_t address, uint32_t length, uint8_t *digest) {
    br_sha256_context context;
    uint8_t chunk[CHUNK_BYTES];
    br_sha256_init(&context);
    while (length > 0) {
        uint32_t part = length < CHUNK_BYTES ? length : (uint32_t)CHUNK_BYTES;
        if (flash->read(flash->context, address, chunk, part) != 0) {
            return 0;
        }
        br_sha256_update(&context, chunk, part);
        address += part;
        length -= part;
    }
    br_sha256_out(&context, digest);
    return 1;
}

static void put_number(uint8_t *bytes, uint64_t value) {
    for (int i = 0; i < 8; i++) {
        bytes[i] = (uint8_t)(value >> (8 * i));
    }
}

static void seal_record(const uint8_t *record, uint8_t *digest) {
    br_sha256_context context;
    br_sha256_init(&context);
    br_sha256_update(&context, record, RECORD_DIGEST);
    br_sha256_out(&context, digest);
}

/* Read a bank's record: 1 where it is whole and of this model. */
static int read_record(const struct modelfleet_banks *banks, int bank, uint8_t *record) {
    uint8_t digest[MODELFLEET_IMAGE_DIGEST_BYTES];
    const struct modelfleet_flash *flash = banks->flash;
    if (flash->read(flash->context, flash->bank[bank], record, RECORD_BYTES) != 0 ||
        !modelfleet_image_same(record, RECORD_MAGIC, sizeof RECORD_MAGIC)) {
        return 0;
    }
    seal_record(record, digest);
    if (!modelfleet_image_same(digest, record + RECORD_DIGEST, sizeof digest)) {
        return 0;
    }
    modelfleet_image_scope(banks->expected, digest);
    return modelfleet_image_same(digest, record + RECORD_SCOPE, sizeof digest);
}

/* Read a bank's header and hold it against its record and this firmware. */
MODELFLEET_APART static int inspect_bank(const struct modelfleet_banks *banks, int bank, const uint8_t *record,
                                         struct modelfleet_image_header *header, struct modelfleet_image_claim *claim) {
    uint8_t bytes[MODELFLEET_IMAGE_HEADER_BYTES];
    uint8_t digest[MODELFLEET_IMAGE_DIGEST_BYTES];
    br_sha256_context context;
    const struct modelfleet_flash *flash = banks->flash;
    if (flash->read(flash->context, flash->bank[bank] + HEADER_AT, bytes, sizeof bytes) != 0) {
        return 0;
    }
    br_sha256_init(&context);
    br_sha256_update(&context, bytes, sizeof bytes);
    br_sha256_out(&context, digest);
    return modelfleet_image_same(digest, record + RECORD_HEADER, sizeof digest) &&
           modelfleet_image_inspect(bytes, sizeof bytes, banks->expected, header, claim) == MODELFLEET_IMAGE_OK &&
           header->serial == modelfleet_image_number(record + RECORD_SERIAL, 8);
}

/* Whether a bank with this record holds a whole image for this firmware, newer than the firmware's own weights. */
static int is_valid(const struct modelfleet_banks *banks, int bank, const uint8_t *record, uint64_t builtin_counter) {
    struct modelfleet_image_header header;
    struct modelfleet_image_claim claim;
    uint8_t digest[MODELFLEET_IMAGE_DIGEST_BYTES];
    const struct modelfleet_flash *flash = banks->flash;
    if (modelfleet_image_number(record + RECORD_COUNTER, 8) < builtin_counter ||
        !inspect_bank(banks, bank, record, &header, &claim) ||
        header.payload_bytes > flash->bank_bytes - MODELFLEET_BANKS_PAYLOAD ||
        !digest_of_flash(flash, flash->bank[bank] + MODELFLEET_BANKS_PAYLOAD, header.payload_bytes, digest) ||
        !modelfleet_image_same(digest, header.payload_sha256, sizeof digest)) {
        return 0;
    }
#if MODELFLEET_BANKS_BOOT_SIGNATURE
    return modelfleet_image_verify(&claim) == MODELFLEET_IMAGE_OK;
#else
    return 1;
#endif
}

void modelfleet_banks_open(struct modelfleet_banks *banks, const struct modelfleet_flash *flash,
                           const struct modelfleet_image_expected *expected, uint64_t counter) {
    uint8_t records[2][RECORD_BYTES];
    uint64_t serials[2] = {0, 0};
    memset(banks, 0, sizeof *banks);
    banks->flash = flash;
    banks->expected = expected;
    banks->counter = counter;
    banks->active = MODELFLEET_BANKS_BUILTIN;
    banks->target = MODELFLEET_BANKS_BUILTIN;
    if (flash->bank_bytes < MODELFLEET_BANKS_PAYLOAD) {
        return;
    }
    for (int bank = 0; bank < 2; bank++) {
        if (read_record(banks, bank, records[bank])) {
            uint64_t highest = modelfleet_image_number(records[bank] + RECORD_COUNTER, 8);
            serials[bank] = modelfleet_image_number(records[bank] + RECORD_SERIAL, 8);
            banks->serial = serials[bank] > banks->serial ? serials[bank] : banks->serial;
            banks->counter = highest > banks->counter ? highest : banks->counter;
        }
    }
    for (int turn = 0; turn < 2; turn++) {
        int bank = turn ^ (serials[1] > serials[0] ? 1 : 0); /* the newer first */
        if (serials[bank] != 0 && is_valid(banks, bank, records[bank], counter)) {
            banks->active = (uint8_t)bank;
            banks->active_serial = serials[bank];
            return;
        }
    }
}

int modelfleet_banks_active(const struct modelfleet_banks *banks) {
    return banks->active;
}

uint32_t modelfleet_banks_weights(const struct modelfleet_banks *banks) {
    return banks->active < 2 ? banks->flash->bank[banks->active] + MODELFLEET_BANKS_PAYLOAD : 0;
}

/* The bank to fill: never the one that runs, and where none does, not the one whose record remembers the newest serial. */
static uint8_t idle_bank(const struct modelfleet_banks *banks) {
    uint8_t record[RECORD_BYTES];
    if (banks->active < 2) {
        return (uint8_t)(1 - banks->active);
    }
    return read_record(banks, 0, record) && modelfleet_image_number(record + RECORD_SERIAL, 8) == banks->serial ? 1 : 0;
}

static enum modelfleet_image_status write_unit(struct modelfleet_banks *banks, uint32_t offset) {
    const struct modelfleet_flash *flash = banks->flash;
    if (flash->write(flash->context, flash->bank[banks->target] + offset, banks->unit, sizeof banks->unit) != 0) {
        banks->target = MODELFLEET_BANKS_BUILTIN;
        return MODELFLEET_IMAGE_FLASH;
    }
    return MODELFLEET_IMAGE_OK;
}

/* Add bytes at banks->position, a unit at a time. */
static enum modelfleet_image_status append(struct modelfleet_banks *banks, const uint8_t *bytes, size_t length) {
    for (size_t i = 0; i < length; i++) {
        banks->unit[banks->position % MODELFLEET_BANKS_WRITE_BYTES] = bytes[i];
        banks->position++;
        if (banks->position % MODELFLEET_BANKS_WRITE_BYTES == 0) {
            enum modelfleet_image_status status = write_unit(banks, banks->position - MODELFLEET_BANKS_WRITE_BYTES);
            if (status != MODELFLEET_IMAGE_OK) {
                return status;
            }
        }
    }
    return MODELFLEET_IMAGE_OK;
}

static enum modelfleet_image_status require_newer(const struct modelfleet_banks *banks,
                                                  const struct modelfleet_image_header *header) {
    if (header->serial < banks->serial || header->serial == banks->active_serial) {
        return MODELFLEET_IMAGE_REPLAY; /* a recorded downgrade too; the newest one again only where it got lost */
    }
    if (header->counter < banks->counter && header->replaces < banks->counter) {
        return MODELFLEET_IMAGE_COUNTER;
    }
    return MODELFLEET_IMAGE_OK;
}

/* All that a header must hold before anything is erased; the signature last, for it takes the most time. */
static enum modelfleet_image_status require_wanted(const struct modelfleet_banks *banks, const uint8_t *header,
                                                   size_t length, struct modelfleet_image_header *said) {
    struct modelfleet_image_claim claim;
    /* in whole units, for the last is filled up */
    uint32_t room = banks->flash->bank_bytes - banks->flash->bank_bytes % MODELFLEET_BANKS_WRITE_BYTES;
    enum modelfleet_image_status status = modelfleet_image_inspect(header, length, banks->expected, said, &claim);
    if (status == MODELFLEET_IMAGE_OK && length != MODELFLEET_IMAGE_HEADER_BYTES) {
        status = MODELFLEET_IMAGE_TRUNCATED;
    }
    if (status == MODELFLEET_IMAGE_OK) {
        status = modelfleet_image_require_group(header, banks->expected->group);
    }
    if (status == MODELFLEET_IMAGE_OK) {
        status = require_newer(banks, said);
    }
    if (status == MODELFLEET_IMAGE_OK &&
        (room < MODELFLEET_BANKS_PAYLOAD || said->payload_bytes > room - MODELFLEET_BANKS_PAYLOAD)) {
        status = MODELFLEET_IMAGE_LENGTH;
    }
    return status == MODELFLEET_IMAGE_OK ? modelfleet_image_verify(&claim) : status;
}

enum modelfleet_image_status modelfleet_banks_begin(struct modelfleet_banks *banks, const uint8_t *header,
                                                    size_t length) {
    const struct modelfleet_flash *flash = banks->flash;
    struct modelfleet_image_header said;
    banks->target = MODELFLEET_BANKS_BUILTIN;
    enum modelfleet_image_status status = require_wanted(banks, header, length, &said);
    if (status != MODELFLEET_IMAGE_OK) {
        return status;
    }
    uint8_t target = idle_bank(banks);
    if (flash->erase(flash->context, flash->bank[target], flash->bank_bytes) != 0) {
        return MODELFLEET_IMAGE_FLASH;
    }
    banks->target = target;
    banks->next_serial = said.serial;
    banks->next_counter = said.counter > banks->counter ? said.counter : banks->counter;
    banks->position = HEADER_AT;
    banks->end = MODELFLEET_BANKS_PAYLOAD + said.payload_bytes;
    memcpy(banks->payload_sha256, said.payload_sha256, sizeof banks->payload_sha256);
    br_sha256_context context;
    br_sha256_init(&context);
    br_sha256_update(&context, header, length);
    br_sha256_out(&context, banks->header_sha256);
    return append(banks, header, length);
}

enum modelfleet_image_status modelfleet_banks_write(struct modelfleet_banks *banks, const uint8_t *bytes,
                                                    size_t length) {
    if (banks->target == MODELFLEET_BANKS_BUILTIN) {
        return MODELFLEET_IMAGE_ORDER;
    }
    if (length > banks->end - banks->position) {
        banks->target = MODELFLEET_BANKS_BUILTIN;
        return MODELFLEET_IMAGE_TRUNCATED;
    }
    return append(banks, bytes, length);
}

/* Whether flash holds what was signed: read back, not remembered. */
static int is_written(const struct modelfleet_banks *banks) {
    uint8_t digest[MODELFLEET_IMAGE_DIGEST_BYTES];
    uint32_t bank = banks->flash->bank[banks->target];
    return digest_of_flash(banks->flash, bank + HEADER_AT, MODELFLEET_IMAGE_HEADER_BYTES, digest) &&
           modelfleet_image_same(digest, banks->header_sha256, sizeof digest) &&
           digest_of_flash(banks->flash, bank + MODELFLEET_BANKS_PAYLOAD, banks->end - MODELFLEET_BANKS_PAYLOAD,
                           digest) &&
           modelfleet_image_same(digest, banks->payload_sha256, sizeof digest);
}

static enum modelfleet_image_status write_record(struct modelfleet_banks *banks) {
    uint8_t record[RECORD_BYTES];
    uint8_t found[RECORD_BYTES];
    memset(record, 0, sizeof record);
    memcpy(record, RECORD_MAGIC, sizeof RECORD_MAGIC);
    put_number(record + RECORD_SERIAL, banks->next_serial);
    put_number(record + RECORD_COUNTER, banks->next_counter);
    memcpy(record + RECORD_HEADER, banks->header_sha256, MODELFLEET_IMAGE_DIGEST_BYTES);
    modelfleet_image_scope(banks->expected, record + RECORD_SCOPE);
    seal_record(record, record + RECORD_DIGEST);
    for (uint32_t offset = 0; offset < RECORD_BYTES; offset += MODELFLEET_BANKS_WRITE_BYTES) {
        uint32_t left = RECORD_BYTES - offset;
        memset(banks->unit, 0xff, sizeof banks->unit);
        memcpy(banks->unit, record + offset, left < sizeof banks->unit ? left : sizeof banks->unit);
        if (write_unit(banks, offset) != MODELFLEET_IMAGE_OK) {
            return MODELFLEET_IMAGE_FLASH;
        }
    }
    return read_record(banks, banks->target, found) && modelfleet_image_same(found, record, sizeof record)
               ? MODELFLEET_IMAGE_OK
               : MODELFLEET_IMAGE_PAYLOAD;
}

enum modelfleet_image_status modelfleet_banks_finish(struct modelfleet_banks *banks) {
    enum modelfleet_image_status status = MODELFLEET_IMAGE_OK;
    if (banks->target == MODELFLEET_BANKS_BUILTIN) {
        return MODELFLEET_IMAGE_ORDER;
    }
    uint32_t used = banks->position % MODELFLEET_BANKS_WRITE_BYTES;
    if (banks->position != banks->end) {
        status = MODELFLEET_IMAGE_TRUNCATED;
    } else if (used != 0) {
        memset(banks->unit + used, 0xff, sizeof banks->unit - used);
        status = write_unit(banks, banks->position - used);
    }
    if (status == MODELFLEET_IMAGE_OK) {
        status = is_written(banks) ? write_record(banks) : MODELFLEET_IMAGE_PAYLOAD;
    }
    if (status == MODELFLEET_IMAGE_OK) {
        banks->active = banks->target;
        banks->serial = banks->active_serial = banks->next_serial;
        banks->counter = banks->next_counter;
    }
    banks->target = MODELFLEET_BANKS_BUILTIN;
    return status;
}

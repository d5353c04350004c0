/* checksum.h: XXH3 (64 bits, seed 0; by xxhash.h, as its author publishes it) of a shard and of its samples, in one
 * pass over the bytes. No Python.h, no I/O. */
#ifndef WDS_CHECKSUM_H
#define WDS_CHECKSUM_H

#include <stdbool.h>

#include "sample.h" /* bytes_vec */

/* Of a shard that is being written. A sample that has been begun can be taken back. */
typedef struct writing_sums writing_sums;
writing_sums *writing_sums_new(bool samples); /* samples: of each of them, too. NULL: no memory */
void writing_sums_free(writing_sums *s);      /* NULL is fine */
void writing_sums_add(writing_sums *s, const unsigned char *p, size_t n);
void writing_sums_begin(writing_sums *s);     /* a sample begins with the next byte */
void writing_sums_back(writing_sums *s);      /* as it was then */
bool writing_sums_end(writing_sums *s);       /* the sample is whole. false: no memory */
uint64_t writing_sums_shard(const writing_sums *s);
const bytes_vec *writing_sums_samples(const writing_sums *s); /* u64 each; NULL: they were not asked for */

/* Of a shard that is being read from its start, with samples at [starts[i], ends[i]): ascending, apart, not empty. */
typedef struct {
  const uint64_t *starts, *ends;
  uint64_t *out;      /* one for each sample that has passed */
  size_t n, done;
  uint64_t pos, shard; /* bytes so far; after reading_sums_finish the checksum of them */
  void *whole, *one;
} reading_sums;
bool reading_sums_sound(const reading_sums *s); /* whether the samples are as said */
bool reading_sums_open(reading_sums *s); /* starts, ends, out and n are set, the rest is zero. false: no memory */
void reading_sums_add(reading_sums *s, const unsigned char *p, size_t n);
void reading_sums_finish(reading_sums *s);
void reading_sums_close(reading_sums *s);

uint32_t crc32c(const unsigned char *p, size_t n); /* Castagnoli's, as TFRecord has it */

uint32_t crc32c(const unsigned char *p, size_t n); /* Castagnoli's, as TFRecord has it */

#endif

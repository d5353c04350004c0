/* fuzz_input.h: random tars for fuzz_tar.c: sound ones of every dialect, and what mutations make of them. */
#ifndef WDS_FUZZ_INPUT_H
#define WDS_FUZZ_INPUT_H

#include <stdint.h>

#include "sample.h" /* bytes_vec */

typedef struct {
  uint64_t state;
} rng;

uint64_t rng_next(rng *r);                /* splitmix64: the same numbers on every machine */
size_t rng_below(rng *r, size_t n);       /* 0..n-1; n > 0 */
static inline int one_in(rng *r, size_t n) { return rng_below(r, n) == 0; }

/* A tar that is sound, or was before it was mutated; most of those have their checksums repaired, so that a parser goes
 * on behind them. Replaces what is in v. */
void make_input(rng *r, bytes_vec *v);
size_t make_name(rng *r, char *out, size_t cap); /* of a member; returns its length, 1..cap */

#endif

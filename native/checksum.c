#define XXH_INLINE_ALL
#include "xxhash.h"

#include "checksum.h"

#include <stdlib.h>
#include <string.h>

struct writing_sums {
  XXH3_state_t *whole, *before, *one; /* before: whole, when the open sample began; one: NULL unless samples are asked for */
  bytes_vec samples;
};

writing_sums *writing_sums_new(bool samples) {
  writing_sums *s = calloc(1, sizeof *s);
  if (!s) return NULL;
  s->whole = XXH3_createState();
  s->before = XXH3_createState();
  if (samples) s->one = XXH3_createState();
  if (!s->whole || !s->before || (samples && !s->one)) {
    writing_sums_free(s);
    return NULL;
  }
  XXH3_64bits_reset(s->whole);
  XXH3_copyState(s->before, s->whole);
  if (s->one) XXH3_64bits_reset(s->one);
  return s;
}

void writing_sums_free(writing_sums *s) {
  if (!s) return;
  XXH3_freeState(s->whole);
  XXH3_freeState(s->before);
  XXH3_freeState(s->one);
  free(s->samples.data);
  free(s);
}

void writing_sums_add(writing_sums *s, const unsigned char *p, size_t n) {
  XXH3_64bits_update(s->whole, p, n);
  if (s->one) XXH3_64bits_update(s->one, p, n);
}

void writing_sums_begin(writing_sums *s) {
  XXH3_copyState(s->before, s->whole);
  if (s->one) XXH3_64bits_reset(s->one);
}

void writing_sums_back(writing_sums *s) { XXH3_copyState(s->whole, s->before); }

bool writing_sums_end(writing_sums *s) {
  if (!s->one) return true;
  uint64_t sum = XXH3_64bits_digest(s->one);
  void *at = vec_grow(&s->samples, sizeof sum);
  if (at) memcpy(at, &sum, sizeof sum);
  return at != NULL;
}

uint64_t writing_sums_shard(const writing_sums *s) { return XXH3_64bits_digest(s->whole); }

const bytes_vec *writing_sums_samples(const writing_sums *s) { return s->one ? &s->samples : NULL; }

bool reading_sums_open(reading_sums *s) {
  s->whole = XXH3_createState();
  s->one = XXH3_createState();
  if (!s->whole || !s->one) return false;
  XXH3_64bits_reset(s->whole);
  return true;
}

void reading_sums_close(reading_sums *s) {
  XXH3_freeState(s->whole);
  XXH3_freeState(s->one);
  s->whole = s->one = NULL;
}

/* The samples that have bytes in p[0, n), which lie at s->pos. */
static void add_samples(reading_sums *s, const unsigned char *p, size_t n) {
  uint64_t end = s->pos + n;
  for (; s->done < s->n && s->starts[s->done] < end; s->done++) {
    uint64_t start = s->starts[s->done], stop = s->ends[s->done];
    if (start >= s->pos && stop <= end) {
      s->out[s->done] = XXH3_64bits(p + (start - s->pos), (size_t)(stop - start));
      continue;
    }
    uint64_t from = start > s->pos ? start : s->pos, to = stop < end ? stop : end;
    if (from == start) XXH3_64bits_reset(s->one);
    XXH3_64bits_update(s->one, p + (from - s->pos), (size_t)(to - from));
    if (stop > end) return; /* it goes on in what comes next */
    s->out[s->done] = XXH3_64bits_digest(s->one);
  }
}

void reading_sums_add(reading_sums *s, const unsigned char *p, size_t n) {
  XXH3_64bits_update(s->whole, p, n);
  add_samples(s, p, n);
  s->pos += n;
}

void reading_sums_finish(reading_sums *s) { s->shard = XXH3_64bits_digest(s->whole); }

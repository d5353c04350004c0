#define XXH_INLINE_ALL
#include "xxhash.h"

#include "checksum.h"

#include <pthread.h>
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

bool reading_sums_sound(const reading_sums *s) {
  uint64_t before = 0;
  for (size_t i = 0; i < s->n; before = s->ends[i++])
    if (s->starts[i] < before || s->ends[i] <= s->starts[i]) return false;
  return true;
}

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

/* crc_tables[k][b]: what byte b does to the checksum with k zero bytes behind it. */
static uint32_t crc_tables[8][256];
static pthread_once_t crc_once = PTHREAD_ONCE_INIT;

static void make_crc_tables(void) {
  for (uint32_t b = 0; b < 256; b++) {
    uint32_t crc = b;
    for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    crc_tables[0][b] = crc;
  }
  for (int k = 1; k < 8; k++)
    for (int b = 0; b < 256; b++) {
      uint32_t before = crc_tables[k - 1][b];
      crc_tables[k][b] = before >> 8 ^ crc_tables[0][before & 255];
    }
}

uint32_t crc32c(const unsigned char *p, size_t n) {
  uint32_t crc = UINT32_MAX;
  pthread_once(&crc_once, make_crc_tables);
  for (; n >= 8; p += 8, n -= 8) {
    uint32_t low = crc ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
    crc = crc_tables[7][low & 255] ^ crc_tables[6][low >> 8 & 255] ^ crc_tables[5][low >> 16 & 255] ^
          crc_tables[4][low >> 24] ^ crc_tables[3][p[4]] ^ crc_tables[2][p[5]] ^ crc_tables[1][p[6]] ^ crc_tables[0][p[7]];
  }
  while (n--) crc = crc >> 8 ^ crc_tables[0][(crc ^ *p++) & 255];
  return ~crc;
}

#include "sample.h"

#include <stdlib.h>
#include <string.h>

static const char *last_byte(const char *p, size_t n, char c) {
  while (n-- > 0)
    if (p[n] == c) return p + n;
  return NULL;
}

/* The first path component is __..__ : re.match(r"__[^/]*__($|/)", name). */
static bool is_metadata(const char *name, size_t len) {
  if (len < 4 || name[0] != '_' || name[1] != '_') return false;
  const char *slash = memchr(name, '/', len);
  size_t n = slash ? (size_t)(slash - name) : len;
  if (!slash && name[n - 1] == '\n') n--; /* $ matches before a last newline too */
  return n >= 4 && name[n - 1] == '_' && name[n - 2] == '_';
}

bool sample_split(const char *name, size_t len, sample_name *out) {
  if (is_metadata(name, len)) return false;
  const char *slash = last_byte(name, len, '/');
  size_t base = slash ? (size_t)(slash - name) + 1 : 0;
  const char *dot = memchr(name + base, '.', len - base);
  if (!dot) return false;
  size_t at = (size_t)(dot - name);
  size_t from = base; /* [^.]+ starts here: behind a slash, or at 0 */
  if (base) {
    const char *newline = memchr(name, '\n', base);
    size_t limit = newline ? (size_t)(newline - name) : base; /* .* does not cross a newline */
    if (limit > at - (at == base)) limit = at - (at == base);
    const char *cut = last_byte(name, limit, '/');
    from = cut ? (size_t)(cut - name) + 1 : 0;
  }
  if (from >= at || memchr(name + from, '.', at - from)) return false;
  *out = (sample_name){name, dot + 1, at, len - at - 1};
  return true;
}

bool ascii_lower(char *out, const char *in, size_t n) {
  bool changed = false;
  for (size_t i = 0; i < n; i++) {
    bool upper = in[i] >= 'A' && in[i] <= 'Z';
    out[i] = (char)(upper ? in[i] + 32 : in[i]);
    changed |= upper;
  }
  return changed;
}

/* XXH64, step by step as its specification has it. */
static const uint64_t P1 = 0x9E3779B185EBCA87u, P2 = 0xC2B2AE3D27D4EB4Fu, P3 = 0x165667B19E3779F9u,
                      P4 = 0x85EBCA77C2B2AE63u, P5 = 0x27D4EB2F165667C5u;

static uint64_t rotl(uint64_t x, int r) { return x << r | x >> (64 - r); }
static uint64_t round64(uint64_t acc, uint64_t lane) { return rotl(acc + lane * P2, 31) * P1; }
static uint64_t merge64(uint64_t acc, uint64_t v) { return (acc ^ round64(0, v)) * P1 + P4; }
static uint64_t load(const char *p, size_t n) { /* little endian, whatever the machine */
  uint64_t v = 0;
  for (size_t i = 0; i < n; i++) v |= (uint64_t)(unsigned char)p[i] << 8 * i;
  return v;
}

uint64_t sample_hash(const char *p, size_t n, uint64_t seed) {
  const char *end = p + n;
  uint64_t h = seed + P5;
  if (n >= 32) {
    uint64_t a = seed + P1 + P2, b = seed + P2, c = seed, d = seed - P1;
    for (; end - p >= 32; p += 32) {
      a = round64(a, load(p, 8)), b = round64(b, load(p + 8, 8));
      c = round64(c, load(p + 16, 8)), d = round64(d, load(p + 24, 8));
    }
    h = rotl(a, 1) + rotl(b, 7) + rotl(c, 12) + rotl(d, 18);
    h = merge64(merge64(merge64(merge64(h, a), b), c), d);
  }
  h += n;
  for (; end - p >= 8; p += 8) h = rotl(h ^ round64(0, load(p, 8)), 27) * P1 + P4;
  for (; end - p >= 4; p += 4) h = rotl(h ^ load(p, 4) * P1, 23) * P2 + P3;
  for (; p < end; p++) h = rotl(h ^ (unsigned char)*p * P5, 11) * P1;
  h = (h ^ h >> 33) * P2;
  h = (h ^ h >> 29) * P3;
  return h ^ h >> 32;
}

static void seen_insert(seen_slot *slots, size_t cap, seen_slot item) {
  size_t i = item.hash & (cap - 1);
  while (slots[i].ordinal) i = (i + 1) & (cap - 1);
  slots[i] = item;
}

static bool seen_grow(seen_set *s) {
  size_t cap = s->cap ? s->cap * 2 : 1024;
  seen_slot *slots = calloc(cap, sizeof *slots);
  if (!slots) return false;
  for (size_t i = 0; i < s->cap; i++)
    if (s->slots[i].ordinal) seen_insert(slots, cap, s->slots[i]);
  free(s->slots);
  s->slots = slots;
  s->cap = cap;
  return true;
}

int seen_add(seen_set *s, const char *key, size_t len, uint64_t hash, uint32_t *ordinal) {
  if (s->used * 2 >= s->cap && !seen_grow(s)) return -1;
  uint32_t check = (uint32_t)(sample_hash(key, len, 1) >> 32);
  for (size_t i = hash & (s->cap - 1); s->slots[i].ordinal; i = (i + 1) & (s->cap - 1)) {
    if (s->slots[i].hash == hash && s->slots[i].check == check) {
      *ordinal = s->slots[i].ordinal - 1;
      return 0;
    }
  }
  seen_insert(s->slots, s->cap, (seen_slot){hash, check, (uint32_t)++s->used});
  return 1;
}

void seen_clear(seen_set *s) {
  if (s->used) memset(s->slots, 0, s->cap * sizeof *s->slots);
  s->used = 0;
}

void seen_free(seen_set *s) {
  free(s->slots);
  *s = (seen_set){0};
}

void *vec_grow(bytes_vec *v, size_t n) {
  if (!v->data || n > v->cap - v->len) {
    size_t cap = v->cap ? v->cap : 1024;
    while (cap - v->len < n) cap += cap / 2;
    unsigned char *data = realloc(v->data, cap);
    if (!data) return NULL;
    v->data = data;
    v->cap = cap;
  }
  void *at = v->data + v->len;
  v->len += n;
  return at;
}

static bool put64(bytes_vec *v, uint64_t value) {
  void *at = vec_grow(v, sizeof value);
  if (at) memcpy(at, &value, sizeof value);
  return at != NULL;
}

static bool put_text(bytes_vec *v, const char *text, size_t n) {
  void *at = vec_grow(v, n);
  if (at && n) memcpy(at, text, n);
  return at != NULL;
}

bool columns_sample(columns *c, const char *key, size_t len, uint64_t hash, uint64_t start) {
  c->nsamples++;
  return put_text(&c->keys, key, len) && put64(&c->key_ends, c->keys.len) && put64(&c->hashes, hash) &&
         put64(&c->starts, start) && put64(&c->ends, start) && put64(&c->field_ends, c->nfields);
}

static bool ext_is(const columns *c, size_t code, const char *ext, size_t len) {
  const uint64_t *ends = (const void *)c->ext_ends.data;
  size_t from = code ? (size_t)ends[code - 1] : 0;
  return ends[code] - from == len && memcmp(c->exts.data + from, ext, len) == 0;
}

/* Codes are few, and come in the order of the last sample: try the successor of the last hit first. */
static size_t ext_find(const columns *c, const char *ext, size_t len) {
  size_t n = c->ext_ends.len / 8;
  for (size_t i = 0, code = c->next_ext < n ? c->next_ext : 0; i < n; i++, code = code + 1 < n ? code + 1 : 0)
    if (ext_is(c, code, ext, len)) return code;
  return n;
}

bool columns_has(const columns *c, const char *ext, size_t len) {
  if (!c->nsamples) return false;
  const uint64_t *ends = (const void *)c->field_ends.data;
  const uint32_t *codes = (const void *)c->field_codes.data;
  for (uint64_t i = c->nsamples > 1 ? ends[c->nsamples - 2] : 0; i < c->nfields; i++)
    if (ext_is(c, codes[i], ext, len)) return true;
  return false;
}

bool columns_field(columns *c, const char *ext, size_t len, uint64_t header, uint64_t offset, uint64_t nbytes) {
  size_t code = ext_find(c, ext, len);
  if (code == c->ext_ends.len / 8 && !(put_text(&c->exts, ext, len) && put64(&c->ext_ends, c->exts.len))) return false;
  c->next_ext = code + 1;
  uint32_t code32 = (uint32_t)code;
  void *at = vec_grow(&c->field_codes, sizeof code32);
  if (!at) return false;
  memcpy(at, &code32, sizeof code32);
  c->nfields++;
  uint64_t *ends = (void *)c->field_ends.data;
  ends[c->nsamples - 1] = c->nfields;
  return put64(&c->field_headers, header) && put64(&c->field_offsets, offset) && put64(&c->field_nbytes, nbytes);
}

void columns_end(columns *c, uint64_t end) {
  uint64_t *ends = (void *)c->ends.data;
  if (c->nsamples) ends[c->nsamples - 1] = end;
}

bool columns_exact(const columns *c) { return !c->lowered && c->nfields == c->nmembers; }

void columns_free(columns *c) {
  bytes_vec *all[] = {&c->keys,        &c->key_ends,      &c->hashes,        &c->starts,       &c->ends, &c->field_ends,
                      &c->field_codes, &c->field_headers, &c->field_offsets, &c->field_nbytes, &c->exts, &c->ext_ends};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]->data);
  *c = (columns){0};
}

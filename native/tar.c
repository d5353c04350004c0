#include "tar.h"

#include <assert.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

typedef struct {
  char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], chksum[8], typeflag, linkname[100], magic[6],
      version[2], uname[32], gname[32], devmajor[8], devminor[8], prefix[155], pad[12];
} tar_header;
static_assert(sizeof(tar_header) == TAR_BLOCK, "a tar header is one block");

#define NBYTES_MAX (UINT64_C(1) << 62) /* of a member: offsets can be added up without overflow */

/* What the extension members before a header say about it. */
typedef struct {
  const char *name, *link;
  size_t name_len, link_len;
  uint64_t size;
  bool has_name, has_link, has_size, sparse;
} overrides;

size_t tar_zeros(const unsigned char *buf, size_t n) {
  size_t i = 0;
  uint64_t word;
  for (; i + sizeof word <= n; i += sizeof word) {
    memcpy(&word, buf + i, sizeof word);
    if (word) break;
  }
  while (i < n && !buf[i]) i++;
  return i;
}

static size_t field_len(const char *s, size_t cap) {
  const char *nul = memchr(s, 0, cap);
  return nul ? (size_t)(nul - s) : cap;
}

/* An octal field (spaces, digits, then a space or NUL) or a GNU base-256 one. False where it is neither, is
 * negative or does not fit 63 bits. */
static bool parse_number(const char *s, size_t cap, uint64_t *out) {
  const unsigned char *p = (const unsigned char *)s, *end = p + cap;
  uint64_t value = 0;
  if (*p & 0x80) {
    if (*p != 0x80) return false;
    for (p++; p < end; p++) {
      if (value >> 55) return false;
      value = value << 8 | *p;
    }
    *out = value;
    return true;
  }
  while (p < end && *p == ' ') p++;
  for (; p < end && *p >= '0' && *p <= '7'; p++) {
    if (value >> 60) return false;
    value = value << 3 | (uint64_t)(*p - '0');
  }
  while (p < end && *p == ' ') p++;
  if (p < end && *p) return false;
  *out = value;
  return true;
}

/* Sum of all bytes of a block: the checksum. It is half of the time of a walk over small members. */
#ifdef __SSE2__
static uint32_t byte_sum(const unsigned char *block) {
  __m128i a = _mm_setzero_si128(), b = a;
  const __m128i zero = a;
  for (size_t i = 0; i < TAR_BLOCK; i += 32) {
    a = _mm_add_epi64(a, _mm_sad_epu8(_mm_loadu_si128((const __m128i *)(const void *)(block + i)), zero));
    b = _mm_add_epi64(b, _mm_sad_epu8(_mm_loadu_si128((const __m128i *)(const void *)(block + i + 16)), zero));
  }
  a = _mm_add_epi64(a, b);
  return (uint32_t)(_mm_cvtsi128_si32(a) + _mm_cvtsi128_si32(_mm_srli_si128(a, 8)));
}
#else
static uint32_t byte_sum(const unsigned char *block) {
  uint32_t sum = 0;
  for (size_t i = 0; i < TAR_BLOCK; i++) sum += block[i];
  return sum;
}
#endif

static bool checksum_ok(const tar_header *h) {
  const unsigned char *block = (const unsigned char *)h;
  uint64_t want;
  if (!parse_number(h->chksum, sizeof h->chksum, &want)) return false;
  uint32_t field = 0;
  for (size_t i = 0; i < sizeof h->chksum; i++) field += (unsigned char)h->chksum[i];
  uint32_t sum = byte_sum(block) - field + 8 * ' ';
  if (want == sum) return true;
  /* Some old tars summed signed chars. */
  uint32_t high = 0;
  for (size_t i = 0; i < TAR_BLOCK; i++)
    if (i - offsetof(tar_header, chksum) >= sizeof h->chksum) high += block[i] >> 7;
  return want == (uint64_t)sum - 256u * (uint64_t)high;
}

bool tar_is_header(const unsigned char *block, char *type, uint64_t *size) {
  const tar_header *h = (const tar_header *)(const void *)block;
  *type = h->typeflag;
  return checksum_ok(h) && parse_number(h->size, sizeof h->size, size);
}

static tar_status fail(tar_walker *w, uint64_t at, const char *reason) {
  w->reason = reason;
  w->at = at;
  return TAR_ERROR;
}

static bool is_key(const char *key, size_t len, const char *want) {
  return len == strlen(want) && memcmp(key, want, len) == 0;
}

/* One PAX record: "LEN KEY=VALUE\n", LEN counting itself. An empty value takes the keyword back. */
static const char *apply_record(overrides *o, bool global, const char *key, size_t key_len, const char *value,
                                size_t value_len) {
  bool path = is_key(key, key_len, "path"), link = is_key(key, key_len, "linkpath");
  bool size = is_key(key, key_len, "size"), sparse_name = is_key(key, key_len, "GNU.sparse.name");
  if (global) {
    return path || link || size ? "global PAX header that sets path, linkpath or size" : NULL;
  }
  if ((path || link || sparse_name) && memchr(value, 0, value_len)) return "NUL byte in a PAX path";
  if (path && !(o->sparse && o->has_name)) {
    o->name = value, o->name_len = value_len, o->has_name = value_len > 0;
  } else if (link) {
    o->link = value, o->link_len = value_len, o->has_link = value_len > 0;
  } else if (size) {
    o->has_size = value_len > 0;
    o->size = 0;
    for (size_t i = 0; i < value_len; i++) {
      if (value[i] < '0' || value[i] > '9' || o->size >> 59) return "bad size in a PAX header";
      o->size = o->size * 10 + (uint64_t)(value[i] - '0');
    }
  } else if (key_len > 11 && memcmp(key, "GNU.sparse.", 11) == 0) {
    o->sparse = true;
    if (sparse_name) o->name = value, o->name_len = value_len, o->has_name = true;
  }
  return NULL;
}

static const char *parse_pax(overrides *o, bool global, const char *p, size_t n) {
  const char *end = p + n;
  while (p < end && *p) {
    const char *record = p;
    size_t len = 0;
    for (; p < end && *p >= '0' && *p <= '9' && len <= TAR_GROUP_MAX; p++) len = len * 10 + (size_t)(*p - '0');
    if (p == record || p == end || *p != ' ' || len > (size_t)(end - record) || len <= (size_t)(p - record) + 1)
      return "bad record length in a PAX header";
    const char *key = p + 1, *last = record + len - 1;
    const char *eq = memchr(key, '=', (size_t)(last - key));
    if (*last != '\n' || !eq || eq == key) return "bad record in a PAX header";
    const char *reason = apply_record(o, global, key, (size_t)(eq - key), eq + 1, (size_t)(last - eq - 1));
    if (reason) return reason;
    p = last + 1;
  }
  return tar_zeros((const unsigned char *)p, (size_t)(end - p)) == (size_t)(end - p) ? NULL : "NUL in a PAX header";
}

static tar_type classify(const tar_header *h, const overrides *o, const tar_member *m) {
  bool slash = m->name_len && m->name[m->name_len - 1] == '/';
  switch (h->typeflag) {
  case '\0': /* v7 knows no directories but by their name */
    if (slash && !o->has_name) return TAR_DIR; /* fall through */
  case '0':
  case '7': return o->sparse ? TAR_SPARSE : TAR_FILE;
  case '1': return TAR_HARDLINK;
  case '2': return TAR_SYMLINK;
  case '3':
  case '4':
  case '6': return TAR_DEVICE;
  case '5': return TAR_DIR;
  case 'S': return TAR_SPARSE;
  default: return TAR_OTHER;
  }
}

static void fill_names(const tar_header *h, const overrides *o, tar_member *m) {
  if (o->has_name) {
    m->name = o->name, m->name_len = o->name_len;
  } else {
    /* GNU tar keeps other things where POSIX has the prefix. */
    size_t len = memcmp(h->magic, "ustar", 6) == 0 ? field_len(h->prefix, sizeof h->prefix) : 0;
    memcpy(m->name_buf, h->prefix, len);
    if (len) m->name_buf[len++] = '/';
    size_t base = field_len(h->name, sizeof h->name);
    memcpy(m->name_buf + len, h->name, base);
    m->name = m->name_buf, m->name_len = len + base;
  }
  if (o->has_link) {
    m->link = o->link, m->link_len = o->link_len;
  } else {
    m->link_len = field_len(h->linkname, sizeof h->linkname);
    memcpy(m->link_buf, h->linkname, m->link_len);
    m->link = m->link_buf;
  }
}

/* The final header of the group, at buf + at: fill m. */
static tar_status finish(tar_walker *w, const unsigned char *buf, size_t n, size_t at, uint64_t size,
                         const overrides *o, tar_member *m) {
  const tar_header *h = (const tar_header *)(const void *)(buf + at);
  fill_names(h, o, m);
  m->type = classify(h, o, m);
  m->start = w->pos;
  m->header = w->pos + at;
  size_t end = at + TAR_BLOCK;
  if (h->typeflag == 'S' && buf[at + 482]) { /* old GNU sparse: more extents in blocks of their own */
    do {
      end += TAR_BLOCK;
      if (end > TAR_GROUP_MAX) return fail(w, m->header, "header group over 1 MiB");
      if (end > n) {
        w->need = end;
        return TAR_MORE;
      }
    } while (buf[end - TAR_BLOCK + 504]);
  }
  m->offset = w->pos + end;
  m->nbytes = o->has_size ? o->size : size;
  /* Links, directories and devices have no payload, whatever their size field says (as tarfile reads them). */
  if (m->type != TAR_FILE && m->type != TAR_SPARSE && m->type != TAR_OTHER) m->nbytes = 0;
  if (m->nbytes > NBYTES_MAX) return fail(w, m->header, "impossible member size");
  m->next = m->offset + tar_padded(m->nbytes);
  if (m->type == TAR_DIR)
    while (m->name_len && m->name[m->name_len - 1] == '/') m->name_len--;
  w->pos = m->next;
  return TAR_MEMBER;
}

/* A zero block at buf + at; before it nothing but global headers (git archive writes such of an empty tree). */
static tar_status end_marker(tar_walker *w, const unsigned char *buf, size_t n, size_t at) {
  w->need = at + 2 * TAR_BLOCK;
  if (w->need > TAR_GROUP_MAX) return fail(w, w->pos, "header group over 1 MiB");
  if (n < w->need) return TAR_MORE;
  if (tar_zeros(buf + at + TAR_BLOCK, TAR_BLOCK) < TAR_BLOCK)
    return fail(w, w->pos + at, "lone zero block between members");
  w->pos += w->need;
  return TAR_END;
}

tar_status tar_next(tar_walker *w, const unsigned char *buf, size_t n, tar_member *m) {
  overrides o = {0};
  bool awaits_member = false;
  size_t at = 0;
  for (;;) {
    const tar_header *h = (const tar_header *)(const void *)(buf + at);
    uint64_t size;
    w->need = at + TAR_BLOCK;
    if (w->need > TAR_GROUP_MAX) return fail(w, w->pos, "header group over 1 MiB");
    if (n < w->need) return TAR_MORE;
    if (!h->name[0] && tar_zeros(buf + at, TAR_BLOCK) == TAR_BLOCK) {
      if (awaits_member) return fail(w, w->pos + at, "extension header without a member behind it");
      return end_marker(w, buf, n, at);
    }
    if (!checksum_ok(h)) return fail(w, w->pos + at, "bad tar header (checksum)");
    if (!parse_number(h->size, sizeof h->size, &size)) return fail(w, w->pos + at, "bad size in a tar header");
    char type = h->typeflag;
    if (type != 'x' && type != 'g' && type != 'X' && type != 'L' && type != 'K')
      return finish(w, buf, n, at, size, &o, m);

    if (size > TAR_GROUP_MAX) return fail(w, w->pos + at, "extension header over 1 MiB");
    const char *text = (const char *)buf + at + TAR_BLOCK;
    w->need = at + TAR_BLOCK + (size_t)tar_padded(size);
    if (w->need > TAR_GROUP_MAX) return fail(w, w->pos, "header group over 1 MiB");
    if (n < w->need) return TAR_MORE;
    if (type == 'L') {
      o.name = text, o.name_len = field_len(text, size), o.has_name = true;
    } else if (type == 'K') {
      o.link = text, o.link_len = field_len(text, size), o.has_link = true;
    } else {
      const char *reason = parse_pax(&o, type == 'g', text, size);
      if (reason) return fail(w, w->pos + at, reason);
    }
    if (type != 'g') awaits_member = true;
    at = w->need;
  }
}

static void put_octal(char *field, size_t cap, uint64_t value) {
  field[cap - 1] = 0;
  for (size_t i = cap - 1; i-- > 0; value >>= 3) field[i] = (char)('0' + (value & 7));
}

static void put_header(unsigned char *out, char type, const char *prefix, size_t prefix_len, const char *name,
                       size_t name_len, uint64_t nbytes, uint64_t mtime) {
  tar_header h = {.magic = "ustar", .version = {'0', '0'}, .typeflag = type};
  memcpy(h.prefix, prefix, prefix_len);
  memcpy(h.name, name, name_len);
  put_octal(h.mode, sizeof h.mode, 0644);
  put_octal(h.uid, sizeof h.uid, 0);
  put_octal(h.gid, sizeof h.gid, 0);
  put_octal(h.size, sizeof h.size, nbytes);
  put_octal(h.mtime, sizeof h.mtime, mtime);
  memset(h.chksum, ' ', sizeof h.chksum);
  put_octal(h.chksum, sizeof h.chksum - 1, byte_sum((const unsigned char *)&h));
  memcpy(out, &h, sizeof h);
}

static size_t put_decimal(char *out, uint64_t value) {
  char digits[20];
  size_t n = 0;
  do digits[n++] = (char)('0' + value % 10);
  while (value /= 10);
  for (size_t i = 0; i < n; i++) out[i] = digits[n - 1 - i];
  return n;
}

static size_t put_record(char *out, const char *key, const char *value, size_t value_len) {
  char digits[20];
  size_t rest = strlen(key) + value_len + 3, len = rest + 1; /* ' ', '=', newline */
  while (put_decimal(digits, len) + rest != len) len = put_decimal(digits, len) + rest;
  size_t n = put_decimal(out, len);
  out[n++] = ' ';
  memcpy(out + n, key, strlen(key)), n += strlen(key);
  out[n++] = '=';
  memcpy(out + n, value, value_len), n += value_len;
  out[n++] = '\n';
  return n;
}

/* Where ustar splits a long name: the slash that leaves 1..155 bytes before it and 1..100 behind. 0: nowhere. */
static size_t split_at(const char *name, size_t len) {
  for (size_t i = len > 101 ? len - 101 : 1; i + 1 < len && i <= 155; i++)
    if (name[i] == '/') return i;
  return 0;
}

size_t tar_format(unsigned char *out, size_t cap, const char *name, size_t name_len, uint64_t nbytes,
                  uint64_t mtime) {
  const uint64_t octal_max = (UINT64_C(1) << 33) - 1;
  if (!name_len || memchr(name, 0, name_len) || cap < tar_group_cap(name_len)) return 0;
  if (tar_group_cap(name_len) > TAR_GROUP_MAX || nbytes > NBYTES_MAX) return 0; /* tar_next would refuse it */
  if (mtime > octal_max) mtime = octal_max;
  /* Names are bytes here: UTF-8 goes into ustar as it is, as GNU tar writes and everybody reads it. */
  size_t cut = name_len > 100 ? split_at(name, name_len) : 0;
  bool fits = name_len <= 100 || cut;
  if (fits && nbytes <= octal_max) {
    size_t skip = cut ? cut + 1 : 0;
    put_header(out, '0', name, cut, name + skip, name_len - skip, nbytes, mtime);
    return TAR_BLOCK;
  }
  /* POSIX.1-2001: what ustar cannot say stands in an 'x' member; the final header keeps what it can hold. */
  char *text = (char *)out + TAR_BLOCK;
  size_t n = 0;
  char size[20];
  if (name_len > 100) n += put_record(text + n, "path", name, name_len); /* one that ustar could split, too */
  if (nbytes > octal_max) n += put_record(text + n, "size", size, put_decimal(size, nbytes));
  memset(text + n, 0, (size_t)tar_padded(n) - n);
  put_header(out, 'x', "", 0, "././@PaxHeader", 14, n, mtime);
  size_t at = TAR_BLOCK + (size_t)tar_padded(n);
  put_header(out + at, '0', "", 0, name, name_len > 100 ? 100 : name_len, nbytes > octal_max ? 0 : nbytes, mtime);
  return at + TAR_BLOCK;
}

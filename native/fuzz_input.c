#include "fuzz_input.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tar.h"

enum { NAME = 0, SIZE = 124, CHKSUM = 148, TYPE = 156, LINK = 157, MAGIC = 257, PREFIX = 345, SPARSE_MORE = 482 };

uint64_t rng_next(rng *r) {
  uint64_t z = r->state += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

size_t rng_below(rng *r, size_t n) { return (size_t)(rng_next(r) % n); }

static unsigned char *grow(bytes_vec *v, size_t n) {
  unsigned char *at = vec_grow(v, n);
  if (!at) abort();
  return memset(at, 0, n);
}

/* What stands in the checksum field of a block, wherever it came from. */
static void put_checksum(unsigned char *block) {
  unsigned sum = 0;
  memset(block + CHKSUM, ' ', 8);
  for (size_t i = 0; i < TAR_BLOCK; i++) sum += block[i];
  snprintf((char *)block + CHKSUM, 8, "%06o", sum & 0777777);
}

static void put_number(rng *r, unsigned char *field, uint64_t value) {
  char text[32];
  if (value >> 33 || one_in(r, 16)) {
    memset(field, 0, 12);
    for (size_t i = 0; i < 8; i++) field[11 - i] = (unsigned char)(value >> 8 * i);
    field[0] = 0x80;
  } else {
    snprintf(text, sizeof text, one_in(r, 16) ? "%11llo " : "%011llo", (unsigned long long)value);
    memcpy(field, text, 12);
  }
}

/* A header block at the end of v; at most 100 bytes of the name go in. Returns its place in v. */
static size_t put_header(rng *r, bytes_vec *v, char type, const char *name, size_t len, uint64_t size) {
  static const char magics[3][8] = {"ustar\0" "00", "ustar  ", ""};
  size_t at = v->len;
  unsigned char *h = grow(v, TAR_BLOCK);
  memcpy(h + NAME, name, len > 100 ? 100 : len);
  memcpy(h + 100, "0000644\0" "0000000\0" "0000000", 24);
  put_number(r, h + SIZE, size);
  memcpy(h + 136, "00000000000", 12);
  h[TYPE] = (unsigned char)type;
  memcpy(h + MAGIC, magics[one_in(r, 6) ? 1 + rng_below(r, 2) : 0], 8);
  if (one_in(r, 12)) memset(h + PREFIX, 'p', one_in(r, 3) ? 155 : 1 + rng_below(r, 20));
  put_checksum(h);
  return at;
}

static void put_payload(bytes_vec *v, const char *p, size_t n) {
  unsigned char *at = grow(v, (size_t)tar_padded(n));
  if (n) memcpy(at, p, n);
}

static void put_member(rng *r, bytes_vec *v, char type, const char *name, size_t len, size_t nbytes) {
  static const size_t edges[] = {0, 1, 511, 512, 513, 1024};
  char byte = (char)('A' + rng_below(r, 26));
  if (nbytes == SIZE_MAX) nbytes = one_in(r, 2) ? edges[rng_below(r, 6)] : rng_below(r, 1500);
  put_header(r, v, type, name, len, nbytes);
  unsigned char *at = grow(v, (size_t)tar_padded(nbytes));
  memset(at, byte, nbytes);
}

size_t make_name(rng *r, char *out, size_t cap) {
  static const char *const parts[] = {"a",   "b",   ".",         "/",  "..",  "__", "jpg",
                                      "cls", "JPG", "\xc3\xa9", "\n", "_x_", "d/", "\xff"};
  size_t n = 0, want = 1 + rng_below(r, 5);
  size_t repeat = one_in(r, 12) ? 1 + rng_below(r, 90) : 1;
  while (want-- > 0)
    for (size_t i = 0, k = rng_below(r, 14); i < repeat; i++) {
      size_t len = strlen(parts[k]);
      if (n + len > cap) return n ? n : 1;
      memcpy(out + n, parts[k], len);
      n += len;
    }
  return n;
}

static size_t put_record(char *out, const char *key, const char *value, size_t len) {
  size_t rest = strlen(key) + len + 3, total = rest + 1;
  char digits[32];
  while ((size_t)snprintf(digits, sizeof digits, "%zu", total) + rest != total) total++;
  size_t n = (size_t)sprintf(out, "%zu %s=", total, key);
  memcpy(out + n, value, len);
  out[n + len] = '\n';
  return total;
}

/* A PAX member with some records; *size: what a size record among them says, or SIZE_MAX. */
static void put_pax(rng *r, bytes_vec *v, char type, const char *name, size_t len, size_t *size) {
  static const char *const keys[] = {"comment", "mtime", "SCHILY.xattr.user.a", "GNU.sparse.major", "GNU.sparse.name",
                                     "linkpath", "size", "path"};
  static const char *const bad[] = {"0 \n", "1 ", "2 \n", "3 =\n", "3 a\n", "4 a=", "99 a=\n", "5 a=\n="};
  char text[2048], value[300];
  size_t n = 0, records = rng_below(r, 4);
  *size = SIZE_MAX;
  for (size_t i = 0; i < records; i++) {
    const char *key = keys[one_in(r, 4) ? rng_below(r, 8) : one_in(r, 3) ? 6 : rng_below(r, 3)];
    size_t used = make_name(r, value, sizeof value);
    if (type == 'g' && !one_in(r, 8)) key = keys[rng_below(r, 3)];
    if (strcmp(key, "size") == 0) used = (size_t)sprintf(value, "%zu", *size = rng_below(r, 1200));
    if (strcmp(key, "path") == 0 && len && !one_in(r, 4)) memcpy(value, name, used = len > 300 ? 300 : len);
    if (used && one_in(r, 24)) value[rng_below(r, used)] = "\0x\n"[rng_below(r, 3)];
    n += put_record(text + n, key, value, used);
  }
  if (one_in(r, 40)) n += (size_t)sprintf(text + n, "%s", bad[rng_below(r, 8)]);
  put_header(r, v, type, "././@PaxHeader", 14, n);
  put_payload(v, text, n);
}

/* An old GNU sparse member: its map goes on in blocks of its own. */
static void put_sparse(rng *r, bytes_vec *v, const char *name, size_t len) {
  size_t blocks = rng_below(r, 4), at = put_header(r, v, 'S', name, len, 512);
  v->data[at + SPARSE_MORE] = blocks > 0;
  put_checksum(v->data + at);
  for (size_t i = 0; i < blocks; i++) grow(v, TAR_BLOCK)[504] = i + 1 < blocks;
  grow(v, 512);
}

/* Something that is not a field, or a field in an unusual way. */
static void put_odd(rng *r, bytes_vec *v) {
  static const char types[] = "123456VMNX\0L";
  char name[400];
  size_t len = make_name(r, name, sizeof name), size = SIZE_MAX;
  switch (rng_below(r, 8)) {
  case 0: put_sparse(r, v, name, len); break;
  case 1:
  case 2: {
    put_pax(r, v, one_in(r, 4) ? 'X' : 'x', name, len, &size);
    size_t at = put_header(r, v, '0', name, len, size == SIZE_MAX ? 0 : rng_below(r, 2) * size);
    if (size != SIZE_MAX) memset(grow(v, (size_t)tar_padded(size)), 's', size);
    (void)at;
    break;
  }
  case 3: put_pax(r, v, 'g', name, len, &size); break;
  case 4:
    put_header(r, v, one_in(r, 4) ? 'K' : 'L', "././@LongLink", 13, len + 1);
    put_payload(v, name, len);
    if (len % TAR_BLOCK == 0) grow(v, TAR_BLOCK); /* its NUL */
    put_member(r, v, '0', name, len, SIZE_MAX);
    break;
  case 5: put_member(r, v, types[6 + rng_below(r, 6)], name, len, SIZE_MAX); break;
  case 6: put_header(r, v, types[rng_below(r, 6)], name, len, one_in(r, 4) ? 77 : 0); break;
  default: put_member(r, v, '0', name, len, SIZE_MAX);
  }
}

static void put_samples(rng *r, bytes_vec *v) {
  static const char *const exts[] = {"jpg", "cls", "seg.png", "JPG", "", "json", "__key__", "\xc3\xa9"};
  static const char *const folders[] = {"", "d/", "d.x/", "__m__/", "./"};
  char name[64];
  size_t samples = rng_below(r, 6), folder = one_in(r, 2) ? 0 : rng_below(r, 5);
  for (size_t i = 0; i < samples; i++) {
    size_t fields = 1 + rng_below(r, 3), first = one_in(r, 8) ? rng_below(r, 8) : rng_below(r, 2);
    size_t key = one_in(r, 24) ? 0 : i;
    for (size_t j = 0; j < fields; j++) {
      const char *ext = exts[(first + j) % (one_in(r, 40) ? 8 : 3)];
      int len = snprintf(name, sizeof name, "%s%zu.%s", folders[folder], key, ext);
      put_member(r, v, '0', name, (size_t)len, SIZE_MAX);
      if (one_in(r, 6)) put_odd(r, v);
    }
  }
}

static size_t some_block(rng *r, const bytes_vec *v) { return rng_below(r, v->len / TAR_BLOCK) * TAR_BLOCK; }

/* The start of a header group, or any block: most of what matters is in headers. */
static size_t some_header(rng *r, const bytes_vec *v) {
  size_t at = some_block(r, v);
  for (size_t i = 0; i < 8 && memcmp(v->data + at + MAGIC, "ustar", 5) != 0; i++) at = some_block(r, v);
  return at;
}

static void cut_out(bytes_vec *v, size_t at, size_t n) {
  if (n > v->len - at) n = v->len - at;
  memmove(v->data + at, v->data + at + n, v->len - at - n);
  v->len -= n;
}

static void put_in(bytes_vec *v, size_t at, const unsigned char *p, size_t n) {
  grow(v, n);
  memmove(v->data + at + n, v->data + at, v->len - at - n);
  memcpy(v->data + at, p, n);
}

static void mutate_field(rng *r, unsigned char *h) {
  static const char *const sizes[] = {"00000000000", "00000000777", "77777777777",
                                      "0000000000x", "-0000000001", "           ",
                                      "\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", "\x80\0\0\0\x40\0\0\0\0\0\0\1",
                                      "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "\x80\1\0\0\0\0\0\0\0\0\0\0"};
  static const char types[] = "01234567xgXLKSVMND\0";
  switch (rng_below(r, 7)) {
  case 0: memcpy(h + SIZE, sizes[rng_below(r, 10)], 12); break;
  case 1:
  case 2: h[TYPE] = (unsigned char)types[rng_below(r, sizeof types - 1)]; break;
  case 3: memset(h + NAME, 0, 100), make_name(r, (char *)h + NAME, 100); break;
  default: h[rng_below(r, TAR_BLOCK)] = (unsigned char)rng_next(r);
  }
}

static void mutate_text(rng *r, bytes_vec *v) { /* of a PAX header, if one is found */
  size_t at = some_block(r, v);
  for (size_t i = 0; i < 30 && !(v->data[at + TYPE] && strchr("xgX", v->data[at + TYPE])); i++) at = some_block(r, v);
  if (at + 2 * TAR_BLOCK > v->len) return;
  v->data[at + TAR_BLOCK + rng_below(r, 40)] = (unsigned char)"0123456789 =\n\0"[rng_below(r, 14)];
}

static void mutate(rng *r, bytes_vec *v) {
  unsigned char block[TAR_BLOCK] = {0};
  if (v->len < TAR_BLOCK) return;
  switch (rng_below(r, 12)) {
  case 0:
  case 1:
  case 2:
  case 3:
  case 4: mutate_field(r, v->data + some_header(r, v)); break;
  case 5: v->data[rng_below(r, v->len)] ^= (unsigned char)(1u << rng_below(r, 8)); break;
  case 6: mutate_text(r, v); break;
  case 7: cut_out(v, some_block(r, v), TAR_BLOCK * (1 + rng_below(r, 3))); break;
  case 8: put_in(v, some_block(r, v), block, TAR_BLOCK); break;
  case 9:
    memcpy(block, v->data + some_header(r, v), TAR_BLOCK);
    put_in(v, some_block(r, v), block, TAR_BLOCK);
    break;
  case 10: v->len = one_in(r, 2) ? some_block(r, v) : rng_below(r, v->len + 1); break;
  default:
    if (one_in(r, 2)) cut_out(v, rng_below(r, v->len), 1);
    else put_in(v, rng_below(r, v->len), block, 1);
  }
}

/* Where the parser stops at the checksum of something like a header, mend it, and see how far it comes then. */
static void repair(rng *r, bytes_vec *v) {
  tar_walker w = {0};
  tar_member m;
  for (int i = 0; i < 64 && w.pos < v->len; i++) {
    tar_status st = tar_next(&w, v->data + w.pos, v->len - (size_t)w.pos, &m);
    if (st == TAR_MEMBER) continue;
    if (st != TAR_ERROR || !strstr(w.reason, "checksum")) return;
    if (memcmp(v->data + w.at + MAGIC, "ustar", 5) != 0 && !one_in(r, 16)) return;
    put_checksum(v->data + w.at);
  }
}

/* A header group of about the most that is read, in one piece or many: below the limit or above it. */
static void put_huge(rng *r, bytes_vec *v) {
  static const char kinds[] = "xgLK";
  char type = kinds[rng_below(r, 4)];
  size_t want = TAR_GROUP_MAX - 4 * TAR_BLOCK + rng_below(r, 6 * TAR_BLOCK);
  size_t each = one_in(r, 2) ? want : 5000 + rng_below(r, want);
  for (size_t done = 0; done < want; done += each) {
    size_t n = want - done < each ? want - done : each;
    char *text = malloc(n + 100);
    if (!text) abort();
    memset(text, 'h', n + 100);
    if (type == 'x' || type == 'g') {
      char digits[16];
      int len = snprintf(digits, sizeof digits, "%zu c=", n);
      memcpy(text, digits, (size_t)len);
      text[n - 1] = '\n';
    }
    put_header(r, v, type, "huge", 4, n);
    put_payload(v, text, n);
    free(text);
  }
  put_member(r, v, '0', "h.jpg", 5, SIZE_MAX);
}

void make_input(rng *r, bytes_vec *v) {
  v->len = 0;
  put_samples(r, v);
  if (one_in(r, 2)) put_odd(r, v);
  if (one_in(r, 2500)) put_huge(r, v);
  if (!one_in(r, 16)) grow(v, 2 * TAR_BLOCK);
  if (one_in(r, 4)) grow(v, rng_below(r, 3000));
  if (one_in(r, 32)) put_samples(r, v);
  if (one_in(r, 4)) return;
  for (size_t n = 1 + rng_below(r, 4); n > 0; n--) mutate(r, v);
  if (!one_in(r, 8)) repair(r, v);
}

#include "scan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static tar_status stop(scan_result *r, scan_status status, const char *reason, uint64_t at) {
  *r = (scan_result){.status = status, .reason = reason, .at = at};
  return TAR_ERROR;
}

static tar_status stop_io(scan_result *r, int error) {
  *r = (scan_result){.status = SCAN_IO, .error = error};
  return TAR_ERROR;
}

tar_status scan_member(bio *b, tar_walker *w, tar_member *m, scan_result *r) {
  size_t need = TAR_BLOCK;
  w->pos = b->pos;
  for (;;) {
    const unsigned char *p;
    size_t avail;
    int error = bio_peek(b, need, &p, &avail);
    if (error) return stop_io(r, error);
    tar_status st = tar_next(w, p, avail, m);
    if (st == TAR_ERROR) return stop(r, SCAN_HEADER, w->reason, w->at);
    if (st == TAR_MORE && avail >= need && w->need > need) {
      need = w->need;
      continue;
    }
    if (st == TAR_MORE) {
      stop(r, SCAN_TRUNCATED, b->pos + avail ? "truncated: no end-of-archive marker" : "empty, not even an end marker",
           b->pos + avail);
      return TAR_MORE;
    }
    if (st == TAR_MEMBER && m->next > b->size) return stop(r, SCAN_TRUNCATED, "truncated in a member", b->size);
    b->pos = st == TAR_MEMBER ? m->offset : w->pos;
    return st;
  }
}

void scan_tail(bio *b, scan_result *r) {
  for (;;) {
    const unsigned char *p;
    size_t avail;
    int error = bio_peek(b, 1, &p, &avail);
    if (error) {
      stop_io(r, error);
      return;
    }
    if (!avail) return;
    size_t zeros = tar_zeros(p, avail);
    b->pos += zeros;
    if (zeros < avail) {
      stop(r, SCAN_TRAILING, "bytes after the end-of-archive marker", b->pos);
      return;
    }
  }
}

typedef struct {
  columns *c;
  seen_set seen;
  bytes_vec key, ext; /* of the open row; a field name in lower case */
} scanner;

static bool same_key(const scanner *s, const sample_name *n) {
  return s->c->nsamples && s->key.len == n->key_len && memcmp(s->key.data, n->key, n->key_len) == 0;
}

static bool set_text(bytes_vec *v, const char *text, size_t n) {
  v->len = 0;
  void *at = vec_grow(v, n);
  if (at && n) memcpy(at, text, n);
  return at != NULL;
}

/* These stand beside the fields in a sample. */
static bool is_reserved(const char *ext, size_t n) {
  static const char *const names[] = {"__key__", "__url__", "__local_path__"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (n == strlen(names[i]) && memcmp(ext, names[i], n) == 0) return true;
  return false;
}

static tar_status add_member(scanner *s, const tar_member *m, scan_result *r) {
  sample_name n;
  columns *c = s->c;
  if ((m->type != TAR_FILE && m->type != TAR_SPARSE) || !sample_split(m->name, m->name_len, &n)) return TAR_MEMBER;
  if (m->type == TAR_SPARSE) return stop(r, SCAN_SPARSE, "sparse member, which cannot be a field", m->header);
  if (!same_key(s, &n)) {
    uint64_t hash = sample_hash(n.key, n.key_len, 0);
    uint32_t ordinal;
    int fresh = seen_add(&s->seen, n.key, n.key_len, hash, &ordinal);
    if (fresh == 0) return stop(r, SCAN_INTERLEAVED, "a key comes back after other keys", m->header);
    if (fresh < 0 || !set_text(&s->key, n.key, n.key_len) || !columns_sample(c, n.key, n.key_len, hash, m->start))
      return stop_io(r, ENOMEM);
  }
  if (!set_text(&s->ext, n.ext, n.ext_len)) return stop_io(r, ENOMEM);
  c->lowered |= ascii_lower((char *)s->ext.data, n.ext, n.ext_len);
  if (is_reserved((char *)s->ext.data, n.ext_len))
    return stop(r, SCAN_DUPLICATE, "a field has the reserved name __key__, __url__ or __local_path__", m->header);
  if (columns_has(c, (char *)s->ext.data, n.ext_len))
    return stop(r, SCAN_DUPLICATE, "two members of a sample have one field", m->header);
  if (!columns_field(c, (char *)s->ext.data, n.ext_len, m->header, m->offset, m->nbytes)) return stop_io(r, ENOMEM);
  columns_end(c, m->next);
  return TAR_MEMBER;
}

scan_result scan_shard(bio *b, columns *c) {
  scan_result r = {SCAN_OK, 0, NULL, 0};
  scanner s = {.c = c};
  tar_walker w = {0};
  tar_member m;
  tar_status st;
  while ((st = scan_member(b, &w, &m, &r)) == TAR_MEMBER && (st = add_member(&s, &m, &r)) == TAR_MEMBER) {
    uint64_t skipped, want = m.next - b->pos;
    int error = bio_skip(b, want, &skipped);
    c->nmembers++;
    if (error) stop_io(&r, error);
    else if (skipped < want) stop(&r, SCAN_TRUNCATED, "truncated in a member", b->pos);
    if (r.status) break;
  }
  if (st == TAR_END) scan_tail(b, &r);
  seen_free(&s.seen);
  free(s.key.data);
  free(s.ext.data);
  return r;
}

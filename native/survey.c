#include "survey.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { BUFFER = 2 << 20, AHEAD = 64 << 10, TAIL_MOST = 1 << 20, SUM_AT = 148, SUM_LEN = 8, TRIES_LEAST = 64 << 20,
       SEARCH_QUICK = 8 << 20 };
#define NOWHERE UINT64_MAX
#define STEPS_MOST (UINT64_C(4) << 20) /* headers that are followed out of payloads, in all of a shard */

/* Bytes of the shard from any position on; of a bio that cannot jump, only forward. */
typedef struct {
  bio *b;
  unsigned char *buf; /* of a bio that cannot jump: bytes [buf_pos, buf_pos + len) */
  size_t len;
  uint64_t buf_pos, end; /* end: of the shard, once it is known */
} view;

typedef struct {
  survey *s;
  view v, chain; /* chain: a window of its own for following headers out of a payload */
  bio chain_bio;
  file_window chain_window;
  seen_set exts;
  uint64_t *visited; /* 0: free */
  size_t visited_cap, visited_used;
  uint64_t steps;  /* headers followed out of payloads */
  uint64_t tried, searched; /* bytes looked at for header groups that were none; bytes searched */
  uint64_t barred; /* a header here belongs to an extension header that is damaged: its name is not known */
  /* The last member, if nothing stands between it and where we are. */
  bool has_last;
  uint64_t last_start, last_offset, last_nbytes, last_next;
  bytes_vec lower; /* a field name */
} surveyor;

static int fill(view *v, uint64_t pos, size_t need) {
  uint64_t have = v->buf_pos + v->len;
  if (pos < v->buf_pos) return EINVAL;
  if (pos >= have) {
    uint64_t skipped;
    int error = bio_skip(v->b, pos - have, &skipped);
    if (error) return error;
    if (skipped < pos - have) v->end = have + skipped;
    v->buf_pos = have + skipped, v->len = 0;
  } else if (pos > v->buf_pos) {
    v->len -= (size_t)(pos - v->buf_pos);
    memmove(v->buf, v->buf + (pos - v->buf_pos), v->len);
    v->buf_pos = pos;
  }
  if (v->end != NOWHERE) return 0;
  size_t want = need + AHEAD - v->len, copied;
  if (want > BUFFER - v->len) want = BUFFER - v->len;
  int error = bio_copy(v->b, v->buf + v->len, want, &copied);
  v->len += copied;
  if (!error && copied < want) v->end = v->buf_pos + v->len;
  return error;
}

/* At least need bytes at pos, fewer only at the end. */
static int look(view *v, uint64_t pos, size_t need, const unsigned char **p, size_t *avail) {
  *p = NULL, *avail = 0;
  if (v->end != NOWHERE && pos >= v->end) return 0;
  if (v->b->random) {
    v->b->pos = pos;
    return bio_peek(v->b, need, p, avail);
  }
  if (pos < v->buf_pos || pos + need > v->buf_pos + v->len) {
    int error = fill(v, pos, need);
    if (error) return error;
  }
  if (pos < v->buf_pos || pos >= v->buf_pos + v->len) return 0;
  *p = v->buf + (pos - v->buf_pos);
  *avail = v->len - (size_t)(pos - v->buf_pos);
  return 0;
}

/* The header group at pos; *looked: the bytes that it took to tell. TAR_MORE: the shard ends in it. */
static int group_at(view *v, uint64_t pos, tar_walker *w, tar_member *m, tar_status *st, size_t *looked) {
  size_t need = TAR_BLOCK;
  for (;;) {
    const unsigned char *p;
    size_t avail;
    int error = look(v, pos, need, &p, &avail);
    if (error) return error;
    *w = (tar_walker){.pos = pos};
    *st = tar_next(w, p, avail, m);
    *looked = need;
    if (*st != TAR_MORE || avail < need || w->need <= need) return 0;
    need = w->need;
  }
}

/* The end of the zeros from pos on; at most `most` of them. */
static int zeros_from(view *v, uint64_t pos, uint64_t most, uint64_t *end) {
  uint64_t at = pos;
  for (;;) {
    const unsigned char *p;
    size_t avail;
    int error = look(v, at, 1, &p, &avail);
    if (error) return error;
    size_t zeros = avail ? tar_zeros(p, avail) : 0;
    at += zeros;
    if (zeros < avail || !avail || at - pos >= most) break;
  }
  *end = at;
  return 0;
}

static bool octal(const unsigned char *p, uint32_t *value) {
  size_t i = 0;
  uint32_t n = 0;
  while (i < SUM_LEN && p[i] == ' ') i++;
  for (; i < SUM_LEN && p[i] >= '0' && p[i] <= '7'; i++) n = n << 3 | (uint32_t)(p[i] - '0');
  while (i < SUM_LEN && p[i] == ' ') i++;
  *value = n;
  return i == SUM_LEN || !p[i];
}

/* The first offset in p[0, n) at which 512 bytes have the checksum of a header, or n. There are n + 511 bytes. */
static size_t find_sum(const unsigned char *p, size_t n) {
  uint32_t sum = 0, want;
  for (size_t i = 0; i < TAR_BLOCK - 1; i++) sum += p[i];
  for (size_t i = 0; i < n; sum -= p[i++]) {
    sum += p[i + TAR_BLOCK - 1];
    const unsigned char *field = p + i + SUM_AT;
    if ((field[0] & 0xF8) != '0' && field[0] != ' ') continue;
    if (!octal(field, &want) || !want) continue;
    uint32_t own = 0;
    for (size_t k = 0; k < SUM_LEN; k++) own += field[k];
    if (want == sum - own + SUM_LEN * ' ') return i;
  }
  return n;
}

/* The first position in [from, until) with the checksum of a header, or NOWHERE. */
static int next_sum(surveyor *z, uint64_t from, uint64_t until, uint64_t *found) {
  *found = NOWHERE;
  while (from < until) {
    const unsigned char *p;
    size_t avail;
    int error = look(&z->v, from, 2 * TAR_BLOCK, &p, &avail);
    if (error) return error;
    if (avail < TAR_BLOCK) return 0;
    size_t n = avail - TAR_BLOCK + 1;
    if (n > until - from) n = (size_t)(until - from);
    size_t at = find_sum(p, n);
    z->searched += at;
    if (at < n) {
      *found = from + at;
      return 0;
    }
    from += n;
  }
  return 0;
}

/* An extension header at `at` of a group that is broken: what follows its text would be read under another name. */
static int bar_behind(surveyor *z, uint64_t at) {
  const unsigned char *p;
  size_t avail;
  uint64_t size;
  char type;
  int error = look(&z->v, at, TAR_BLOCK, &p, &avail);
  if (error || avail < TAR_BLOCK || !tar_is_header(p, &type, &size)) return error;
  if (type && strchr("xXLK", type) && size <= TAR_GROUP_MAX) z->barred = at + TAR_BLOCK + tar_padded(size);
  return 0;
}

static bool is_extension(surveyor *z, uint64_t at) {
  const unsigned char *p;
  size_t avail;
  return !look(&z->v, at, TAR_BLOCK, &p, &avail) && avail >= TAR_BLOCK && p[156] && strchr("xXgLK", p[156]);
}

/* The next member from pos on, at any byte; NOWHERE: there is none. */
static int search(surveyor *z, uint64_t pos, uint64_t *found) {
  tar_walker w;
  tar_member m;
  tar_status st;
  size_t looked;
  for (;; pos = *found + 1) {
    int error = next_sum(z, pos, NOWHERE, found);
    if (error || *found == NOWHERE) return error;
    if (*found == z->barred) continue;
    /* Headers that claim long texts must not make us read the shard again and again. */
    if (z->tried > 8 * z->searched + TRIES_LEAST && is_extension(z, *found)) continue;
    if ((error = group_at(&z->v, *found, &w, &m, &st, &looked))) return error;
    if (st == TAR_MEMBER) return 0;
    z->tried += looked;
    if (st == TAR_ERROR && (error = bar_behind(z, w.at))) return error;
  }
}

static size_t slot_of(const uint64_t *slots, size_t cap, uint64_t pos) {
  size_t i = (size_t)(pos * UINT64_C(0x9E3779B97F4A7C15) >> 20) & (cap - 1);
  while (slots[i] && slots[i] != pos + 1) i = (i + 1) & (cap - 1);
  return i;
}

/* 1: new; 0: was there; -1: no memory. */
static int visit(surveyor *z, uint64_t pos) {
  if (z->visited_used * 2 >= z->visited_cap) {
    size_t cap = z->visited_cap ? z->visited_cap * 2 : 1024;
    uint64_t *slots = calloc(cap, sizeof *slots);
    if (!slots) return -1;
    for (size_t i = 0; i < z->visited_cap; i++)
      if (z->visited[i]) slots[slot_of(slots, cap, z->visited[i] - 1)] = z->visited[i];
    free(z->visited);
    z->visited = slots, z->visited_cap = cap;
  }
  size_t i = slot_of(z->visited, z->visited_cap, pos);
  if (z->visited[i]) return 0;
  z->visited[i] = pos + 1;
  z->visited_used++;
  return 1;
}

/* Whether there is nothing but zeros from pos to the end of the shard, and 1024 at least. */
static int is_tail(surveyor *z, uint64_t pos, bool *yes) {
  uint64_t end;
  *yes = false;
  if (z->v.end - pos > TAIL_MOST || z->v.end - pos < 2 * TAR_BLOCK) return 0;
  int error = zeros_from(&z->chain, pos, TAIL_MOST, &end);
  if (error) return error;
  z->steps += (end - pos) >> 12;
  *yes = end == z->v.end;
  return 0;
}

/* Follow the members from pos on. *yes: they lead past `limit`, to a header or the end of the shard; with `tail`, or to
 * the end of the shard before it. *over: to the end or to where another chain has been. */
static int follow(surveyor *z, uint64_t pos, uint64_t limit, bool tail, bool *yes) {
  tar_walker w;
  tar_member m;
  tar_status st;
  size_t looked;
  *yes = false;
  while (z->steps++ < STEPS_MOST) {
    int fresh = pos < limit ? visit(z, pos) : 1;
    if (fresh < 0) return ENOMEM;
    if (!fresh) return 0;
    int error = group_at(&z->chain, pos, &w, &m, &st, &looked);
    if (error) return error;
    z->steps += looked >> 12;
    if (st == TAR_END && (tail || pos >= limit)) return is_tail(z, pos, yes);
    if (st != TAR_MEMBER) return 0;
    if (pos >= limit) {
      *yes = true;
      return 0;
    }
    pos = m.next;
  }
  return 0;
}

/* Where in the payload of the last member the next one begins, because bytes were lost there; NOWHERE: it does not. */
static int search_inside(surveyor *z, uint64_t limit, bool tail, uint64_t *found) {
  bool yes = false;
  int error = 0;
  uint64_t from = z->last_offset;
  *found = NOWHERE;
  if (!z->v.b->random || !z->has_last || limit <= from) return 0;
  z->visited_used = 0;
  if (z->visited) memset(z->visited, 0, z->visited_cap * sizeof *z->visited);
  if (tail) error = follow(z, from, limit, false, &yes); /* a tar that is the payload: none of its members count */
  while (!error && z->steps < STEPS_MOST) {
    if ((error = next_sum(z, from, limit, found)) || *found == NOWHERE) break;
    if ((error = follow(z, *found, limit, tail, &yes)) || yes) return error;
    from = *found + 1;
  }
  *found = NOWHERE;
  return error;
}

static bool put64(bytes_vec *v, uint64_t value) {
  void *at = vec_grow(v, sizeof value);
  if (at) memcpy(at, &value, sizeof value);
  return at != NULL;
}

static bool put32(bytes_vec *v, uint32_t value) {
  void *at = vec_grow(v, sizeof value);
  if (at) memcpy(at, &value, sizeof value);
  return at != NULL;
}

static bool put_text(bytes_vec *v, const char *text, size_t n) {
  void *at = vec_grow(v, n);
  if (at && n) memcpy(at, text, n);
  return at != NULL;
}

static bool ext_is(const survey *s, size_t code, const void *ext, size_t len) {
  const uint64_t *ends = (const void *)s->ext_ends.data;
  size_t from = code ? (size_t)ends[code - 1] : 0;
  return ends[code] - from == len && memcmp(s->exts.data + from, ext, len) == 0;
}

/* Codes come in the order of the last sample: the successor of the last one is tried first. */
static bool put_ext(surveyor *z, const char *ext, size_t len) {
  survey *s = z->s;
  size_t n = s->ext_ends.len / 8, code = s->next_ext < n ? s->next_ext : 0;
  z->lower.len = 0;
  if (!vec_grow(&z->lower, len)) return false;
  ascii_lower((char *)z->lower.data, ext, len);
  const char *text = (const char *)z->lower.data;
  if (!n || !ext_is(s, code, text, len)) {
    uint32_t ordinal;
    int fresh = seen_add(&z->exts, text, len, sample_hash(text, len, 0), &ordinal);
    if (fresh < 0) return false;
    code = fresh ? n : ordinal;
    if (fresh && !(put_text(&s->exts, text, len) && put64(&s->ext_ends, s->exts.len))) return false;
  }
  s->next_ext = code + 1;
  return put32(&s->codes, (uint32_t)code);
}

static void count_pax(survey *s, const tar_member *m) {
  unsigned char scratch[8 * TAR_BLOCK];
  uint64_t has = m->header + TAR_BLOCK - m->start, need = TAR_BLOCK;
  if (m->type != TAR_FILE || m->start == m->header) return;
  if (m->name_len > 100 || m->nbytes >> 33) need = tar_format(scratch, sizeof scratch, m->name, m->name_len, m->nbytes, 0);
  if (!need || need >= has) return;
  s->pax_members++;
  s->pax_bytes += has - need;
}

static bool put_member(surveyor *z, const tar_member *m) {
  survey *s = z->s;
  sample_name n;
  bool field = (m->type == TAR_FILE || m->type == TAR_SPARSE) && sample_split(m->name, m->name_len, &n);
  char type = (char)m->type, flags = 0;
  s->nmembers++;
  count_pax(s, m);
  z->has_last = true;
  z->last_start = m->start, z->last_offset = m->offset, z->last_nbytes = m->nbytes, z->last_next = m->next;
  if (!put_text(&s->names, m->name, m->name_len) || !put64(&s->name_ends, s->names.len) || !put_text(&s->types, &type, 1) ||
      !put_text(&s->flags, &flags, 1) || !put64(&s->starts, m->start) || !put64(&s->headers, m->header) ||
      !put64(&s->offsets, m->offset) || !put64(&s->nbytes, m->nbytes) ||
      !put32(&s->key_lens, field ? (uint32_t)n.key_len : UINT32_MAX) ||
      !put64(&s->hashes, field ? sample_hash(n.key, n.key_len, 0) : 0))
    return false;
  return field ? put_ext(z, n.ext, n.ext_len) : put32(&s->codes, UINT32_MAX);
}

static void flag_last(surveyor *z, unsigned char flag) { z->s->flags.data[z->s->nmembers - 1] |= flag; }

static bool mark(surveyor *z, mark_kind kind, uint64_t from, uint64_t at, uint64_t end, const char *reason) {
  survey_mark item = {kind, from, at, end, z->s->nmembers, reason};
  void *to = vec_grow(&z->s->marks, sizeof item);
  if (to) memcpy(to, &item, sizeof item);
  z->has_last = false;
  return to != NULL;
}

/* Look at what pads the last member's payload. */
static int check_padding(surveyor *z) {
  size_t used = z->last_nbytes % TAR_BLOCK, avail;
  const unsigned char *p;
  if (!used) return 0;
  int error = look(&z->v, z->last_offset + z->last_nbytes - used, TAR_BLOCK, &p, &avail);
  if (error || avail <= used) return error;
  size_t n = (avail < TAR_BLOCK ? avail : TAR_BLOCK) - used, zeros = tar_zeros(p + used, n);
  if (zeros < n) flag_last(z, zeros < PADDING_LOOK ? MEMBER_PADDING : MEMBER_LITTER);
  return 0;
}

/* The next member begins at found, inside of the last one, or nowhere in it. 1: inside; 0: not; -1: error. */
static int shifted(surveyor *z, uint64_t limit, bool tail, uint64_t *pos, int *error) {
  uint64_t found;
  if ((*error = search_inside(z, limit, tail, &found))) return -1;
  if (found == NOWHERE) return 0;
  flag_last(z, MEMBER_CUT);
  if (!mark(z, MARK_SHIFT, z->last_start, z->last_start, found, NULL)) *error = ENOMEM;
  *pos = found;
  return *error ? -1 : 1;
}

/* The shard ends at z->v.end without an end marker, maybe in the last member. 1: it goes on at *pos after all. */
static int at_end(surveyor *z, uint64_t *pos, int *error, const char *reason) {
  uint64_t end = z->v.end;
  if (z->has_last && z->last_next > end) {
    int inside = shifted(z, end, true, pos, error);
    if (inside) return inside;
    if (z->last_offset + z->last_nbytes > end) flag_last(z, MEMBER_CUT);
    reason = "truncated in a member";
  }
  if (!mark(z, MARK_TRUNCATED, end, end, end, reason)) *error = ENOMEM;
  return *error ? -1 : 0;
}

/* Whether the last members may lie within the last one that was found: bytes were lost in its payload, and it ends in
 * the zeros behind them. Without a sign of that, only what is quick is searched. */
static bool is_doubtful(const surveyor *z) {
  if (!z->has_last) return false;
  return z->last_nbytes <= SEARCH_QUICK || z->v.end % TAR_BLOCK || z->s->flags.data[z->s->nmembers - 1] & MEMBER_PADDING;
}

/* Zeros at *pos. 1: the shard goes on behind them at *pos; 0: it ends here; -1: error. */
static int at_zeros(surveyor *z, uint64_t *pos, int *error) {
  uint64_t from = *pos, end, found;
  const unsigned char *p;
  size_t avail;
  if ((*error = zeros_from(&z->v, from, NOWHERE, &end)) || (*error = look(&z->v, end, 1, &p, &avail))) return -1;
  bool marker = end - from >= 2 * TAR_BLOCK;
  if (!avail) {
    if (end < z->v.end) z->v.end = end;
    if (!marker) return at_end(z, pos, error, "truncated in the end-of-archive marker");
    return is_doubtful(z) ? shifted(z, from, true, pos, error) : 0;
  }
  int inside = shifted(z, from, false, pos, error);
  if (inside) return inside;
  if ((*error = search(z, end, &found))) return -1;
  uint64_t stop = found == NOWHERE ? z->v.end : found;
  bool good = marker ? mark(z, MARK_END, from, from, end, NULL) && (stop == end || mark(z, MARK_TRAILING, end, end, stop, NULL))
              : end - from == TAR_BLOCK && stop == end ? mark(z, MARK_LONE, from, from, end, NULL)
                                                       : mark(z, MARK_ZEROS, from, from, stop, NULL);
  if (good && !marker && found == NOWHERE) good = mark(z, MARK_TRUNCATED, stop, stop, stop, "no end-of-archive marker");
  if (!good) *error = ENOMEM;
  *pos = found;
  return *error ? -1 : found != NOWHERE;
}

/* A bad header at *pos. Returns as at_zeros does. */
static int at_damage(surveyor *z, uint64_t *pos, int *error, uint64_t at, const char *reason) {
  uint64_t from = *pos, found;
  int inside = shifted(z, from, false, pos, error);
  if (inside) return inside;
  if ((*error = bar_behind(z, at)) || (*error = search(z, from + 1, &found))) return -1;
  uint64_t stop = found == NOWHERE ? z->v.end : found;
  bool good = mark(z, MARK_DAMAGE, from, at, stop, reason), ended = false;
  if (found == NOWHERE && z->v.b->random && stop - from > 2 * TAR_BLOCK) *error = is_tail(z, stop - 2 * TAR_BLOCK, &ended);
  if (*error) return -1;
  if (good && found == NOWHERE && !ended) good = mark(z, MARK_TRUNCATED, stop, stop, stop, "no end-of-archive marker");
  if (!good) *error = ENOMEM;
  *pos = found;
  return *error ? -1 : found != NOWHERE;
}

static int walk(surveyor *z) {
  uint64_t pos = 0;
  int goes_on = 1, error = 0;
  while (goes_on > 0 && !error) {
    tar_walker w;
    tar_member m;
    tar_status st;
    size_t looked, avail;
    const unsigned char *p;
    if ((error = group_at(&z->v, pos, &w, &m, &st, &looked))) break;
    if (st == TAR_MEMBER) {
      if (!put_member(z, &m)) error = ENOMEM;
      else if ((error = check_padding(z))) break;
      pos = m.next;
      continue;
    }
    if ((error = look(&z->v, pos, TAR_BLOCK, &p, &avail))) break;
    if (!avail) goes_on = at_end(z, &pos, &error, pos ? "no end-of-archive marker" : "empty, not even an end marker");
    else if (tar_zeros(p, avail < TAR_BLOCK ? avail : TAR_BLOCK) == (avail < TAR_BLOCK ? avail : TAR_BLOCK))
      goes_on = at_zeros(z, &pos, &error);
    else goes_on = at_damage(z, &pos, &error, st == TAR_ERROR ? w.at : pos, st == TAR_ERROR ? w.reason : "truncated in a header");
  }
  return error;
}

int survey_shard(bio *b, survey *s) {
  surveyor z = {.s = s, .barred = NOWHERE};
  z.v = (view){.b = b, .end = b->random ? b->size : NOWHERE};
  bool ready = b->random ? bio_open_window(&z.chain_bio, &z.chain_window, ((file_window *)b->owner)->fd, b->size)
                         : (z.v.buf = malloc(BUFFER)) != NULL;
  z.chain = (view){.b = &z.chain_bio, .end = z.v.end};
  int error = ready ? walk(&z) : ENOMEM;
  s->nbytes_total = z.v.end == NOWHERE ? 0 : z.v.end;
  if (b->random) bio_close_window(&z.chain_bio, &z.chain_window);
  free(z.v.buf);
  free(z.visited);
  free(z.lower.data);
  seen_free(&z.exts);
  return error;
}

void survey_free(survey *s) {
  bytes_vec *all[] = {&s->names, &s->name_ends, &s->types,  &s->flags, &s->starts, &s->headers,  &s->offsets,
                      &s->nbytes, &s->key_lens, &s->hashes, &s->codes, &s->exts,   &s->ext_ends, &s->marks};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]->data);
  *s = (survey){0};
}

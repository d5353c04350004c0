/* fuzz_tar.c: what must hold of any bytes at all: tar.c, sample.c, scan.c and blockio.c against naive models.
 *
 *   fuzz_tar N SEED [FILE...]   check the files, then N random tars (fuzz_input.h); the same for the same seed
 *
 * What fails is left in crash-SEED-NUMBER, and `fuzz_tar 0 SEED crash-SEED-NUMBER` checks it again. There is no main
 * with -DWDS_LIBFUZZER: libFuzzer makes the inputs. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz_input.h"
#include "fuzz_model.h"
#include "survey.h"

static struct {
  uint64_t inputs, members[128], samples, scans[SCAN_SPARSE + 1], groups, formats;
  struct { const char *reason; uint64_t count; } reasons[32];
} stats;

static struct { /* of the input in hand, for whoever reports a failure */
  const unsigned char *data;
  size_t len;
  uint64_t seed, number;
} now;

static void leave_crash(void) {
  char path[80];
  int fd;
  if (!now.data) return;
  snprintf(path, sizeof path, "crash-%llu-%llu", (unsigned long long)now.seed, (unsigned long long)now.number);
  if ((fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644)) < 0) return;
  if (write_full(fd, now.data, now.len) >= 0) fprintf(stderr, "\nfuzz_tar: input left in %s\n", path);
  close(fd);
  now.data = NULL;
}

void fuzz_fail(const char *file, int line, const char *what) {
  fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, what);
  leave_crash();
  abort();
}

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define HIDE(p, n) __asan_poison_memory_region(p, n)
#define SHOW(p, n) __asan_unpoison_memory_region(p, n)
static void watch(void) { __sanitizer_set_death_callback(leave_crash); }
#else
#define HIDE(p, n) ((void)(p), (void)(n))
#define SHOW(p, n) ((void)(p), (void)(n))
static void on_signal(int number) {
  leave_crash();
  signal(number, SIG_DFL);
  raise(number);
}
static void watch(void) { signal(SIGSEGV, on_signal), signal(SIGBUS, on_signal), signal(SIGFPE, on_signal); }
#endif

static void count_reason(const char *reason) {
  for (size_t i = 0; i < sizeof stats.reasons / sizeof *stats.reasons; i++) {
    if (!stats.reasons[i].reason) stats.reasons[i].reason = reason;
    if (strcmp(stats.reasons[i].reason, reason) != 0) continue;
    stats.reasons[i].count++;
    return;
  }
}

static bool inside(const void *p, size_t n, const void *from, size_t len) {
  uintptr_t a = (uintptr_t)p, b = (uintptr_t)from;
  return a >= b && a - b <= len && n <= len - (a - b);
}

/* Names may point into the struct that was given to tar_next: into the copy of it, then. */
static void keep(seen_member *to, const tar_member *m) {
  to->m = *m;
  if (m->name == m->name_buf) to->m.name = to->m.name_buf;
  if (m->link == m->link_buf) to->m.link = to->m.link_buf;
}

/* A group, with no byte more in sight than tar_next has asked for, or than some steps of our own. */
static void check_group(const unsigned char *buf, size_t n, const tar_walker *want, tar_status status,
                        const tar_member *m, uint64_t pos, size_t step) {
  tar_walker w = {.pos = pos};
  tar_member got;
  size_t have = 0;
  for (;;) {
    HIDE(buf + have, n - have);
    tar_status st = tar_next(&w, buf, have, &got);
    SHOW(buf + have, n - have);
    if (st != TAR_MORE || have == n) {
      CHECK(st == status);
      break;
    }
    CHECK(w.pos == pos && w.need > have && w.need <= TAR_GROUP_MAX);
    have = step ? have + step : w.need;
    if (have > n) have = n;
  }
  if (status == TAR_MEMBER || status == TAR_END) CHECK(w.pos == want->pos);
  if (status == TAR_ERROR) CHECK(w.at == want->at && w.reason == want->reason);
  if (status == TAR_MORE) CHECK(w.need == want->need && w.need > n);
  if (status != TAR_MEMBER) return;
  CHECK(got.start == m->start && got.header == m->header && got.offset == m->offset && got.nbytes == m->nbytes);
  CHECK(got.next == m->next && got.type == m->type);
  CHECK(same_text(got.name, got.name_len, m->name, m->name_len));
  CHECK(same_text(got.link, got.link_len, m->link, m->link_len));
}

static void check_member(const tar_walker *w, const tar_member *m, uint64_t pos, const unsigned char *buf, size_t n) {
  CHECK(m->start == pos && m->header >= pos && (m->header - pos) % TAR_BLOCK == 0);
  CHECK(m->offset >= m->header + TAR_BLOCK && m->offset - pos <= TAR_GROUP_MAX && m->offset - pos <= n);
  CHECK(m->nbytes <= UINT64_C(1) << 62 && m->next == m->offset + tar_padded(m->nbytes) && w->pos == m->next);
  CHECK(m->next % TAR_BLOCK == 0 && m->next > pos);
  CHECK(inside(m->name, m->name_len, buf, n) || inside(m->name, m->name_len, m->name_buf, sizeof m->name_buf));
  CHECK(inside(m->link, m->link_len, buf, n) || inside(m->link, m->link_len, m->link_buf, sizeof m->link_buf));
  CHECK(!memchr(m->name, 0, m->name_len) && !memchr(m->link, 0, m->link_len));
  if (m->type != TAR_FILE && m->type != TAR_SPARSE && m->type != TAR_OTHER) CHECK(m->nbytes == 0);
  CHECK(strchr("fdshvSo", m->type));
  stats.members[(int)m->type]++;
}

static void check_name(const char *name, size_t len) {
  char *copy = must(malloc(len ? len : 1)); /* what lies behind it is out of bounds */
  sample_name n;
  memcpy(copy, name, len);
  if (sample_split(copy, len, &n)) {
    CHECK(n.key == copy && n.key_len > 0 && n.key_len < len && copy[n.key_len] == '.');
    CHECK(n.ext == copy + n.key_len + 1 && n.key_len + 1 + n.ext_len == len);
    CHECK(!memchr(n.ext, '/', n.ext_len));
    for (size_t i = n.key_len; i > 0 && copy[i - 1] != '/'; i--) CHECK(copy[i - 1] != '.');
  }
  free(copy);
}

static void walk_whole(whole_walk *t, rng *r) {
  tar_walker w = {0};
  tar_member m;
  for (;;) {
    uint64_t pos = w.pos;
    const unsigned char *buf = t->data + pos;
    size_t n = t->len - (size_t)pos;
    t->end = tar_next(&w, buf, n, &m);
    stats.groups++;
    check_group(buf, n, &w, t->end, &m, pos, 0);
    if (one_in(r, 4) && n < 65536) check_group(buf, n, &w, t->end, &m, pos, 64 + rng_below(r, 600));
    t->pos = w.pos, t->at = w.at, t->reason = w.reason;
    if (t->end == TAR_ERROR) CHECK(w.at >= pos && w.at - pos < n && (w.at - pos) % TAR_BLOCK == 0 && w.reason);
    if (t->end != TAR_MEMBER) break;
    check_member(&w, &m, pos, buf, n);
    check_name(m.name, m.name_len);
    if (t->count == t->cap) {
      t->members = must(reallocarray(t->members, t->cap = t->cap * 2 + 16, sizeof *t->members));
      for (size_t i = 0; i < t->count; i++) { /* they have moved */
        seen_member copy = t->members[i];
        if (!inside(copy.m.name, copy.m.name_len, t->data, t->len)) t->members[i].m.name = t->members[i].m.name_buf;
        if (!inside(copy.m.link, copy.m.link_len, t->data, t->len)) t->members[i].m.link = t->members[i].m.link_buf;
      }
    }
    seen_member *s = &t->members[t->count++];
    keep(s, &m);
    s->late = m.next > t->len;
    if (s->late) return;
  }
  if (t->end == TAR_END) CHECK(t->pos <= t->len && tar_zeros(t->data + t->pos - 1024, 1024) == 1024);
}

/* ---- ways for the bytes to come: blocks of some sizes, a window over a file, a thread */

typedef struct {
  block b;
  const whole_walk *t;
  size_t most;
  rng r;
} dribble;

/* The next 1..most bytes in memory of their own, so that nobody reads on in a block that is gone. */
static int dribble_more(bio *b) {
  dribble *d = b->owner;
  size_t left = d->t->len - (size_t)b->pos, n = 1 + rng_below(&d->r, d->most);
  if (n > left) n = left;
  free(d->b.data);
  d->b = (block){must(malloc(n ? n : 1)), n, n};
  memcpy(d->b.data, d->t->data + b->pos, n);
  b->cur = &d->b, b->cur_pos = b->pos;
  return 0;
}

static void scan_dribble(const whole_walk *t, const model *want, rng *r, bool sized) {
  dribble d = {.t = t, .most = one_in(r, 200) ? 1 + rng_below(r, 8) : 64 + rng_below(r, 4000), .r = {rng_next(r)}};
  bio b = {.more = dribble_more, .owner = &d, .size = sized ? t->len : UINT64_MAX};
  columns c = {0};
  scan_result got = scan_shard(&b, &c);
  model_compare(want, &c, &got);
  stats.samples += got.status ? 0 : c.nsamples;
  stats.scans[got.status]++;
  columns_free(&c);
  bio_free(&b);
  free(d.b.data);
}

static int file_of(const unsigned char *data, size_t len) {
  int fd = memfd_create("fuzz", MFD_CLOEXEC);
  CHECK(fd >= 0 && write_full(fd, data, len) == (ssize_t)len);
  return fd;
}

static void scan_file(const whole_walk *t, const model *want) {
  int fd = file_of(t->data, t->len);
  file_window window;
  bio b;
  columns c = {0};
  CHECK(bio_open_window(&b, &window, fd, t->len));
  scan_result got = scan_shard(&b, &c);
  model_compare(want, &c, &got);
  columns_free(&c);
  bio_close_window(&b, &window);
  close(fd);
}

/* A flusher writes the bytes in pieces, a prefetch reads them back. */
static void check_threads(const whole_walk *t, rng *r) {
  int fd = memfd_create("fuzz", MFD_CLOEXEC);
  flusher *f = must(flusher_start(fd));
  block pieces[2] = {{0}}, blocks[PREFETCH_DEPTH] = {{0}}, *full;
  size_t at = 0, given = 0;
  for (size_t i = 0; at < t->len; i ^= 1) {
    size_t n = 1 + rng_below(r, t->len - at);
    pieces[i] = (block){(unsigned char *)t->data + at, n, n};
    CHECK(!flusher_submit(f, &pieces[i]));
    at += n;
  }
  CHECK(!flusher_submit(f, NULL));
  flusher_stop(f);
  at = rng_below(r, t->len + 1);
  prefetch *p = must(prefetch_start(fd, true, at));
  for (size_t i = 0, cap = 1 + rng_below(r, 4000); i < PREFETCH_DEPTH; i++)
    blocks[i] = (block){must(malloc(cap)), 0, cap};
  for (;;) {
    while (given < PREFETCH_DEPTH - 1) prefetch_give(p, &blocks[given++]);
    int error = prefetch_take(p, &full);
    if (error == PREFETCH_WAIT) continue;
    CHECK(!error && full && full->len <= t->len - at && memcmp(full->data, t->data + at, full->len) == 0);
    if (!full->len) break;
    at += full->len;
    if (one_in(r, 50)) break; /* and closed half way */
    prefetch_give(p, full);
  }
  if (!full->len) CHECK(at == t->len);
  prefetch_stop(p);
  for (size_t i = 0; i < PREFETCH_DEPTH; i++) free(blocks[i].data);
  close(fd);
}

/* A survey has every member that a walk has, in order and within the data, and never one inside of another. */
static void check_survey(const whole_walk *t, bio *b) {
  survey s = {0};
  CHECK(!survey_shard(b, &s));
  const uint64_t *starts = (const void *)s.starts.data, *headers = (const void *)s.headers.data,
                 *offsets = (const void *)s.offsets.data, *nbytes = (const void *)s.nbytes.data;
  const survey_mark *marks = (const void *)s.marks.data;
  CHECK(s.nbytes_total == t->len && s.starts.len == 8 * s.nmembers && s.flags.len == s.nmembers);
  CHECK(s.codes.len == 4 * s.nmembers && s.key_lens.len == 4 * s.nmembers && s.hashes.len == 8 * s.nmembers);
  for (size_t i = 0; i < s.nmembers; i++) {
    CHECK(starts[i] <= headers[i] && headers[i] + TAR_BLOCK <= offsets[i] && headers[i] + TAR_BLOCK <= t->len);
    CHECK(!i || starts[i] >= headers[i - 1] + TAR_BLOCK);
    CHECK(s.flags.data[i] & MEMBER_CUT || offsets[i] + nbytes[i] <= t->len);
  }
  for (size_t i = 0; i < s.marks.len / sizeof *marks; i++)
    CHECK(marks[i].from <= marks[i].at && marks[i].from <= marks[i].end && marks[i].end <= t->len && marks[i].before <= s.nmembers);
  if (!s.marks.len) {
    CHECK(t->end == TAR_END && s.nmembers == t->count);
    for (size_t i = 0; i < t->count; i++) CHECK(headers[i] == t->members[i].m.header);
  }
  survey_free(&s);
}

static void survey_both(const whole_walk *t, rng *r) {
  dribble d = {.t = t, .most = 64 + rng_below(r, 4000), .r = {rng_next(r)}};
  bio b = {.more = dribble_more, .owner = &d, .size = UINT64_MAX};
  check_survey(t, &b);
  bio_free(&b);
  free(d.b.data);
  int fd = file_of(t->data, t->len);
  file_window window;
  CHECK(bio_open_window(&b, &window, fd, t->len));
  check_survey(t, &b);
  bio_close_window(&b, &window);
  close(fd);
}

static void check_scans(const whole_walk *t, rng *r) {
  bool sized = one_in(r, 2);
  model m;
  model_scan(&m, t, sized);
  scan_dribble(t, &m, r, sized);
  if (sized && (t->len > 100000 || one_in(r, 16))) scan_file(t, &m);
  if (one_in(r, 8)) survey_both(t, r);
  if (t->len && one_in(r, 512)) check_threads(t, r);
  model_free(&m);
}

/* What tar_format writes, tar_next reads back. */
static void check_format(rng *r, const char *name, size_t len) {
  static const uint64_t octal = UINT64_C(1) << 33, most = UINT64_C(1) << 62;
  const uint64_t sizes[] = {0, 1, octal - 1, octal, most, most + 1, UINT64_MAX};
  uint64_t nbytes = one_in(r, 2) ? sizes[rng_below(r, 7)] : rng_next(r) >> rng_below(r, 64);
  size_t cap = tar_group_cap(len);
  unsigned char *out = must(malloc(cap));
  size_t n = tar_format(out, cap, name, len, nbytes, rng_next(r) >> rng_below(r, 64));
  CHECK((n == 0) == (!len || memchr(name, 0, len) || nbytes > UINT64_C(1) << 62 || cap > TAR_GROUP_MAX));
  if (n) {
    tar_walker w = {0};
    tar_member m;
    CHECK(n <= cap && n % TAR_BLOCK == 0 && tar_next(&w, out, n, &m) == TAR_MEMBER);
    CHECK(m.type == TAR_FILE && m.offset == n && m.nbytes == nbytes && same_text(m.name, m.name_len, name, len));
    CHECK(tar_format(out, cap - 1, name, len, nbytes, 0) == 0);
    stats.formats++;
  }
  free(out);
}

static void check_input(const unsigned char *data, size_t len, rng r) {
  unsigned char *copy = must(malloc(len + 8)); /* 8: so that there is a byte to hide, whatever the length */
  whole_walk t = {.data = copy, .len = len};
  char name[400];
  memcpy(copy, data, len);
  HIDE(copy + len, 8);
  walk_whole(&t, &r);
  if (t.end == TAR_ERROR) count_reason(t.reason);
  check_scans(&t, &r);
  if (t.count) check_format(&r, t.members[t.count - 1].m.name, t.members[t.count - 1].m.name_len);
  else check_format(&r, name, make_name(&r, name, sizeof name));
  SHOW(copy + len, 8);
  free(t.members);
  free(copy);
  stats.inputs++;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
  check_input(data, len, (rng){sample_hash((const char *)data, len, 7)});
  return 0;
}

#ifndef WDS_LIBFUZZER
static int replay(const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  off_t len = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
  unsigned char *data = len < 0 ? NULL : must(malloc((size_t)len + 1));
  bool good = data && pread_full(fd, data, (size_t)len, 0) == len;
  if (good) LLVMFuzzerTestOneInput(data, (size_t)len);
  else fprintf(stderr, "fuzz_tar: %s: %s\n", path, strerror(errno));
  if (fd >= 0) close(fd);
  free(data);
  return good ? 0 : 1;
}

static void print_stats(void) {
  static const char *const scans[] = {"ok",       "io",        "header",      "truncated",
                                      "trailing", "duplicate", "interleaved", "sparse"};
  uint64_t members = 0;
  for (size_t i = 0; i < 128; i++) members += stats.members[i];
  printf("fuzz_tar: seed %llu, %llu inputs, %llu header groups, %llu members (", (unsigned long long)now.seed,
         (unsigned long long)stats.inputs, (unsigned long long)stats.groups, (unsigned long long)members);
  for (size_t i = 0; i < 128; i++)
    if (stats.members[i]) printf(" %c %llu", (char)i, (unsigned long long)stats.members[i]);
  printf(" ), %llu samples, %llu headers written; scans:", (unsigned long long)stats.samples,
         (unsigned long long)stats.formats);
  for (size_t i = 0; i < sizeof scans / sizeof *scans; i++)
    if (stats.scans[i]) printf(" %s %llu", scans[i], (unsigned long long)stats.scans[i]);
  printf("; header errors:");
  for (size_t i = 0; i < sizeof stats.reasons / sizeof *stats.reasons && stats.reasons[i].reason; i++)
    printf("%s \"%s\" %llu", i ? "," : "", stats.reasons[i].reason, (unsigned long long)stats.reasons[i].count);
  printf("\n");
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: fuzz_tar N SEED [FILE...]\n");
    return 2;
  }
  uint64_t count = strtoull(argv[1], NULL, 10);
  bytes_vec input = {0};
  int failed = 0;
  watch();
  for (int i = 3; i < argc; i++) failed |= replay(argv[i]);
  now.seed = strtoull(argv[2], NULL, 10);
  for (now.number = 0; now.number < count; now.number++) {
    rng r = {now.seed * 0x9E3779B97F4A7C15u ^ sample_hash((const char *)&now.number, sizeof now.number, now.seed)};
    make_input(&r, &input);
    now.data = input.data, now.len = input.len;
    LLVMFuzzerTestOneInput(input.data, input.len);
    now.data = NULL;
  }
  free(input.data);
  print_stats();
  return failed;
}
#endif

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device.h"
#include "fread.h"

enum { ALIGN = 4096, PIECE = 4 << 20, BUFFER = 128 << 10 };

typedef struct {
  const char *name;
  const options *o;
  totals *sum;
  turnstile *turn; /* or NULL */
  int fd;
  bool regular, direct, owned;
  uint64_t pos, end, size; /* next byte to read; exclusive; when it was opened (0: not known) */
} input;

void complain(const char *format, ...) {
  char line[4600];
  va_list args;
  int at = snprintf(line, sizeof line, "fread: ");
  va_start(args, format);
  int n = vsnprintf(line + at, sizeof line - (size_t)at - 1, format, args);
  va_end(args);
  at = n < 0 || n > (int)sizeof line - at - 2 ? (int)sizeof line - 2 : at + n;
  line[at++] = '\n';
  (void)!write(STDERR_FILENO, line, (size_t)at); /* in one piece: other readers talk to the same terminal */
}

static void warn(const char *text) { complain("warning: %s", text); }

static int fail_read(const input *in, int error) {
  complain("%s: read error at byte %" PRIu64 ": %s", in->name, in->pos, strerror(error));
  return 1;
}

static int fail_write(int error) {
  complain("standard output: write error: %s", strerror(error));
  return 1;
}

/* Nothing more came: right, or has the file become shorter? */
static int check_end(const input *in) {
  uint64_t due = in->o->ranged && in->end != UINT64_MAX ? in->end : in->size;
  if (in->pos >= due) return 0;
  if (due == in->size) complain("%s: ends at byte %" PRIu64 ", but had %" PRIu64 " bytes when it was opened: it was cut short", in->name, in->pos, in->size);
  else complain("%s: ends at byte %" PRIu64 ", before the end of the range, %" PRIu64, in->name, in->pos, due);
  return 1;
}

/* At most n bytes at `pos`; -1: errno. The page cache gives what comes before a bad block; O_DIRECT fails as a whole, and
 * is tried again in halves. */
static ssize_t read_at(const input *in, void *to, size_t n, uint64_t pos) {
  for (;;) {
    ssize_t r = in->regular ? pread(in->fd, to, n, (off_t)pos) : read(in->fd, to, n);
    if (r >= 0) return r;
    if (errno == EIO && in->direct && n > ALIGN) n = n / 2 / ALIGN * ALIGN > ALIGN ? n / 2 / ALIGN * ALIGN : ALIGN;
    else if (errno != EINTR) return -1;
  }
}

/* ---------------------------------------------------------------------------------------------- without a turnstile */

/* As cat: a buffer that stays in the cache of the processor, and the kernel reads ahead. */
static int copy_plainly(input *in) {
  static unsigned char buffer[BUFFER] __attribute__((aligned(ALIGN)));
  uint64_t skip = in->regular ? 0 : in->o->from; /* a pipe cannot seek */
  if (in->regular) posix_fadvise(in->fd, (off_t)in->pos, 0, POSIX_FADV_SEQUENTIAL);
  else in->pos = 0;
  while (in->pos < in->end) {
    uint64_t left = in->end - in->pos;
    double start = in->o->verbose ? now() : 0;
    ssize_t n = read_at(in, buffer, left < BUFFER ? (size_t)left : BUFFER, in->pos);
    double middle = in->o->verbose ? now() : 0;
    in->sum->reading += middle - start;
    if (n < 0) return fail_read(in, errno);
    if (n == 0) return check_end(in);
    size_t drop = in->pos >= skip ? 0 : skip - in->pos < (uint64_t)n ? (size_t)(skip - in->pos) : (size_t)n;
    int error = write_out(buffer + drop, (size_t)n - drop);
    if (error) return fail_write(error);
    if (in->o->verbose) in->sum->writing += now() - middle;
    in->pos += (uint64_t)n;
    in->sum->bytes += (uint64_t)n - drop;
  }
  return 0;
}

/* ------------------------------------------------------------------------------------------------------- in chunks */

static bool take_turn(input *in) {
  double start = now();
  int error = turnstile_enter(in->turn, NULL);
  in->sum->waiting += now() - start;
  in->sum->turns++;
  if (!error) return true;
  complain("warning: %s: reading without the turnstile: %s", in->name, strerror(error));
  turnstile_close(in->turn);
  in->turn = NULL;
  return false;
}

/* After the last, unaligned bytes of a file O_DIRECT cannot go on; there may be more if the file grows. */
static void drop_direct(input *in) {
  int flags = fcntl(in->fd, F_GETFL);
  if (flags >= 0) fcntl(in->fd, F_SETFL, flags & ~O_DIRECT);
  in->direct = false;
}

/* Read [pos, pos + want) into the chunk, a piece at a time. O_DIRECT reads from a boundary to a boundary: chunk[0] is
 * the byte at `base`. *over: the file ends here. 0 or an errno. */
static int fill_chunk(input *in, pump *p, unsigned char *chunk, size_t want, bool *over) {
  const uint64_t base = in->direct ? in->pos - in->pos % ALIGN : in->pos, until = in->pos + want;
  size_t first = (size_t)(in->pos - base);
  for (uint64_t at = base; in->pos < until;) {
    size_t n = until - at < PIECE ? (size_t)(until - at) : PIECE;
    if (in->direct) n = (n + ALIGN - 1) / ALIGN * ALIGN;
    ssize_t r = read_at(in, chunk + (at - base), n, at);
    if (r < 0) return errno;
    if (in->turn) turnstile_beat(in->turn);
    if (in->direct && r % ALIGN) drop_direct(in);
    at += (uint64_t)r;
    if (at <= in->pos) {
      *over = true;
      return 0;
    }
    uint64_t more = (at < until ? at : until) - in->pos;
    pump_add(p, first, (size_t)more);
    first = 0;
    in->pos += more;
    in->sum->bytes += more;
    at = in->pos;
  }
  return 0;
}

static void drop_pages(const input *in, uint64_t from) {
  if (in->o->no_cache && !in->direct) posix_fadvise(in->fd, (off_t)from, (off_t)(in->pos - from), POSIX_FADV_DONTNEED);
}

static int copy_in_chunks(input *in, pump **pumps) {
  const options *o = in->o;
  if (!*pumps && !(*pumps = pump_start(o->chunk, o->ahead))) {
    complain("no memory for %u chunks of %" PRIu64 " bytes: %s", o->ahead + 1, o->chunk, strerror(errno));
    return 1;
  }
  int error = 0;
  for (bool over = false; !over && !error && in->pos < in->end;) {
    unsigned char *chunk = pump_chunk(*pumps);
    uint64_t from = in->pos, left = in->end - from, room = o->chunk - (in->direct ? from % ALIGN : 0);
    size_t want = (size_t)(left < room ? left : room);
    if (!chunk) return fail_write(pump_drain(*pumps, &in->sum->writing));
    /* looking for what a file has grown by costs no turn */
    bool turn = in->turn && from < in->size && (in->direct || !file_resident(in->fd, from, want)) && take_turn(in);
    if (turn && !in->direct) file_ask(in->fd, from, want);
    double start = now();
    error = fill_chunk(in, *pumps, chunk, want, &over);
    in->sum->reading += now() - start;
    if (turn) turnstile_leave(in->turn);
    drop_pages(in, from);
    pump_end(*pumps);
  }
  if (error) {
    int unwritten = pump_drain(*pumps, &in->sum->writing); /* what was read goes out first */
    return unwritten ? fail_write(unwritten) : fail_read(in, error);
  }
  return in->pos < in->end ? check_end(in) : 0;
}

/* ----------------------------------------------------------------------------------------------------------- a file */

static bool is_output(const struct stat *st) {
  struct stat out;
  return S_ISREG(st->st_mode) && !fstat(STDOUT_FILENO, &out) && S_ISREG(out.st_mode) && out.st_dev == st->st_dev && out.st_ino == st->st_ino;
}

static int open_direct(input *in) {
  int flags = fcntl(in->fd, F_GETFL);
  if (in->owned && flags >= 0 && !fcntl(in->fd, F_SETFL, flags | O_DIRECT)) {
    in->direct = true;
    return 0;
  }
  complain("warning: %s: cannot be read with O_DIRECT: %s", in->name, in->owned ? strerror(errno) : "it was opened by another");
  return 0;
}

/* Where to begin and to end; a range must lie in the file. */
static int open_range(input *in, uint64_t begin) {
  const options *o = in->o;
  in->pos = begin + o->from;
  in->end = o->to == UINT64_MAX ? UINT64_MAX : begin + o->to;
  if (!o->ranged || !in->regular || (in->pos <= in->size && (in->end == UINT64_MAX || in->end <= in->size))) return 0;
  complain("%s: has %" PRIu64 " bytes: the range begins or ends behind them", in->name, in->size - begin);
  return 1;
}

static int input_open(input *in) {
  struct stat st;
  in->owned = strcmp(in->name, "-") != 0;
  in->fd = in->owned ? open(in->name, O_RDONLY | O_CLOEXEC | O_NOCTTY) : STDIN_FILENO;
  if (in->fd < 0 || fstat(in->fd, &st)) {
    complain("%s: %s", in->name, strerror(errno));
    return 1;
  }
  if (!in->owned) in->name = "standard input";
  if (S_ISDIR(st.st_mode) || is_output(&st)) {
    complain("%s: %s", in->name, S_ISDIR(st.st_mode) ? "is a directory" : "is the output too");
    return 1;
  }
  off_t begin = S_ISREG(st.st_mode) || S_ISBLK(st.st_mode) ? lseek(in->fd, 0, SEEK_CUR) : -1;
  in->regular = begin >= 0;
  off_t size = S_ISBLK(st.st_mode) ? lseek(in->fd, 0, SEEK_END) : st.st_size;
  in->size = in->regular ? (uint64_t)size : 0;
  if (!in->regular) in->pos = 0, in->end = in->o->to;
  else if (open_range(in, (uint64_t)begin)) return 1;
  if (in->regular && turnstile_open(in->fd, in->o->lock, in->o->slots, warn, &in->turn)) {
    complain("%s: no memory", in->name);
    return 1;
  }
  return in->regular && in->o->direct ? open_direct(in) : 0;
}

int input_copy(const char *name, const options *o, totals *sum, pump **p) {
  input in = {.name = name, .o = o, .sum = sum, .fd = -1};
  int failed = input_open(&in);
  if (!failed && (in.turn || in.direct || (in.regular && o->no_cache))) {
    failed = copy_in_chunks(&in, p);
  } else if (!failed) {
    int error = *p ? pump_drain(*p, &sum->writing) : 0;
    failed = error ? fail_write(error) : copy_plainly(&in);
  }
  turnstile_close(in.turn);
  if (in.owned && in.fd >= 0) close(in.fd);
  return failed;
}

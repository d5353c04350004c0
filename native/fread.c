/* fread.c: files to standard output, at the speed of a disk that seeks, whoever else reads from it.
 *
 *   make -C native fread BUILD=dir    or, in native/:
 *   cc -std=c11 -D_GNU_SOURCE -O2 -pthread -o fread fread.c fread_options.c fread_input.c fread_pump.c turnstile.c lockfile.c device.c
 *
 * This thread reads, holding the turnstile of the disk for a chunk at a time; another one writes. Nothing waits for a
 * consumer while it has the turn: the room for a chunk is free before the turn is taken. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fread.h"

typedef struct {
  const options *o;
  totals sum;
  pump *p;
} run;

/* The first {a..b} of two numbers in a name; false: there is none. */
static bool find_braces(const char *name, int *open, int *close, long long *a, long long *b, int *width) {
  for (const char *at = name; (at = strchr(at, '{')); at++) {
    char *dots, *end;
    if (at[1] < '0' || at[1] > '9') continue;
    errno = 0;
    *a = strtoll(at + 1, &dots, 10);
    if (strncmp(dots, "..", 2) || dots[2] < '0' || dots[2] > '9') continue;
    *b = strtoll(dots + 2, &end, 10);
    if (*end != '}' || errno) continue;
    int first = (int)(dots - at - 1), second = (int)(end - dots - 2);
    bool padded = (first > 1 && at[1] == '0') || (second > 1 && dots[2] == '0');
    *width = !padded ? 0 : first > second ? first : second;
    *open = (int)(at - name), *close = (int)(end - name);
    return true;
  }
  return false;
}

static int copy(run *r, const char *name) {
  struct stat st;
  int open, close, width;
  long long a, b;
  if (!strcmp(name, "-") || !lstat(name, &st) || !find_braces(name, &open, &close, &a, &b, &width))
    return input_copy(name, r->o, &r->sum, &r->p);
  for (long long i = a;; i += a < b ? 1 : -1) {
    char each[PATH_MAX];
    if (snprintf(each, sizeof each, "%.*s%0*lld%s", open, name, width, i, name + close + 1) >= (int)sizeof each) {
      complain("%s: %s", name, strerror(ENAMETOOLONG));
      return 1;
    }
    int failed = copy(r, each);
    if (failed || i == b) return failed;
  }
}

static void report(const run *r, double took) {
  complain("%" PRIu64 " bytes in %.3f s, %.1f MB/s: waited %.3f s in %" PRIu64 " turns, read %.3f s, wrote %.3f s",
           r->sum.bytes, took, took > 0 ? (double)r->sum.bytes / took / 1e6 : 0.0, r->sum.waiting, r->sum.turns,
           r->sum.reading, r->sum.writing);
}

int main(int argc, char **argv) {
  options o;
  int first, status = options_parse(&o, argc, argv, &first);
  if (status >= 0) return status;
  run r = {.o = &o};
  double start = now();
  if (o.pipe_size) fcntl(STDOUT_FILENO, F_SETPIPE_SZ, (int)o.pipe_size); /* no pipe, or not allowed: as it is */
  int failed = 0;
  for (int i = first; i < argc && !failed; i++) failed = copy(&r, argv[i]); /* after a gap, what follows is wrong */
  int error = r.p ? pump_drain(r.p, &r.sum.writing) : 0;
  if (error && !failed) complain("standard output: write error: %s", strerror(error));
  if (o.verbose) report(&r, now() - start);
  return failed || error;
}

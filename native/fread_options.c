#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fread.h"

#ifndef WDS_VERSION
#define WDS_VERSION "unreleased"
#endif

static const char help[] =
    "usage: fread [options] FILE...\n"
    "\n"
    "Write files to standard output, one after the other, as cat does. On a disk that seeks, readers take turns: each\n"
    "reads a big chunk at a time while the others wait, and writes it out while they read.\n"
    "FILE - is standard input. train-{000..146}.tar is expanded where there is no file of that very name.\n"
    "\n"
    "  --chunk SIZE      bytes read in one turn (32M)\n"
    "  --ahead N         chunks read while the one before drains (1); memory is chunk x (ahead + 1)\n"
    "  --slots N         readers of one device at once (1)\n"
    "  --lock WHEN       take turns: auto (where the disk seeks, as a short probe tells), always or never (auto)\n"
    "  --range A-B       only bytes [A, B) of the one FILE; A- to the end\n"
    "  --direct          read past the page cache (O_DIRECT)\n"
    "  --no-cache        drop what was read from the page cache\n"
    "  --pipe-size SIZE  of standard output, where that is a pipe; 0: leave it (1M)\n"
    "  -v, --verbose     at the end: bytes, and seconds of waiting, reading and writing, on standard error\n"
    "  --help, --version\n"
    "\n"
    "SIZE is bytes, or 64K, 32M, 1G (of 1024; KiB, MiB, GiB too), or 64kB, 32MB, 1GB (of 1000).\n"
    "Each option is an environment variable too: FREAD_CHUNK=64M, FREAD_LOCK=never, FREAD_DIRECT=1, ...; WDS_LOCK and\n"
    "WDS_LOCK_SLOTS hold for wdstools too, and WDS_LOCK_DIR is where the lock files are. Options win.\n"
    "Exit status: 0 all was written, 1 not all (the reason is on standard error; what was read is out), 2 wrong usage.\n"
    "example: fread --chunk 64M -v train-{000..146}.tar | tar tf - --ignore-zeros\n";

enum { CHUNK = 1, AHEAD, SLOTS, LOCK, RANGE, DIRECT, NO_CACHE, PIPE_SIZE, HELP, VERSION };

static const struct option table[] = {
    {"chunk", required_argument, NULL, CHUNK},     {"ahead", required_argument, NULL, AHEAD},
    {"slots", required_argument, NULL, SLOTS},     {"lock", required_argument, NULL, LOCK},
    {"range", required_argument, NULL, RANGE},     {"direct", no_argument, NULL, DIRECT},
    {"no-cache", no_argument, NULL, NO_CACHE},     {"pipe-size", required_argument, NULL, PIPE_SIZE},
    {"verbose", no_argument, NULL, 'v'},           {"help", no_argument, NULL, HELP},
    {"version", no_argument, NULL, VERSION},       {NULL, 0, NULL, 0}};

/* "32M" and what may follow it. false: no size. */
static bool size_prefix(const char *text, uint64_t *size, const char **rest) {
  static const char letters[] = "kMGT";
  if (*text < '0' || *text > '9') return false;
  char *end;
  errno = 0;
  uint64_t n = strtoull(text, &end, 10), unit = 1;
  if (errno) return false;
  const char *letter = *end ? strchr(letters, *end == 'K' ? 'k' : *end) : NULL;
  if (letter) {
    end++;
    uint64_t thousand = *end == 'B' ? 1000 : 1024;
    for (int i = 0; i <= letter - letters; i++) unit *= thousand;
    end += *end == 'B' ? 1 : !strncmp(end, "iB", 2) ? 2 : 0;
  } else if (*end == 'B') {
    end++;
  }
  *rest = end;
  return !__builtin_mul_overflow(n, unit, size) && *size <= (uint64_t)INT64_MAX;
}

static bool size_of(const char *text, uint64_t *size) {
  const char *rest;
  return size_prefix(text, size, &rest) && !*rest;
}

static bool number_of(const char *text, unsigned least, unsigned most, unsigned *n) {
  uint64_t wide;
  if (!size_of(text, &wide) || wide < least || wide > most) return false;
  *n = (unsigned)wide;
  return true;
}

static bool range_of(const char *text, options *o) {
  const char *rest;
  if (!size_prefix(text, &o->from, &rest) || *rest++ != '-') return false;
  o->to = UINT64_MAX;
  o->ranged = true;
  return !*rest || (size_of(rest, &o->to) && o->from <= o->to);
}

static bool flag_of(const char *text, bool *flag) {
  *flag = !strcmp(text, "1");
  return *flag || !strcmp(text, "0");
}

/* NULL, or what the value should have been. */
static const char *set(options *o, int key, const char *value) {
  switch (key) {
  case CHUNK:
    if (!size_of(value, &o->chunk) || !o->chunk || o->chunk > (uint64_t)1 << 40) return "a size from 1 to 1T, as 32M";
    o->chunk = (o->chunk + 4095) / 4096 * 4096;
    return NULL;
  case AHEAD: return number_of(value, 0, 1024, &o->ahead) ? NULL : "a number from 0 to 1024";
  case SLOTS: return number_of(value, 1, 1024, &o->slots) ? NULL : "a number from 1 to 1024";
  case LOCK: return lock_mode_of(value, &o->lock) ? NULL : "auto, always or never";
  case RANGE: return range_of(value, o) ? NULL : "A-B or A-, the first byte and the one after the last, as 512-64M";
  case DIRECT: return flag_of(value, &o->direct) ? NULL : "1 or 0";
  case NO_CACHE: return flag_of(value, &o->no_cache) ? NULL : "1 or 0";
  case PIPE_SIZE: return size_of(value, &o->pipe_size) && o->pipe_size <= INT32_MAX ? NULL : "a size, as 1M";
  default: return flag_of(value, &o->verbose) ? NULL : "1 or 0";
  }
}

static int from_environment(options *o) {
  static const struct { const char *name; int key; } variables[] = {
      {"FREAD_CHUNK", CHUNK}, {"FREAD_AHEAD", AHEAD},   {"WDS_LOCK_SLOTS", SLOTS},    {"WDS_LOCK", LOCK},
      {"FREAD_SLOTS", SLOTS}, {"FREAD_LOCK", LOCK},   {"FREAD_RANGE", RANGE},   {"FREAD_DIRECT", DIRECT},     {"FREAD_NO_CACHE", NO_CACHE},
      {"FREAD_VERBOSE", 'v'}, {"FREAD_PIPE_SIZE", PIPE_SIZE}};
  for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
    const char *value = getenv(variables[i].name), *wrong;
    if (!value || !*value || !(wrong = set(o, variables[i].key, value))) continue;
    complain("the environment's %s=%s must be %s", variables[i].name, value, wrong);
    return 2;
  }
  return -1;
}

int options_parse(options *o, int argc, char **argv, int *first) {
  *o = (options){.chunk = 32 << 20, .ahead = 1, .slots = 1, .lock = LOCK_AUTO, .to = UINT64_MAX, .pipe_size = 1 << 20};
  int status = from_environment(o), key, which = 0;
  if (status >= 0) return status;
  opterr = 0;
  while ((key = getopt_long(argc, argv, ":v", table, &which)) != -1) {
    if (key == HELP || key == VERSION) {
      printf("%s", key == HELP ? help : "fread (wdstools) " WDS_VERSION "\n");
      return fflush(stdout) ? 1 : 0;
    }
    if (key == '?' || key == ':') {
      complain("%s: %s; fread --help shows the options", argv[optind - 1], key == ':' ? "needs a value" : "no such option");
      return 2;
    }
    const char *wrong = set(o, key, optarg ? optarg : "1");
    if (!wrong) continue;
    complain("--%s %s: must be %s", table[which].name, optarg, wrong);
    return 2;
  }
  *first = optind;
  const char *wrong = optind == argc                              ? "no FILE given; - is standard input"
                      : o->ranged && argc - optind > 1             ? "--range is for one FILE"
                      : o->chunk > SIZE_MAX / 2 / (o->ahead + 1) ? "--chunk x (--ahead + 1) is too much"
                                                                   : NULL;
  if (wrong) complain("%s", wrong);
  return wrong ? 2 : -1;
}

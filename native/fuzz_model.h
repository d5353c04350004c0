/* fuzz_model.h: a tar as a list of members, and a scan of that list with a linear look-up of everything: scan_shard
 * must agree with it. */
#ifndef WDS_FUZZ_MODEL_H
#define WDS_FUZZ_MODEL_H

#include <stdlib.h>
#include <string.h>

#include "scan.h"

_Noreturn void fuzz_fail(const char *file, int line, const char *what);
#define CHECK(what)                                    \
  do                                                     \
    if (!(what)) fuzz_fail(__FILE__, __LINE__, #what); \
  while (0)

static inline void *must(void *p) {
  CHECK(p);
  return p;
}

static inline bool same_text(const char *a, size_t a_len, const char *b, size_t b_len) {
  return a_len == b_len && memcmp(a, b, a_len) == 0;
}

typedef struct {
  tar_member m;
  bool late; /* its payload goes on beyond the end of the data */
} seen_member;

/* The whole of a tar, walked in one go. */
typedef struct {
  const unsigned char *data;
  size_t len;
  seen_member *members;
  size_t count, cap;
  tar_status end; /* what came after the members; TAR_MEMBER: the last one is late */
  uint64_t pos, at;
  const char *reason;
} whole_walk;

typedef struct {
  size_t first, fields; /* indexes into the list of entries */
  sample_name name;
} model_row;

typedef struct {
  model_row *rows;
  const tar_member **entries;
  sample_name *names; /* of the entries */
  size_t nrows, nentries, nmembers;
  scan_result r;
} model;

/* sized: the length of the shard is known, so that a member beyond it is found out before its name is looked at. */
void model_scan(model *m, const whole_walk *t, bool sized);
void model_compare(const model *m, const columns *c, const scan_result *r);
void model_free(model *m);

#endif

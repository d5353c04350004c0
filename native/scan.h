/* scan.h: a whole shard -> the columns of its index. No Python.h; reads headers only where the bio can jump. */
#ifndef WDS_SCAN_H
#define WDS_SCAN_H

#include "blockio.h"
#include "sample.h"
#include "tar.h"

typedef enum { SCAN_OK, SCAN_IO, SCAN_HEADER, SCAN_TRUNCATED, SCAN_TRAILING, SCAN_DUPLICATE, SCAN_INTERLEAVED, SCAN_SPARSE } scan_status;

typedef struct {
  scan_status status;
  int error;          /* SCAN_IO: what the bio returned, or ENOMEM */
  const char *reason; /* static */
  uint64_t at;        /* byte offset of what is wrong */
} scan_result;

/* The next member's header group at b->pos; moves b->pos to its payload. TAR_MORE: the data ends here, at r->at. */
tar_status scan_member(bio *b, tar_walker *w, tar_member *m, scan_result *r);
/* Behind the end marker: zeros to the end, or SCAN_TRAILING. */
void scan_tail(bio *b, scan_result *r);
/* All of it. c must be empty. */
scan_result scan_shard(bio *b, columns *c);

#endif

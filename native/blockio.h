/* blockio.h: bytes of a shard in big recycled blocks. No Python.h.
 *
 * prefetch   a thread that fills blocks from a file descriptor, one after the other, while the last one is used.
 *             The caller owns the blocks: it gives empty ones and takes them back full, in order.
 * bio         a cursor over blocks: look at the next n bytes in one piece, copy them out, or skip them. Where the
 *             blocks come from is its `more` call: a prefetch, a window over a file, or a Python object.
 */
#ifndef WDS_BLOCKIO_H
#define WDS_BLOCKIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "sample.h" /* bytes_vec */

typedef struct {
  unsigned char *data;
  size_t len, cap;
} block;

#define PREFETCH_DEPTH 4
#define PREFETCH_MOST 17 /* on a disk that seeks: a turn of 8 blocks is read while the 8 before drain, and one is in use */
typedef struct prefetch prefetch;

/* regular: pread from pos on, in turns where turnstile.h finds that the disk seeks ($WDS_LOCK: auto, always, never;
 * $WDS_LOCK_SLOTS); otherwise read, and closing does not wait for a silent pipe. NULL: errno. */
prefetch *prefetch_start(int fd, bool regular, uint64_t pos);
unsigned prefetch_depth(prefetch *r);          /* blocks that may be out: PREFETCH_DEPTH, later maybe PREFETCH_MOST */
void prefetch_give(prefetch *r, block *empty); /* at most prefetch_depth are out at a time */
/* Wait a tenth of a second for the next full block; PREFETCH_WAIT: none yet. (*full)->len == 0: the end; NULL: asked
 * again after the end. Returns 0, or an errno of reading (its block, with what came before it, comes back too). */
#define PREFETCH_WAIT (-1) /* no errno: reading itself can time out */
int prefetch_take(prefetch *r, block **full);
void prefetch_stop(prefetch *r); /* joins the thread; the blocks given are the caller's again */

/* Fill [*len, cap) of the block from fd. Returns 0 or an errno; stops short only at the end of the data. */
int block_fill(block *b, int fd, bool regular, uint64_t pos);
/* pread all of n bytes; returns the number read before the end of the file, or -1 (errno). */
ssize_t pread_full(int fd, void *dst, size_t n, uint64_t pos);
ssize_t write_full(int fd, const void *src, size_t n); /* n, or -1 (errno) */

/* A thread that writes blocks to a file descriptor, one at a time, while the caller fills the next. */
typedef struct flusher flusher;
flusher *flusher_start(int fd); /* NULL: errno */
/* Wait until the block before is written, and start on this one; it is the thread's until the next call. Returns 0, or
 * the errno of an earlier write: nothing is written any more then. b == NULL only waits. */
int flusher_submit(flusher *f, const block *b);
void flusher_stop(flusher *f); /* waits, and joins the thread */

#define BIO_EXCEPTION (-1) /* `more` failed and has set a Python exception; > 0 is an errno */

typedef struct bio bio;
struct bio {
  int (*more)(bio *b);  /* put the bytes at b->pos into b->cur (len 0: the end) and set b->cur_pos; 0, or an error */
  void *owner;          /* of `more` */
  block *cur;           /* may be NULL before the first call */
  uint64_t pos, cur_pos; /* of the cursor; of cur->data[0] */
  uint64_t size;        /* of the shard where it is known, else UINT64_MAX */
  size_t wanted;        /* what the last peek asked for, for `more` to see */
  bool random;          /* `more` can start anywhere (else only where cur ends) */
  bytes_vec joint;      /* bytes that straddle two blocks, from joint_pos on */
  uint64_t joint_pos;
};

/* At least n contiguous bytes at the cursor, fewer only at the end (*avail says). 0 or an error of `more`, or ENOMEM. */
int bio_peek(bio *b, size_t n, const unsigned char **p, size_t *avail);
/* n bytes at the cursor if they lie in the current block, else NULL; does not move. */
const unsigned char *bio_here(const bio *b, uint64_t n);
int bio_copy(bio *b, unsigned char *dst, size_t n, size_t *copied); /* fewer only at the end */
int bio_skip(bio *b, uint64_t n, uint64_t *skipped);
void bio_free(bio *b); /* the joint only */

/* A bio over a regular file for reading headers: the window starts small and doubles while reading is sequential,
 * and falls back to small after a jump, so that large payloads are not read and small ones are in one go. */
typedef struct {
  int fd;
  size_t want;
  uint64_t last_end;
  block window;
} file_window;
bool bio_open_window(bio *b, file_window *w, int fd, uint64_t size); /* false: no memory */
int bio_window_more(bio *b); /* its `more`, for callers that wrap it */
void bio_close_window(bio *b, file_window *w);

#endif

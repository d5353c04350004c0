/* batchio.h: many reads of files at a time, shared between the caller and threads of the process. No Python.h.
 *
 * The caller posts reads, in the order in which it wants them, and then runs those that nobody has begun, or waits. A
 * helper thread that finds no CPU costs nothing: the caller does the work. What is not in the page cache is asked for
 * ahead by batch_advise, which is what keeps a disk at depth. Helpers do not outlive a fork: a child starts its own.
 */
#ifndef WDS_BATCHIO_H
#define WDS_BATCHIO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum { BATCH_PARTS = 3 };
typedef struct {
  struct iovec to[BATCH_PARTS];
  int nto;
  uint64_t pos;
  size_t n, got; /* after it is done: got < n without an error is the end of the file */
  int fd, error;
  atomic_bool done;
} batch_job;

typedef struct batch batch;

batch *batch_new_jobs(size_t cap);         /* NULL: no memory */
void batch_free_jobs(batch *b);            /* what nobody has begun is not read; waits for what is being read */
/* The number of the job, or SIZE_MAX: full. What is read goes into one place after the other. */
size_t batch_post(batch *b, int fd, const struct iovec *to, int nto, uint64_t pos);
void batch_wake(batch *b, size_t helpers); /* let at most so many threads help */
void batch_reset(batch *b);                /* forget all jobs, which must be done */
size_t batch_posted(const batch *b);
const batch_job *batch_at(const batch *b, size_t job);

/* The next job that nobody has begun, now the caller's to run; SIZE_MAX: there is none. */
size_t batch_claim(batch *b);
bool batch_run_cached(batch *b, size_t job); /* false: not all of it is in the page cache; batch_run goes on from there */
void batch_run(batch *b, size_t job);
bool batch_done(const batch *b, size_t job);
void batch_wait(batch *b, size_t job); /* for a job that a helper has begun */
bool batch_is_cold(const batch *b);    /* whether something was not in the page cache */

/* preadv of what is in the page cache: the number of bytes, at least 0. */
size_t pread_cached(int fd, const struct iovec *to, int nto, uint64_t pos);
/* Have the kernel read a range into the page cache, and do not wait for it. */
void batch_advise(int fd, uint64_t pos, uint64_t n);

size_t batch_cpus(void); /* that this process may use */

#endif

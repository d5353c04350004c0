/* fread.h: what the parts of the program `fread` share. */
#ifndef WDS_FREAD_H
#define WDS_FREAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "turnstile.h"

/* ----------------------------------------------------------------------------------------------- fread_options.c */

typedef struct {
  uint64_t chunk;    /* bytes of a turn, a multiple of 4096 */
  unsigned ahead;    /* chunks read while one drains */
  unsigned slots;    /* readers at once */
  lock_mode lock;
  bool direct, no_cache, verbose, ranged;
  uint64_t from, to; /* [from, to); to == UINT64_MAX: to the end */
  uint64_t pipe_size; /* 0: as it is */
} options;

/* The options, from the environment and then the arguments; *first: of the FILEs. Returns -1 to go on, or the exit
 * status: 0 after --help and --version, 2 after a mistake (told on stderr). */
int options_parse(options *o, int argc, char **argv, int *first);

/* -------------------------------------------------------------------------------------------------- fread_pump.c */

/* Chunks on their way to stdout: the caller fills one while a thread writes what was filled before. */
typedef struct pump pump;
pump *pump_start(size_t chunk, unsigned ahead); /* NULL: errno */
unsigned char *pump_chunk(pump *p); /* an empty one, aligned to a page; waits for it. NULL: writing failed */
void pump_add(pump *p, size_t skip, size_t n); /* n more bytes of it may go out, after `skip` that must not */
void pump_end(pump *p);             /* no more are added to this chunk */
int pump_drain(pump *p, double *writing); /* waits until all is out; 0 or the errno of writing */

int write_out(const void *data, size_t n); /* to stdout; 0 or an errno. A closed pipe ends the process, as cat. */
double now(void); /* seconds */

/* ------------------------------------------------------------------------------------------------- fread_input.c */

typedef struct {
  uint64_t bytes, turns;
  double waiting, reading, writing; /* seconds */
} totals;

/* One file to stdout. 0, or 1 after telling stderr what is wrong; everything before that is out. */
int input_copy(const char *name, const options *o, totals *sum, pump **p);
__attribute__((format(printf, 1, 2))) void complain(const char *format, ...); /* a line on stderr */

#endif

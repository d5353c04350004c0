/* turnstile.h: readers of one disk, one at a time and in the order in which they came. No Python.h.
 *
 * Who wants to read takes a ticket, locks the byte of that number in the device's file (an OFD lock: the kernel drops
 * it when its holder dies), and goes in when fewer than `slots` lower bytes are locked. So turns are first come, first
 * served, and a reader that is killed, waiting or reading, is gone from the queue with its lock. The locks are the
 * truth; the file's one page, mapped by all, only makes it quick:
 *
 *   0   next     u64  the next ticket
 *   8   verdict  u64  what a probe found: hash of boot and mount << 2 | probe_result
 *   16  turns    u32  counts turns that ended: a futex to wait on (24: nothing)
 *   24  place    u64[509]  at ticket % 509: ticket << 24 | beat. Whoever lives counts its beat up; one that has not for
 *                     $WDS_LOCK_PATIENCE seconds (10) is marked BEAT_STALE and overtaken until it beats again.
 *
 * A page of zeros is a queue with nobody in it. One file a device and user, where lockfile.h puts it: other users and other
 * containers have their own queues. */
#ifndef WDS_TURNSTILE_H
#define WDS_TURNSTILE_H

#include <stdatomic.h>
#include <stdbool.h>

#include "lockfile.h"

typedef enum {
  LOCK_AUTO,   /* only where the disk under the file seeks: device.h */
  LOCK_ALWAYS, /* on any regular file or block device */
  LOCK_NEVER,
} lock_mode;

typedef struct turnstile turnstile;

/* Read the environment (WDS_LOCK_PATIENCE, and what lockfile.h reads), once in a process. turnstile_open does it too, but
 * where other threads may change the environment it must be done before. */
void turnstile_environment(void);

/* The turnstile of the device under fd, for one thread. *t = NULL: none is needed, or none can be had, which is
 * warned about (warn may be NULL) and is no error: reading goes on without. A probe may take 0.4 s, once a device and
 * boot. Returns 0 or ENOMEM. */
int turnstile_open(int fd, lock_mode mode, unsigned slots, lockfile_warning *warn, turnstile **t);
/* Wait for a turn. 0; ECANCELED: *stop (may be NULL) became true, looked at 50 times a second; or an errno of locking:
 * then there is no turn to leave. */
int turnstile_enter(turnstile *t, const atomic_bool *stop);
void turnstile_beat(turnstile *t); /* between two reads of a turn: still alive */
void turnstile_leave(turnstile *t);
void turnstile_close(turnstile *t); /* NULL is fine */

bool lock_mode_of(const char *name, lock_mode *mode); /* "auto", "always", "never" */
/* What $WDS_LOCK (auto) and $WDS_LOCK_SLOTS (1) say. False: what is there has no meaning. */
bool lock_choice(lock_mode *mode, unsigned *slots);

#endif

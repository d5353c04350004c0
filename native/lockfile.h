/* lockfile.h: a small file that the processes of one user share, mapped into memory. No Python.h.
 *
 * It lies in a directory that is the user's alone: $WDS_LOCK_DIR, or the first that can be had of
 * $XDG_RUNTIME_DIR/wdstools, /run/user/UID/wdstools, /tmp/wdstools-UID and /dev/shm/wdstools-UID. A link, a directory of
 * somebody else, and one that others can write to are refused, and so is such a file. */
#ifndef WDS_LOCKFILE_H
#define WDS_LOCKFILE_H

#include <stdbool.h>
#include <stddef.h>

typedef void lockfile_warning(const char *text); /* without a newline */

typedef struct {
  char name[40];
  size_t size;            /* there is room for it on the disk: the map cannot fail later */
  lockfile_warning *warn; /* may be NULL */
  void *map;              /* zeros at first; NULL: not open */
  int fd;                 /* -1: not open */
} lockfile;

/* Read WDS_LOCK_DIR and XDG_RUNTIME_DIR, once in a process, as lockfile_open does: see turnstile_environment. */
void lockfile_environment(void);
bool lockfile_open(lockfile *l); /* name, size and warn are set; false, after a warning: there is none */
void lockfile_close(lockfile *l);
__attribute__((format(printf, 2, 3))) void lockfile_warn(lockfile_warning *to, const char *format, ...);

#endif

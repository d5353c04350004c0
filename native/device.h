/* device.h: which disk lies under a file, and whether that disk seeks. No Python.h.
 *
 * Partitions, LVM, md with one member and loop devices resolve to the disk they lie on, as far as /sys tells; an array
 * of several disks is one device. A file system without a block device (FUSE, overlay) is its own device. */
#ifndef WDS_DEVICE_H
#define WDS_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
  DEVICE_NONE,  /* a pipe, a terminal, memory, a network: nothing that seeks */
  DEVICE_FLAT,  /* a disk that says it does not rotate */
  DEVICE_DISK,  /* a disk that says it does: only a probe can tell, for virtual disks say so too */
  DEVICE_MOUNT, /* a file system without a block device, FUSE above all: only a probe can tell */
} device_kind;

typedef struct {
  device_kind kind;
  unsigned major, minor; /* of the disk; of the file system for DEVICE_MOUNT */
  uint64_t mount;        /* with DEVICE_MOUNT the mount's id: its numbers are used again after umount; else 0 */
} device;

int device_of(int fd, device *d); /* 0 or an errno */

typedef enum { PROBE_UNSURE, PROBE_FLAT, PROBE_SEEKS } probe_result;
/* Some 16 random reads of 4 kB past the page cache (and 24 more, in parallel, on a DEVICE_MOUNT that is slow), at most
 * 0.4 s. A disk that seeks takes more than a millisecond for seven of eight reads; what merely is far away serves eight
 * readers as fast as one. PROBE_UNSURE: the file is below 8 MiB, cached, or cannot be read. */
probe_result device_probe(int fd, const device *d);

/* Whether the page cache has all of [pos, pos + n), as far as the file goes. false too where only the file's owner may
 * know. */
bool file_resident(int fd, uint64_t pos, size_t n);
/* Have the kernel begin to read [pos, pos + n) and nothing behind it, so that every disk of an array has its part to do
 * at once. */
void file_ask(int fd, uint64_t pos, size_t n);

#endif

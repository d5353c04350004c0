/* tar.h: from 512-byte blocks to members. No Python.h, no malloc, no I/O.
 *
 * A member in a tar, as this walker sees it (all offsets are bytes from the start of the shard):
 *
 *   start            header            offset            offset+nbytes   next
 *   | PAX/GNU blocks | 512-byte header | payload ....... | zero padding  |
 *   '---- the header group ------------'
 *
 * The header group holds any number of PAX ('x', 'g') and GNU long name ('L', 'K') members before the final
 * header, and the extension blocks of an old GNU sparse member after it. tar_next() wants the whole group in
 * one contiguous buffer and says how much more it needs when it is not.
 *
 * Strict and total: every header is checksummed, every number and PAX record is parsed whole, and anything
 * malformed is TAR_ERROR with the byte offset of the block that is at fault. Formats: POSIX.1-1988 ustar,
 * POSIX.1-2001 pax, GNU tar (basic/tar "Standard" and "GNU extensions"), v7.
 */
#ifndef WDS_TAR_H
#define WDS_TAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TAR_BLOCK 512u
#define TAR_GROUP_MAX (1u << 20) /* a header group larger than this is refused */

typedef enum { TAR_MEMBER, TAR_MORE, TAR_END, TAR_ERROR } tar_status;

/* What a member is. Only TAR_FILE carries a payload that can be a field. */
typedef enum {
  TAR_FILE = 'f',
  TAR_DIR = 'd',
  TAR_SYMLINK = 's',
  TAR_HARDLINK = 'h',
  TAR_DEVICE = 'v', /* character and block devices, fifos */
  TAR_SPARSE = 'S', /* payload is a map and extents, not the file */
  TAR_OTHER = 'o'   /* volume labels, multi-volume pieces, vendors' types */
} tar_type;

typedef struct {
  uint64_t start, header, offset, nbytes, next;
  tar_type type;
  const char *name, *link; /* not terminated; valid while the caller's buffer and this struct are */
  size_t name_len, link_len;
  char name_buf[256], link_buf[100];
} tar_member;

typedef struct {
  uint64_t pos;       /* where the next header group starts */
  size_t need;        /* after TAR_MORE: contiguous bytes wanted from pos on */
  const char *reason; /* after TAR_ERROR: one clause, static */
  uint64_t at;        /* after TAR_ERROR: the block at fault */
} tar_walker;

/* Parse the header group at w->pos; buf holds n bytes from w->pos on.
 * TAR_MEMBER: m is filled and w->pos is m->next.  TAR_MORE: call again with at least w->need bytes; at the end
 * of the data this means that the tar is truncated.  TAR_END: two zero blocks; w->pos is behind them. */
tar_status tar_next(tar_walker *w, const unsigned char *buf, size_t n, tar_member *m);

/* Whether a block has the checksum of a header and a size; *type is its typeflag. */
bool tar_is_header(const unsigned char *block, char *type, uint64_t *size);

/* Number of leading zero bytes in buf[0, n). What follows the end marker must be zero. */
size_t tar_zeros(const unsigned char *buf, size_t n);

/* Bytes of payload and padding for nbytes of payload. */
static inline uint64_t tar_padded(uint64_t nbytes) { return (nbytes + TAR_BLOCK - 1) & ~(uint64_t)(TAR_BLOCK - 1); }

/* Write the header group for a regular file into out: 512 bytes of plain ustar where name and size fit, else a
 * PAX 'x' member before it. Returns its length, or 0 where cap is too small or the name is empty or has a NUL.
 * A group takes at most tar_group_cap(name_len) bytes. */
size_t tar_format(unsigned char *out, size_t cap, const char *name, size_t name_len, uint64_t nbytes, uint64_t mtime);
static inline size_t tar_group_cap(size_t name_len) { return 4 * TAR_BLOCK + tar_padded(name_len + 128); }

#endif

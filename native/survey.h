/* survey.h: every member that a damaged shard still has, and what lies between them. No Python.h.
 *
 * scan.h stops at the first thing that is wrong. A survey goes on behind it: it looks for the next block with the
 * checksum of a tar header, at any byte, since bytes may have been lost or put in. Where a header is not where the
 * member before it ends, that member's payload is searched too: the next member may begin inside of it. A header there
 * counts only if the members that follow from it lead past the end of that payload: those of a tar within a tar end
 * inside.
 *
 * Time grows with the bytes of the shard, whatever they are; memory with its members.
 */
#ifndef WDS_SURVEY_H
#define WDS_SURVEY_H

#include "blockio.h"
#include "sample.h"
#include "tar.h"

typedef enum {
  MARK_DAMAGE = 1, /* a bad header; end: where the next member starts, or the end of the shard */
  MARK_SHIFT,      /* the member before has lost bytes: the next one starts at end, inside of its payload */
  MARK_ZEROS,      /* zeros where a header should be, too few for an end marker */
  MARK_END,        /* an end marker and the zeros behind it, with something behind them */
  MARK_TRAILING,   /* behind an end marker: no member */
  MARK_TRUNCATED,  /* the shard ends here without an end marker */
  MARK_LONE        /* a block of zeros between members */
} mark_kind;

typedef struct {
  uint64_t kind, from, at, end; /* at: the block at fault; nothing in [from, end) is a member */
  uint64_t before;              /* the number of members in front of it */
  const char *reason;           /* static, or NULL */
} survey_mark;

/* Of a member. CUT: its payload is not all there. PADDING: the bytes behind the payload are not zero from the first one
 * on, so the payload's end is not what it was. LITTER: they are not zero, but the first ones are. */
enum { MEMBER_CUT = 1, MEMBER_PADDING = 2, MEMBER_LITTER = 4 };
enum { PADDING_LOOK = 8 };

typedef struct {
  bytes_vec names, name_ends, types, flags;           /* a member: bytes; u64; a tar_type; see above */
  bytes_vec starts, headers, offsets, nbytes;         /* u64 each */
  bytes_vec key_lens, hashes, codes;                  /* bytes of the key in the name, UINT32_MAX: no field; u64; u32 */
  bytes_vec exts, ext_ends;                           /* the field names, in ASCII lower case, that codes stand for */
  bytes_vec marks;                                    /* survey_mark each */
  uint64_t nmembers, nbytes_total, pax_members, pax_bytes; /* headers that plain ustar would do without, and their bytes */
  size_t next_ext;
} survey;

/* 0, or what the bio returned, or ENOMEM. s must be empty. */
int survey_shard(bio *b, survey *s);
void survey_free(survey *s);

#endif

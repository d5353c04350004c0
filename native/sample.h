/* sample.h: member names -> key and field; which keys a shard has had; the columns of an index. No Python.h, no I/O.
 *
 * The rules are those of webdataset 1.0.2 (tariterators.py): key = directories + basename up to the first dot of the
 * basename, field = the rest in lower case, only adjacent members group. Its regular expression
 * (tariterators.base_plus_ext) has corners (hidden files, newlines in folders), which are kept.
 */
#ifndef WDS_SAMPLE_H
#define WDS_SAMPLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tar.h"

typedef struct {
  const char *key, *ext; /* ext as it stands in the name: not yet lower case */
  size_t key_len, ext_len;
} sample_name;

/* False: the member is no field of a sample (no dot, hidden file in a dotted folder, __metadata__). */
bool sample_split(const char *name, size_t len, sample_name *out);

/* XXH64 (Collet, doc/xxhash_spec.md of Cyan4973/xxHash) of p[0, n). Key look-up in the index uses seed 0. */
uint64_t sample_hash(const char *p, size_t n, uint64_t seed);

/* The keys that a shard has had, by 96 bits of hash. */
typedef struct {
  uint64_t hash;
  uint32_t check, ordinal; /* ordinal: 1 + number of the sample; 0 marks a free slot */
} seen_slot;
typedef struct {
  seen_slot *slots;
  size_t cap, used;
} seen_set;

/* Add a key. 1: it is new; 0: it was there, *ordinal says as which sample (from 0); -1: no memory. */
int seen_add(seen_set *s, const char *key, size_t len, uint64_t hash, uint32_t *ordinal);
void seen_clear(seen_set *s); /* forget the keys, keep the memory */
void seen_free(seen_set *s);

/* A growing array of bytes. */
typedef struct {
  unsigned char *data;
  size_t len, cap;
} bytes_vec;
void *vec_grow(bytes_vec *v, size_t n); /* room for n more bytes at the end, counted in; NULL: no memory */

/* One row a sample, one entry a field: what the index holds of one shard. */
typedef struct {
  bytes_vec keys, key_ends, hashes, starts, ends, field_ends;   /* a row: bytes; u64 each */
  bytes_vec field_codes, field_headers, field_offsets, field_nbytes; /* an entry: u32; u64 each */
  bytes_vec exts, ext_ends;                                     /* the field names that the codes stand for */
  uint64_t nsamples, nfields, nmembers;
  size_t next_ext;
  bool lowered; /* a field name is not in the letters of its member's name */
} columns;

/* false: no memory. columns_end closes the row that columns_sample opened. */
bool columns_sample(columns *c, const char *key, size_t len, uint64_t hash, uint64_t start);
bool columns_field(columns *c, const char *ext, size_t len, uint64_t header, uint64_t offset, uint64_t nbytes);
bool columns_has(const columns *c, const char *ext, size_t len); /* is the field in the open row? ext in lower case */
void columns_end(columns *c, uint64_t end);
bool columns_exact(const columns *c); /* every member is a field, and named key.ext as it is here */
void columns_free(columns *c);

bool ascii_lower(char *out, const char *in, size_t n); /* whether anything was upper case */

#endif

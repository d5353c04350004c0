/* blockio.c: whole reads and writes, and a cursor over blocks. */
#include "blockio.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

ssize_t pread_full(int fd, void *dst, size_t n, uint64_t pos) {
  size_t got = 0;
  while (got < n) {
    ssize_t r = pread(fd, (char *)dst + got, n - got, (off_t)(pos + got));
    if (r == 0) break;
    if (r > 0) got += (size_t)r;
    else if (errno != EINTR) return -1;
  }
  return (ssize_t)got;
}

ssize_t write_full(int fd, const void *src, size_t n) {
  size_t put = 0;
  while (put < n) {
    ssize_t r = write(fd, (const char *)src + put, n - put);
    if (r >= 0) put += (size_t)r;
    else if (errno != EINTR) return -1;
  }
  return (ssize_t)put;
}

int block_fill(block *b, int fd, bool regular, uint64_t pos) {
  while (b->len < b->cap) {
    ssize_t r = regular ? pread(fd, b->data + b->len, b->cap - b->len, (off_t)(pos + b->len))
                        : read(fd, b->data + b->len, b->cap - b->len);
    if (r == 0) return 0;
    if (r > 0) b->len += (size_t)r;
    else if (errno != EINTR) return errno;
  }
  return 0;
}

static size_t left(const bio *b) {
  if (!b->cur || b->pos < b->cur_pos || b->pos - b->cur_pos >= b->cur->len) return 0;
  return b->cur->len - (size_t)(b->pos - b->cur_pos);
}

const unsigned char *bio_here(const bio *b, uint64_t n) {
  return left(b) >= n && b->cur ? b->cur->data + (b->pos - b->cur_pos) : NULL;
}

/* The bytes lie in two blocks or more: put them together, and leave the cursor where it is. A second look at the same
 * place wants more of what was joined: b->cur is behind the cursor then, and the joint is all there is of it. */
static int join_blocks(bio *b, size_t n, const unsigned char **p, size_t *avail) {
  uint64_t pos = b->pos;
  int error = 0;
  if (b->joint_pos != pos) b->joint.len = 0;
  b->joint_pos = pos;
  b->pos += b->joint.len;
  while (b->joint.len < n) {
    size_t have = left(b), take = n - b->joint.len < have ? n - b->joint.len : have;
    if (take) {
      void *at = vec_grow(&b->joint, take);
      if (!at) {
        error = ENOMEM;
        break;
      }
      memcpy(at, bio_here(b, take), take);
      b->pos += take;
    } else if ((error = b->more(b)) || !b->cur->len) {
      break;
    }
  }
  b->pos = pos;
  *p = b->joint.data;
  *avail = b->joint.len;
  return error;
}

int bio_peek(bio *b, size_t n, const unsigned char **p, size_t *avail) {
  b->wanted = n;
  if (left(b) < n) {
    bool joined = b->joint.len && b->joint_pos == b->pos;
    if (!b->random && (left(b) || joined)) return join_blocks(b, n, p, avail);
    int error = b->more(b);
    if (error) return error;
    if (left(b) < n && b->cur->len && !b->random) return join_blocks(b, n, p, avail);
  }
  *avail = left(b);
  *p = bio_here(b, *avail);
  return 0;
}

int bio_copy(bio *b, unsigned char *dst, size_t n, size_t *copied) {
  *copied = 0;
  while (*copied < n) {
    size_t have = left(b), take = n - *copied < have ? n - *copied : have;
    if (!have) {
      int error = b->more(b);
      if (error) return error;
      if (!b->cur->len) return 0;
      continue;
    }
    memcpy(dst + *copied, bio_here(b, take), take);
    *copied += take;
    b->pos += take;
  }
  return 0;
}

int bio_skip(bio *b, uint64_t n, uint64_t *skipped) {
  *skipped = 0;
  if (b->random) {
    b->pos += n;
    *skipped = n;
    return 0;
  }
  while (*skipped < n) {
    uint64_t have = left(b), take = n - *skipped < have ? n - *skipped : have;
    if (!have) {
      int error = b->more(b);
      if (error) return error;
      if (!b->cur->len) return 0;
    }
    *skipped += take;
    b->pos += take;
  }
  return 0;
}

void bio_free(bio *b) {
  free(b->joint.data);
  b->joint = (bytes_vec){0};
}

/* 256 KiB stay in the second level cache: half again as fast as 1 MiB. */
enum { WINDOW_MIN = 4096, WINDOW_MAX = 256 << 10, JUMP = 32 << 10 };

int bio_window_more(bio *b) {
  file_window *w = b->owner;
  bool jumped = b->pos > w->last_end + JUMP; /* over a payload; otherwise it reads on */
  w->want = jumped ? WINDOW_MIN : w->want * 2 > WINDOW_MAX ? WINDOW_MAX : w->want * 2;
  if (w->want < b->wanted) w->want = b->wanted < w->window.cap ? b->wanted : w->window.cap;
  /* what follows is not of this shard; some files, as those of /proc, do not tell their size */
  uint64_t left = !b->size ? UINT64_MAX : b->size > b->pos ? b->size - b->pos : 0;
  ssize_t n = pread_full(w->fd, w->window.data, w->want < left ? w->want : (size_t)left, b->pos);
  if (n < 0) return errno;
  w->window.len = (size_t)n;
  b->cur_pos = b->pos;
  w->last_end = b->pos + (size_t)n;
  return 0;
}

bool bio_open_window(bio *b, file_window *w, int fd, uint64_t size) {
  *w = (file_window){.fd = fd, .want = WINDOW_MIN};
  w->window.cap = TAR_GROUP_MAX; /* what is not used of it is never paged in */
  w->window.data = malloc(w->window.cap);
  *b = (bio){.more = bio_window_more, .owner = w, .cur = &w->window, .size = size, .random = true};
  return w->window.data != NULL;
}

void bio_close_window(bio *b, file_window *w) {
  bio_free(b);
  free(w->window.data);
  w->window = (block){0};
}

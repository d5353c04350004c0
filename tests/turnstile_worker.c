/* What the tests ask of native/turnstile.c and native/device.c, without a disk.
 *
 *   worker turns FILE SLOTS TURNS HOLD_MS   take turns; a line "+ PID" and "- PID" on stdout (O_APPEND) for each
 *   worker disk MAJOR MINOR                 the kind and number of the disk under a block device, by WDS_SYS
 *   worker probe FILE KIND US HEADS         device_probe, where a read takes US microseconds of one of HEADS */
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static sem_t heads;
static unsigned read_us;

static ssize_t slow_pread(int fd, void *to, size_t n, off_t at) {
  sem_wait(&heads);
  usleep(read_us);
  ssize_t r = pread(fd, to, n, at);
  sem_post(&heads);
  return r;
}

#define pread slow_pread
#include "device.c"
#undef pread
#include "turnstile.h"

static void warn(const char *text) { fprintf(stderr, "%s\n", text); }

static void say(char sign) {
  char line[32];
  int n = snprintf(line, sizeof line, "%c %d\n", sign, (int)getpid());
  if (write(1, line, (size_t)n) != n) _exit(3);
}

int main(int argc, char **argv) {
  device d = {.kind = DEVICE_NONE};
  if (argc == 4 && !strcmp(argv[1], "disk")) {
    int error = device_of_block((unsigned)atoi(argv[2]), (unsigned)atoi(argv[3]), DEPTH, &d);
    printf("%d %u:%u %d\n", error, d.major, d.minor, d.kind);
    return 0;
  }
  int fd = argc == 6 ? open(argv[2], O_RDONLY) : -1;
  if (fd < 0) return 2;
  if (!strcmp(argv[1], "probe")) {
    d.kind = !strcmp(argv[3], "disk") ? DEVICE_DISK : DEVICE_MOUNT;
    read_us = (unsigned)atoi(argv[4]);
    sem_init(&heads, 0, (unsigned)atoi(argv[5]));
    static const char *const names[] = {"unsure", "flat", "seeks"};
    puts(names[device_probe(fd, &d)]);
    return 0;
  }
  turnstile *t;
  if (turnstile_open(fd, LOCK_ALWAYS, (unsigned)atoi(argv[3]), warn, &t) || !t) return 1;
  for (int i = 0; i < atoi(argv[4]); i++) {
    if (turnstile_enter(t, NULL)) return 1;
    say('+');
    usleep(1000 * (unsigned)atoi(argv[5]));
    say('-');
    turnstile_leave(t);
  }
  turnstile_close(t);
  close(fd);
  return 0;
}

/* queue_reader.c - print each message of a gateway's queue: `queue_reader NAME LABEL`. */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <inttypes.h>
#include <mqueue.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include "ringcast_record.h"

/* Print the records of one queue message, a long message part by part; 0 after the last one. */
static int print_records(const char *data, size_t length)
{
    static uint64_t next; /* a sequence below it comes a second time, after a gateway's death */
    struct ringcast_record r;
    for (; length >= sizeof r; data += sizeof r + r.size, length -= sizeof r + r.size) {
        memcpy(&r, data, sizeof r);
        if (r.size > length - sizeof r || r.zero != 0)
            break;
        if (r.type == RINGCAST_GAP || r.type == RINGCAST_ENDED)
            printf("(%" PRIu64 " missed)\n", r.gap);
        if (r.type == RINGCAST_ENDED)
            return 0;
        if (r.type != RINGCAST_MESSAGE || r.sequence < next)
            continue;
        if (r.offset == 0)
            printf("%" PRIu64 " (%" PRIu64 " missed) ", r.sequence, r.gap);
        fwrite(data + sizeof r, 1, r.size, stdout);
        if (r.offset + r.size == r.total)
            next = r.sequence + 1, putchar('\n');
    }
    if (length > 0)
        fprintf(stderr, "the queue has what no gateway puts in\n");
    return length == 0;
}

int main(int argc, char **argv)
{
    char name[64] = "";
    struct mq_attr attr;
    if (argc != 3)
        return fprintf(stderr, "usage: queue_reader NAME LABEL\n"), 2;
    snprintf(name, sizeof name, "/rc.%s.q.%s", argv[1], argv[2]);
    mqd_t queue = mq_open(name, O_RDONLY);
    if (queue == (mqd_t)-1 || mq_getattr(queue, &attr) != 0)
        return perror(name), 1;
    char *data = malloc((size_t)attr.mq_msgsize);
    for (int more = data != NULL; more; fflush(stdout)) {
        struct stat found;
        struct timespec until; /* wake up once a second: a queue that is removed wakes nobody */
        int removed = fstat(queue, &found) == 0 && found.st_nlink == 0;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec++;
        ssize_t length = mq_timedreceive(queue, data, (size_t)attr.mq_msgsize, NULL, &until);
        more = length < 0 ? !removed : print_records(data, (size_t)length);
    }
    free(data);
    return mq_close(queue) != 0;
}

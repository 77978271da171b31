/* native.h - what the programs in C of the benchmarks share: their arguments, the check of a message, and
 * their figures.
 *
 *     PROGRAM NAME SIZE ROUND FILLER REPEATS
 *
 * A message is a counter, a filler and a last word made of the counter; a round of ROUND messages is
 * published over and over, then the mark. Both words of each message are compared with what is due, and
 * each 64th message is compared whole. FILLER is a file with the filler. REPEATS: how often to attach and
 * read all. The times are those of reading; attaching is left out.
 */
#ifndef RINGCAST_BENCHMARKS_NATIVE_H
#define RINGCAST_BENCHMARKS_NATIVE_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SAMPLE 64
#define SMALLEST 16
#define MARK (UINT64_MAX - 15)

typedef struct arguments {
    const char *name;
    size_t size;
    uint64_t round;
    char *filler;
    long repeats;
} arguments;

typedef struct totals {
    uint64_t received, wrong;
    double seconds, cpu_seconds;
} totals;

/* Read what NAME, SIZE, ROUND and FILLER say. 0, or what the program is to return. */
static int read_contents(arguments *a, char **words)
{
    a->name = words[0];
    a->size = strtoull(words[1], NULL, 10);
    a->round = strtoull(words[2], NULL, 10);
    a->filler = calloc(1, a->size);
    FILE *file = fopen(words[3], "rb");
    if (!a->filler || !file || fread(a->filler, 1, a->size - SMALLEST, file) != a->size - SMALLEST)
        return fprintf(stderr, "cannot read %s\n", words[3]), 1;
    fclose(file);
    return 0;
}

/* 0, or what the program is to return. */
static inline int read_arguments(arguments *a, int count, char **words)
{
    if (count != 6)
        return fprintf(stderr, "usage: %s NAME SIZE ROUND FILLER REPEATS\n", words[0]), 2;
    a->repeats = strtol(words[5], NULL, 10);
    return read_contents(a, words + 1);
}

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t last_word(uint64_t counter) { return counter * UINT64_C(0x9E3779B97F4A7C15); }

/* Is this the message that is due? */
static int is_due(const arguments *a, const void *bytes, uint64_t length, uint64_t due)
{
    const char *at = bytes;
    uint64_t counter, last;
    if (length != a->size)
        return 0;
    memcpy(&counter, at, 8);
    memcpy(&last, at + a->size - 8, 8);
    return counter == due && last == last_word(due) &&
           (due % SAMPLE || memcmp(at + 8, a->filler, a->size - SMALLEST) == 0);
}

static inline void print_totals(const totals *all)
{
    printf("{\"received\": %" PRIu64 ", \"seconds\": %.9f, \"cpu_seconds\": %.9f, \"wrong\": %" PRIu64
           "}\n", all->received, all->seconds, all->cpu_seconds, all->wrong);
}

#endif

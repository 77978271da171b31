/* bed.h - where a thread that is about to sleep can be held, instead of sleeping. Before attach.h. */
#ifndef RINGCAST_TEST_BED_H
#define RINGCAST_TEST_BED_H

#define _GNU_SOURCE
#include <semaphore.h>
#include <stddef.h>
#include <time.h>

/* What a thread does when nothing is left for it but to sleep on its semaphore; NULL: it sleeps. */
static _Thread_local void (*before_bed)(sem_t *);

static int go_to_bed(sem_t *semaphore, clockid_t clock, const struct timespec *until)
{
    if (before_bed)
        before_bed(semaphore);
    return sem_clockwait(semaphore, clock, until);
}
#define sem_clockwait go_to_bed

#endif

/* endpoint.h - what an endpoint keeps for itself in its own process: the descriptor that holds its
 * kernel lock, and the order in which threads may sleep in it, leave it and close it.
 *
 * The lock. Liveness is an open-file-description lock (fcntl(2), F_OFD_SETLK): it ends when the
 * last descriptor of its open file description is closed, and the kernel closes those of a dead
 * process. A forked child inherits the descriptor, and would keep its dead parent alive for
 * everyone else; so endpoints are registered, and a pthread_atfork handler closes their
 * descriptors in the child and marks them RC_FORKED. What execs needs nothing: close-on-exec.
 *
 * The registry is a static variable, since the handlers take no arguments. So one translation unit
 * of a program (or of a set of extension modules that share endpoints) defines
 * RC_ENDPOINT_REGISTRY before it includes this header, calls rc_register_fork_handlers() once, and
 * makes and finishes all endpoints. The others only use them. A second such unit has a registry of
 * its own, for its own endpoints.
 *
 * Threads. Any number of threads may wait in one endpoint, but its reader slot or lane has one waiter
 * bit and one semaphore: the first sleeps on them, the others on `changed`, and the one that wakes
 * broadcasts to the rest.
 *
 *   enter:  inside++, unless closing        turn:  sleeping = 1, or wait on `changed`
 *   leave:  inside--, broadcast             close: closing, wake, wait until inside == 0, unmap
 */
#ifndef RINGCAST_ENDPOINT_H
#define RINGCAST_ENDPOINT_H

#include "base.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* 0 is none of them: what was never made is not open. */
enum { RC_OPEN = 1, RC_CLOSING = 2, RC_SHUT = 3, RC_FORKED = 4 };

typedef struct rc_endpoint {
    int lock_fd;
    dev_t device; /* of the segment that carries the locks */
    ino_t inode;
    atomic_int phase;
    int inside;   /* threads waiting in the endpoint */
    int sleeping; /* one of them sleeps on the semaphore */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct rc_endpoint *previous, *following; /* registry */
} rc_endpoint;

static inline int rc_endpoint_phase(rc_endpoint *e) { return atomic_load(&e->phase); }

static inline int rc_lock_operation(int fd, int command, short type, int64_t byte, short *found)
{
    struct flock lock;
    memset(&lock, 0, sizeof lock);
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = byte;
    lock.l_len = 1;
    if (fcntl(fd, command, &lock) != 0)
        return errno;
    if (found)
        *found = lock.l_type;
    return 0;
}

/* 0: the byte is locked by this description; EAGAIN or EACCES: by another one; else an errno. */
static inline int rc_lock_try(int fd, int64_t byte)
{
    return rc_lock_operation(fd, F_OFD_SETLK, F_WRLCK, byte, NULL);
}

static inline int rc_lock_release(int fd, int64_t byte)
{
    return rc_lock_operation(fd, F_OFD_SETLK, F_UNLCK, byte, NULL);
}

/* 1: another description holds the byte; 0: none does; below 0: -errno. Never asks about locks of
 * `fd` itself, which the kernel reports as none. */
static inline int rc_lock_held(int fd, int64_t byte)
{
    short found = F_UNLCK;
    int error = rc_lock_operation(fd, F_OFD_GETLK, F_WRLCK, byte, &found);
    return error ? -error : found != F_UNLCK;
}

/* ---- sleeping in turn -------------------------------------------------------------------- */

typedef enum rc_turn { RC_MY_TURN, RC_LOOK_AGAIN, RC_CLOSED_MEANWHILE } rc_turn;

/* Go to sleep: RC_MY_TURN if the semaphore is the caller's until rc_endpoint_wake_up(); else the
 * caller has waited on the others until the deadline at most, and is to look again. */
static inline rc_turn rc_endpoint_turn(rc_endpoint *e, int64_t deadline_ns)
{
    struct timespec t = {.tv_sec = deadline_ns / 1000000000, .tv_nsec = deadline_ns % 1000000000};
    rc_turn turn = RC_MY_TURN;
    if (atomic_load(&e->phase) != RC_OPEN) /* in a forked child the mutex may be held for ever */
        return RC_CLOSED_MEANWHILE;
    pthread_mutex_lock(&e->mutex);
    if (atomic_load(&e->phase) != RC_OPEN) {
        turn = RC_CLOSED_MEANWHILE;
    } else if (e->sleeping) {
        e->inside++;
        pthread_cond_timedwait(&e->changed, &e->mutex, &t);
        e->inside--;
        turn = RC_LOOK_AGAIN;
        pthread_cond_broadcast(&e->changed);
    } else {
        e->inside++;
        e->sleeping = 1;
    }
    pthread_mutex_unlock(&e->mutex);
    return turn;
}

static inline void rc_endpoint_wake_up(rc_endpoint *e)
{
    pthread_mutex_lock(&e->mutex);
    e->inside--;
    e->sleeping = 0;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->mutex);
}

/* Let the thread that sleeps, if there is one, look again. A token that lies there already does as well:
 * who takes it has the mutex before it looks. One that spins takes none, so they would pile up. */
static inline void rc_endpoint_rouse(rc_endpoint *e, sem_t *wake)
{
    int tokens = 0;
    pthread_mutex_lock(&e->mutex);
    if (e->sleeping && (sem_getvalue(wake, &tokens) != 0 || tokens <= 0))
        rc_post(wake);
    pthread_mutex_unlock(&e->mutex);
}

/* Nobody may go to sleep any more; wake whoever waits on the others. The caller posts the
 * semaphore for the one that sleeps on it, then calls rc_endpoint_empty(). */
static inline void rc_endpoint_closing(rc_endpoint *e)
{
    pthread_mutex_lock(&e->mutex);
    if (atomic_load(&e->phase) == RC_OPEN)
        atomic_store(&e->phase, RC_CLOSING);
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->mutex);
}

/* 1 when no thread is inside, waiting for that until the deadline at most. */
static inline int rc_endpoint_empty(rc_endpoint *e, int64_t deadline_ns)
{
    struct timespec t = {.tv_sec = deadline_ns / 1000000000, .tv_nsec = deadline_ns % 1000000000};
    pthread_mutex_lock(&e->mutex);
    while (e->inside && pthread_cond_timedwait(&e->changed, &e->mutex, &t) != ETIMEDOUT)
        ;
    int empty = e->inside == 0;
    pthread_mutex_unlock(&e->mutex);
    return empty;
}

/* ---- making and finishing, for the one translation unit that has the registry -------------- */

#ifdef RC_ENDPOINT_REGISTRY

static pthread_mutex_t rc_registry_mutex = PTHREAD_MUTEX_INITIALIZER;
static rc_endpoint *rc_registry;

static void rc_before_fork(void) { pthread_mutex_lock(&rc_registry_mutex); }
static void rc_after_fork_in_parent(void) { pthread_mutex_unlock(&rc_registry_mutex); }

static void rc_after_fork_in_child(void)
{
    for (rc_endpoint *e = rc_registry; e; e = e->following) {
        atomic_store(&e->phase, RC_FORKED);
        close(e->lock_fd);
        e->lock_fd = -1;
    }
    rc_registry = NULL;
    pthread_mutex_unlock(&rc_registry_mutex);
}

static inline int rc_register_fork_handlers(void)
{
    return pthread_atfork(rc_before_fork, rc_after_fork_in_parent, rc_after_fork_in_child);
}

/* Open the shared-memory object `name` for its locks alone: a mapping made through the descriptor
 * would keep the lock beyond close(). Opened under the registry's mutex, so no fork comes between.
 * 0, or an errno. */
static inline int rc_endpoint_init(rc_endpoint *e, const char *name)
{
    pthread_condattr_t attributes;
    memset(e, 0, sizeof *e);
    pthread_mutex_lock(&rc_registry_mutex);
    e->lock_fd = shm_open(name, O_RDWR, 0); /* close-on-exec, says POSIX */
    if (e->lock_fd < 0) {
        int error = errno;
        pthread_mutex_unlock(&rc_registry_mutex);
        return error;
    }
    struct stat status;
    if (fstat(e->lock_fd, &status) != 0)
        memset(&status, 0, sizeof status); /* cannot happen; then it leads nowhere */
    e->device = status.st_dev;
    e->inode = status.st_ino;
    pthread_mutex_init(&e->mutex, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&e->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    atomic_store(&e->phase, RC_OPEN);
    e->following = rc_registry;
    if (rc_registry)
        rc_registry->previous = e;
    rc_registry = e;
    pthread_mutex_unlock(&rc_registry_mutex);
    return 0;
}

/* Give up the lock and leave the registry. Nobody is inside. In a forked child, and the second time,
 * a no-op. */
static inline void rc_endpoint_finish(rc_endpoint *e)
{
    if (atomic_load(&e->phase) == RC_FORKED || atomic_load(&e->phase) == RC_SHUT)
        return;
    pthread_mutex_lock(&rc_registry_mutex);
    if (e->previous)
        e->previous->following = e->following;
    else
        rc_registry = e->following;
    if (e->following)
        e->following->previous = e->previous;
    atomic_store(&e->phase, RC_SHUT);
    close(e->lock_fd); /* before a fork can come that would not find it registered */
    e->lock_fd = -1;
    pthread_mutex_unlock(&rc_registry_mutex);
}

/* Last of all, when no thread can come any more: until then one that was about to wait may still
 * ask for its turn, and finds the end closed. */
static inline void rc_endpoint_free(rc_endpoint *e)
{
    if (atomic_load(&e->phase) == RC_FORKED)
        return; /* the mutex may have been held by a thread that the child does not have */
    pthread_cond_destroy(&e->changed);
    pthread_mutex_destroy(&e->mutex);
}

#endif

#endif

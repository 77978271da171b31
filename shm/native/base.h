/* base.h - the toolbox of the native core: atomics by short names, fences, clocks, copies between
 * private and shared memory, semaphores as wake-up tokens, and how an endpoint waits.
 *
 * Nothing here knows of rings. Everything is static inline, so a program that includes it links
 * nothing but the C library.
 */
#ifndef RINGCAST_BASE_H
#define RINGCAST_BASE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sem_clockwait, F_OFD_SETLK */
#endif
#include <errno.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define RC_SLICE_NS INT64_C(100000000)     /* longest sleep before looking around: 100 ms */
#define RC_SPINS_PER_CLOCK 64              /* looks between two readings of the clock */
#define RC_DRAIN_MAX 1024u                 /* tokens taken back from a semaphore at once */

#define rc_likely(x) __builtin_expect(!!(x), 1)
#define rc_unlikely(x) __builtin_expect(!!(x), 0)
#define rc_load(p) atomic_load_explicit((p), memory_order_relaxed)
#define rc_load_acquire(p) atomic_load_explicit((p), memory_order_acquire)
#define rc_store(p, v) atomic_store_explicit((p), (v), memory_order_relaxed)
#define rc_store_release(p, v) atomic_store_explicit((p), (v), memory_order_release)

/* A test build can make the process die at a numbered step (see tests/integration). */
#ifdef RC_FAULTS
void rc_fault(int step);
#define RC_FAULT(step) rc_fault(step)
#else
#define RC_FAULT(step) ((void)0)
#endif

#if defined(__SANITIZE_THREAD__)
#define RC_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define RC_TSAN 1
#endif
#endif

/* ThreadSanitizer does not know seq_cst fences. Where only a fence orders two accesses both sides
 * are atomic, so nothing is hidden from it but the order itself, which the models check. */
#if defined(__SANITIZE_THREAD__)
#pragma GCC diagnostic ignored "-Wtsan"
#endif

static inline void rc_fence(void) { atomic_thread_fence(memory_order_seq_cst); }
static inline void rc_fence_acquire(void) { atomic_thread_fence(memory_order_acquire); }

static inline void rc_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

static inline int64_t rc_clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline int64_t rc_now_ns(void) { return rc_clock_ns(CLOCK_MONOTONIC); }


/* Copies between private memory and the arena. A lossy reader may copy what the writer is writing
 * and throws the copy away; ThreadSanitizer is shown that race as relaxed atomics. */
static inline void rc_copy_in(uint8_t *arena, const uint8_t *from, size_t n)
{
#if defined(RC_TSAN)
    for (size_t i = 0; i < n; i++)
        __atomic_store_n(arena + i, from[i], __ATOMIC_RELAXED);
#else
    if (n)
        memcpy(arena, from, n);
#endif
}

static inline void rc_copy_out(uint8_t *to, const uint8_t *arena, size_t n)
{
#if defined(RC_TSAN)
    for (size_t i = 0; i < n; i++)
        to[i] = __atomic_load_n(arena + i, __ATOMIC_RELAXED);
#else
    if (n)
        memcpy(to, arena, n);
#endif
}
/* ---- semaphores and waiting ------------------------------------------------------------- */

/* How an endpoint waits. spin_ns is how long to look before sleeping; RC_BLOCKING only. */
typedef enum rc_wait_kind { RC_BUSY_SPIN = 0, RC_YIELDING = 1, RC_BLOCKING = 2 } rc_wait_kind;
typedef struct rc_wait_strategy {
    rc_wait_kind kind;
    int64_t spin_ns;
} rc_wait_strategy;

/* To spin is worth its CPU time if what is waited for comes while one spins, and the last waits are the
 * best guess at the next one. One spin in vain says nothing: it is what comes before a burst. After
 * two in a row an endpoint sleeps at once, until it has had a pause of so many waits that were short,
 * RC_SHORT_SPINS times a spin at most; then it spins once to see. The pause doubles with each
 * spin in vain. For a sleep may be short because one slept: on a shared core a peer answers at once
 * when it gets the core, and never while its partner spins there.
 *
 * To offer the core while spinning (sched_yield) would serve such a peer, too. But the core then goes to
 * whoever else wants it, and for a whole time slice, milliseconds; a sleeper that is woken has it back
 * at once. Who waits on after a slice (RC_SLICE_NS) begins another wait. */
#define RC_SHORT_SPINS 4
#define RC_PAUSE_MAX 64

/* What an endpoint remembers of its waits: {0} at first. */
typedef struct {
    int64_t began_ns;
    int32_t pause;      /* short waits to go until it spins again */
    int32_t next_pause; /* after the next spin in vain */
} rc_waits;

static inline rc_wait_strategy rc_wait_begins(rc_waits *waits, rc_wait_strategy strategy)
{
    if (strategy.spin_ns == 0)
        return strategy; /* a look at the clock would be in vain */
    waits->began_ns = rc_now_ns();
    if (waits->pause)
        strategy.spin_ns = 0;
    return strategy;
}

static inline void rc_wait_ended(rc_waits *waits, rc_wait_strategy strategy)
{
    if (strategy.spin_ns == 0)
        return;
    int64_t lasted_ns = rc_now_ns() - waits->began_ns;
    if (waits->pause) {
        if (lasted_ns < RC_SHORT_SPINS * strategy.spin_ns)
            waits->pause--;
    } else if (lasted_ns < strategy.spin_ns) {
        waits->next_pause = 0;
    } else {
        waits->pause = waits->next_pause;
        waits->next_pause = waits->pause ? 2 * waits->pause : 1;
        if (waits->next_pause > RC_PAUSE_MAX)
            waits->next_pause = RC_PAUSE_MAX;
    }
}

/* Take a token before the deadline (CLOCK_MONOTONIC). 1: taken; 0: not, or a signal came. */
static inline int rc_take_token_until(sem_t *semaphore, int64_t deadline_ns)
{
    struct timespec t = {.tv_sec = deadline_ns / 1000000000, .tv_nsec = deadline_ns % 1000000000};
    return sem_clockwait(semaphore, CLOCK_MONOTONIC, &t) == 0;
}

/* EOVERFLOW would need 2^31 stale tokens; the sleeper looks at least each 100 ms all the same. */
static inline void rc_post(sem_t *semaphore) { (void)sem_post(semaphore); }

/* Something that one thread tells another. */
typedef struct rc_flag {
    _Atomic uint32_t up;
} rc_flag;

static inline void rc_drain(sem_t *semaphore)
{
    for (uint32_t i = 0; i < RC_DRAIN_MAX && sem_trywait(semaphore) == 0; i++)
        ;
}

#endif

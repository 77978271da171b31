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

/* Bytes in whole words of shared memory; the last word is filled up with zeros. */
static inline void rc_store_words(_Atomic uint64_t *words, const char *bytes, uint64_t length)
{
    for (uint64_t at = 0; at < length; at += 8) {
        uint64_t word = 0;
        memcpy(&word, bytes + at, length - at < 8 ? length - at : 8);
        rc_store(&words[at / 8], word);
    }
}

static inline void rc_load_words(const _Atomic uint64_t *words, char *bytes, uint64_t length)
{
    for (uint64_t at = 0; at < length; at += 8) {
        uint64_t word = rc_load(&words[at / 8]);
        memcpy(bytes + at, &word, length - at < 8 ? length - at : 8);
    }
}

/* ---- semaphores and waiting ------------------------------------------------------------- */

/* How an endpoint waits. spin_ns is how long to look before sleeping; RC_BLOCKING only. */
typedef enum rc_wait_kind { RC_BUSY_SPIN = 0, RC_YIELDING = 1, RC_BLOCKING = 2 } rc_wait_kind;
typedef struct rc_wait_strategy {
    rc_wait_kind kind;
    int64_t spin_ns;
} rc_wait_strategy;

/* To spin is worth its CPU time if what is waited for comes soon, and the last waits are the best
 * guess at the next one. One long wait says nothing: it is what comes before a burst. After two in a
 * row, each RC_LONG_SPINS times as long as one spins, an endpoint pauses: it sleeps at once until a wait
 * was short. Then it spins again; and if that wait is long, the next pause takes twice as many short
 * waits, up to RC_PAUSE_MAX. Who waits on after a slice (RC_SLICE_NS) begins another wait.
 *
 * Whoever spins offers the core now and then (sched_yield): on a shared core it would keep its peer
 * from answering, and a writer from writing more. But the core goes to anybody who wants it, and beside a
 * busy process it is away for a time slice, milliseconds, while a sleeper that is woken has it back at
 * once. That is what the pauses are for, too. In a flood they would do harm: a writer that ran
 * meanwhile has written a lot, and one that has to wake a sleeper for every few messages gets nowhere.
 * So a wait is not long if messages came faster than one could be woken for each. */
#define RC_LONG_SPINS 4
#define RC_PAUSE_MAX 64
#define RC_FLOOD_SPINS 8 /* that many messages in the time of one spin are a flood */

/* What an endpoint remembers of its waits: {0} at first. */
typedef struct {
    int64_t began_ns;
    int64_t lasted_ns;
    uint64_t taken;     /* messages when the last wait began */
    int32_t pause;      /* short waits to go until it spins again */
    int32_t next_pause; /* after the next long wait */
} rc_waits;

/* Between two looks. */
static inline void rc_pause(rc_wait_kind kind)
{
    if (kind == RC_YIELDING)
        sched_yield();
    else
        rc_relax();
}

/* After each RC_SPINS_PER_CLOCK looks, round by round: who will sleep in the end offers the core, soon
 * at first and then ever more seldom, since it is a system call. */
static inline void rc_offer_core(rc_wait_kind kind, uint32_t round)
{
    if (kind == RC_BLOCKING && (round & (round + 1)) == 0) /* 0, 1, 3, 7, 15 and so on */
        sched_yield();
}

/* Judge the last wait, now that it is known how many messages it brought. */
static inline void rc_waits_judge(rc_waits *waits, int64_t spin_ns, int64_t since_ns, uint64_t brought)
{
    int is_long = waits->lasted_ns >= RC_LONG_SPINS * spin_ns &&
                  brought < (uint64_t)(since_ns / (spin_ns / RC_FLOOD_SPINS + 1));
    if (waits->pause) {
        waits->pause -= !is_long;
    } else if (!is_long) {
        waits->next_pause = 0;
    } else {
        waits->pause = waits->next_pause;
        waits->next_pause = waits->pause ? 2 * waits->pause : 1;
        if (waits->next_pause > RC_PAUSE_MAX)
            waits->next_pause = RC_PAUSE_MAX;
    }
}

/* `taken`: how many messages the endpoint has taken so far. */
static inline rc_wait_strategy rc_wait_begins(rc_waits *waits, rc_wait_strategy strategy,
                                              uint64_t taken)
{
    if (strategy.spin_ns == 0)
        return strategy; /* a look at the clock would be in vain */
    int64_t now = rc_now_ns();
    if (waits->began_ns)
        rc_waits_judge(waits, strategy.spin_ns, now - waits->began_ns, taken - waits->taken);
    waits->began_ns = now;
    waits->taken = taken;
    if (waits->pause)
        strategy.spin_ns = 0;
    return strategy;
}

static inline void rc_wait_ended(rc_waits *waits, rc_wait_strategy strategy)
{
    if (strategy.spin_ns != 0)
        waits->lasted_ns = rc_now_ns() - waits->began_ns;
}

/* Take a token before the deadline (CLOCK_MONOTONIC). 1: taken; 0: not, or a signal came. */
static inline int rc_take_token_until(sem_t *semaphore, int64_t deadline_ns)
{
    struct timespec t = {.tv_sec = deadline_ns / 1000000000, .tv_nsec = deadline_ns % 1000000000};
    return sem_clockwait(semaphore, CLOCK_MONOTONIC, &t) == 0;
}

/* EOVERFLOW would need 2^31 stale tokens; the sleeper looks at least each 100 ms all the same. */
static inline void rc_post(sem_t *semaphore) { (void)sem_post(semaphore); }

/* The end of a sleep: take back the bit that says so. If a poster has it, its token is on the way, and was
 * meant for a sleep that is over. */
static inline void rc_is_awake(_Atomic uint64_t *word, uint64_t bit, sem_t *wake, int token)
{
    /* acq_rel: pairs with whoever takes the bit to post */
    if (!(atomic_fetch_and_explicit(word, ~bit, memory_order_acq_rel) & bit) && !token)
        (void)sem_trywait(wake); /* never wait for it: its poster may have died */
}

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

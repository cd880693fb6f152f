/* An eventcount: how a worker that found nothing to do sleeps without missing what comes next.
 *
 *     waiter                              notifier
 *     key = evc_prepare(ec)               publish the work
 *     look for work once more             evc_notify(ec, ...)
 *       found: evc_cancel(ec)
 *       nothing: evc_wait(ec, key, ...)
 *
 * Either the second look finds the work, or the notifier sees the waiter: the two sequentially
 * consistent fences admit no third case. A notifier that finds nobody waiting pays one fence and
 * two loads. `searching` counts workers that are awake and looking; while there is one, new work
 * needs no wake-up (throttling). The scheme follows Eigen's and rayon's; the proof by exhaustion is
 * in tests/native. Plain C11 and POSIX threads, no Python.
 */
#ifndef ORCHESTRA_EVENTCOUNT_H
#define ORCHESTRA_EVENTCOUNT_H

#include <errno.h>
#include <pthread.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#ifndef EVC_PREPARE_WAITERS
#define EVC_PREPARE_WAITERS memory_order_relaxed
#endif
#ifndef EVC_PREPARE_FENCE
#define EVC_PREPARE_FENCE memory_order_seq_cst
#endif
#ifndef EVC_PREPARE_EPOCH
#define EVC_PREPARE_EPOCH memory_order_acquire
#endif
#ifndef EVC_NOTIFY_FENCE
#define EVC_NOTIFY_FENCE memory_order_seq_cst
#endif
#ifndef EVC_NOTIFY_SEARCHING
#define EVC_NOTIFY_SEARCHING memory_order_relaxed
#endif
#ifndef EVC_NOTIFY_WAITERS
#define EVC_NOTIFY_WAITERS memory_order_relaxed
#endif
#ifndef EVC_NOTIFY_EPOCH
#define EVC_NOTIFY_EPOCH memory_order_relaxed
#endif
#ifndef EVC_SEARCH_COUNT
#define EVC_SEARCH_COUNT memory_order_relaxed
#endif
#ifndef EVC_SEARCH_FENCE
#define EVC_SEARCH_FENCE memory_order_seq_cst
#endif

typedef struct evc {
    alignas(64) _Atomic int64_t waiters;
    _Atomic int64_t searching;
    _Atomic int64_t epoch; /* written under the mutex */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
} evc;

/* NULL when memory or the system's resources are short. */
static inline evc *evc_new(void)
{
    evc *ec = aligned_alloc(alignof(evc), sizeof(evc));
    if (ec == NULL)
        return NULL;
    atomic_init(&ec->waiters, 0);
    atomic_init(&ec->searching, 0);
    atomic_init(&ec->epoch, 0);
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0)
        goto no_attributes;
#ifndef __APPLE__
    if (pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) != 0)
        goto no_mutex;
#endif
    if (pthread_mutex_init(&ec->mutex, NULL) != 0)
        goto no_mutex;
    if (pthread_cond_init(&ec->changed, &attributes) != 0)
        goto no_condition;
    pthread_condattr_destroy(&attributes);
    return ec;
no_condition:
    pthread_mutex_destroy(&ec->mutex);
no_mutex:
    pthread_condattr_destroy(&attributes);
no_attributes:
    free(ec);
    return NULL;
}

/* Only when nobody waits and nobody will. */
static inline void evc_delete(evc *ec)
{
    pthread_cond_destroy(&ec->changed);
    pthread_mutex_destroy(&ec->mutex);
    free(ec);
}

/* Announce the wish to sleep. Look for work once more, then cancel or wait with the key. */
static inline int64_t evc_prepare(evc *ec)
{
    /* pairs with: the load of `waiters` in evc_notify, ordered by the fences */
    atomic_fetch_add_explicit(&ec->waiters, 1, EVC_PREPARE_WAITERS);
    /* pairs with: the fence in evc_notify; it sees us, or our second look sees its work */
    atomic_thread_fence(EVC_PREPARE_FENCE);
    /* pairs with: the fence and the new epoch in evc_notify; who reads it finds the work */
    return atomic_load_explicit(&ec->epoch, EVC_PREPARE_EPOCH);
}

/* Take the announcement back. */
static inline void evc_cancel(evc *ec)
{
    /* pairs with: the load of `waiters` in evc_notify; too late only costs a wake-up */
    atomic_fetch_sub_explicit(&ec->waiters, 1, memory_order_relaxed);
}

static inline void evc_sleep(evc *ec, const struct timespec *deadline, int *status)
{
    if (deadline == NULL) {
        *status = pthread_cond_wait(&ec->changed, &ec->mutex);
        return;
    }
#ifdef __APPLE__
    struct timespec now, left;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t nanoseconds = (int64_t)(deadline->tv_sec - now.tv_sec) * 1000000000
        + (deadline->tv_nsec - now.tv_nsec);
    if (nanoseconds < 0)
        nanoseconds = 0;
    left.tv_sec = nanoseconds / 1000000000;
    left.tv_nsec = nanoseconds % 1000000000;
    *status = pthread_cond_timedwait_relative_np(&ec->changed, &ec->mutex, &left);
#else
    *status = pthread_cond_timedwait(&ec->changed, &ec->mutex, deadline);
#endif
}

/* Sleep until the epoch is no longer `key`, or for `timeout` nanoseconds (negative: for ever).
 * Returns false on timeout. Takes the announcement back in either case. */
static inline bool evc_wait(evc *ec, int64_t key, int64_t timeout)
{
    struct timespec deadline;
    if (timeout >= 0) {
        clock_gettime(CLOCK_MONOTONIC, &deadline);
        deadline.tv_sec += (time_t)(timeout / 1000000000);
        deadline.tv_nsec += (long)(timeout % 1000000000);
        if (deadline.tv_nsec >= 1000000000) {
            deadline.tv_sec += 1;
            deadline.tv_nsec -= 1000000000;
        }
    }
    int status = 0;
    pthread_mutex_lock(&ec->mutex);
    /* pairs with: the mutex */
    while (atomic_load_explicit(&ec->epoch, memory_order_relaxed) == key && status == 0)
        evc_sleep(ec, timeout < 0 ? NULL : &deadline, &status);
    /* pairs with: the mutex */
    bool woken = atomic_load_explicit(&ec->epoch, memory_order_relaxed) != key;
    pthread_mutex_unlock(&ec->mutex);
    evc_cancel(ec);
    return woken;
}

static inline void evc_wake(evc *ec, bool all)
{
    pthread_mutex_lock(&ec->mutex);
    /* pairs with: the acquire of `epoch` in evc_prepare; our fence has published the work */
    atomic_fetch_add_explicit(&ec->epoch, 1, EVC_NOTIFY_EPOCH);
    pthread_mutex_unlock(&ec->mutex);
    if (all)
        pthread_cond_broadcast(&ec->changed);
    else
        pthread_cond_signal(&ec->changed);
}

/* After publishing work: wake one waiter, unless a searcher is awake who will find it. Returns
 * whether somebody was woken. */
static inline bool evc_notify(evc *ec)
{
    /* pairs with: the fence in evc_prepare; we see the waiter, or its second look our work */
    atomic_thread_fence(EVC_NOTIFY_FENCE);
    /* pairs with: evc_end_search, which comes before the searcher's second look */
    if (atomic_load_explicit(&ec->searching, EVC_NOTIFY_SEARCHING) != 0)
        return false;
    /* pairs with: the increment in evc_prepare, ordered by the fences */
    if (atomic_load_explicit(&ec->waiters, EVC_NOTIFY_WAITERS) == 0)
        return false;
    evc_wake(ec, false);
    return true;
}

/* After publishing something for everybody (the end, a finished scope). */
static inline void evc_notify_all(evc *ec)
{
    /* pairs with: the fence in evc_prepare */
    atomic_thread_fence(EVC_NOTIFY_FENCE);
    /* pairs with: the increment in evc_prepare, ordered by the fences */
    if (atomic_load_explicit(&ec->waiters, EVC_NOTIFY_WAITERS) != 0)
        evc_wake(ec, true);
}

static inline void evc_begin_search(evc *ec)
{
    /* pairs with: the load of `searching` in evc_notify */
    atomic_fetch_add_explicit(&ec->searching, 1, EVC_SEARCH_COUNT);
}

/* Before the second look, or after finding work. True for the last searcher: if it found work, it
 * looks for more and calls evc_notify if there is, because what came meanwhile woke nobody. */
static inline bool evc_end_search(evc *ec)
{
    /* pairs with: the load of `searching` in evc_notify */
    bool is_last = atomic_fetch_sub_explicit(&ec->searching, 1, EVC_SEARCH_COUNT) == 1;
    /* pairs with: the fence in evc_notify; it sees that we stopped, or our next look its work */
    atomic_thread_fence(EVC_SEARCH_FENCE);
    return is_last;
}

#endif

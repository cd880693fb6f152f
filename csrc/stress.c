/* Stress of the deque, the eventcount and the executor: many threads, small arrays, random mixes.
 *
 *     stress ITEMS THIEVES SEED
 *
 * Every item must come out exactly once, with what it points to, and nobody may sleep for ever.
 * Prints one line for each part; exits with 1 at the first fault. Built and run in several ways by
 * tests/stealing/test_csrc.py and `nox -s native`.
 */
#define _GNU_SOURCE

#include "chase_lev.h"
#include "eventcount.h"
#include "executor.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MAX_THIEVES 16

typedef struct payload {
    int64_t number; /* not atomic on purpose: publication is what is tested */
    int64_t check;
    _Atomic int32_t taken;
} payload;

typedef struct arena {
    wsd *deque;
    evc *parking;
    payload *payloads;
    int64_t items;
    bool parks;
    _Atomic int64_t taken;
    _Atomic bool is_finished;
} arena;

typedef struct thief {
    arena *all;
    pthread_t thread;
    uint64_t seed;
} thief;

static void fail(const char *what, int64_t number)
{
    printf("FAULT %s %" PRId64 "\n", what, number);
    fflush(stdout);
    _exit(1);
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void take(arena *all, int64_t word)
{
    payload *item = (payload *)(intptr_t)word;
    if (item < all->payloads || item >= all->payloads + all->items)
        fail("invented", word);
    if (item->check != ~item->number || item->number != item - all->payloads)
        fail("not published", item - all->payloads);
    /* pairs with: nothing, a counter */
    if (atomic_fetch_add_explicit(&item->taken, 1, memory_order_relaxed) != 0)
        fail("taken twice", item->number);
    /* pairs with: the load in thieve and own */
    atomic_fetch_add_explicit(&all->taken, 1, memory_order_relaxed);
}

static bool is_over(arena *all)
{
    /* pairs with: the store in own */
    return atomic_load_explicit(&all->is_finished, memory_order_acquire);
}

static int64_t steal_some(arena *all, uint64_t *seed, int64_t *words)
{
    if (next_random(seed) % 2)
        return wsd_steal_many(all->deque, words, (int64_t)(next_random(seed) % 8));
    return wsd_steal(all->deque, words) ? 1 : 0;
}

static void *thieve(void *argument)
{
    thief *self = argument;
    arena *all = self->all;
    int64_t words[WSD_MAX_BATCH];
    while (!is_over(all)) {
        if (all->parks)
            evc_begin_search(all->parking);
        int64_t count = steal_some(all, &self->seed, words);
        bool is_last = all->parks && evc_end_search(all->parking);
        for (int64_t index = 0; index < count; index++)
            take(all, words[index]);
        if (count > 0 && is_last && wsd_size(all->deque) > 0)
            evc_notify(all->parking);
        if (count > 0 || !all->parks)
            continue;
        int64_t key = evc_prepare(all->parking);
        if (wsd_size(all->deque) > 0 || is_over(all))
            evc_cancel(all->parking);
        else
            evc_wait(all->parking, key, -1);
    }
    return NULL;
}

static void own(arena *all, uint64_t seed)
{
    int64_t words[64];
    int64_t made = 0;
    while (made < all->items) {
        int64_t count = 1 + (int64_t)(next_random(&seed) % (next_random(&seed) % 8 ? 3 : 60));
        if (count > all->items - made)
            count = all->items - made;
        for (int64_t index = 0; index < count; index++, made++) {
            all->payloads[made].number = made;
            all->payloads[made].check = ~made;
            words[index] = (int64_t)(intptr_t)&all->payloads[made];
        }
        bool is_pushed = true;
        if (next_random(&seed) % 2)
            is_pushed = wsd_push_many(all->deque, words, count);
        else
            for (int64_t index = 0; index < count && is_pushed; index++)
                is_pushed = wsd_push(all->deque, words[index]);
        if (!is_pushed)
            fail("no memory", count);
        if (all->parks)
            evc_notify(all->parking);
        int64_t wanted = (int64_t)(next_random(&seed) % 6);
        if (next_random(&seed) % 2) {
            int64_t got = wsd_pop_many(all->deque, words, wanted);
            for (int64_t index = 0; index < got; index++)
                take(all, words[index]);
        } else {
            while (wanted-- > 0 && wsd_pop(all->deque, words))
                take(all, words[0]);
        }
    }
    if (all->parks) /* the thieves must come for the rest by themselves */
        /* pairs with: the counter in take */
        while (atomic_load_explicit(&all->taken, memory_order_relaxed) < all->items)
            usleep(100);
    while (wsd_pop(all->deque, words))
        take(all, words[0]);
    /* pairs with: the load in is_over */
    atomic_store_explicit(&all->is_finished, true, memory_order_release);
    evc_notify_all(all->parking);
}

static void stress_deque(int64_t items, int thief_count, uint64_t seed, bool parks)
{
    static arena all;
    thief thieves[MAX_THIEVES];
    memset(&all, 0, sizeof(all));
    all.deque = wsd_new(WSD_MIN_CAPACITY);
    all.parking = evc_new();
    all.payloads = calloc((size_t)items, sizeof(payload));
    all.items = items;
    all.parks = parks;
    if (all.deque == NULL || all.parking == NULL || all.payloads == NULL)
        fail("no memory", items);
    for (int number = 0; number < thief_count; number++) {
        thieves[number].all = &all;
        thieves[number].seed = seed * 31 + (uint64_t)number + 1;
        if (pthread_create(&thieves[number].thread, NULL, thieve, &thieves[number]) != 0)
            fail("no thread", number);
    }
    own(&all, seed);
    for (int number = 0; number < thief_count; number++)
        pthread_join(thieves[number].thread, NULL);
    for (int64_t item = 0; item < items; item++)
        /* pairs with: the joins above */
        if (atomic_load_explicit(&all.payloads[item].taken, memory_order_relaxed) != 1)
            fail("lost", item);
    if (wsd_size(all.deque) != 0)
        fail("left over", wsd_size(all.deque));
    printf("ok deque %s: %" PRId64 " items, %d thieves\n", parks ? "parking" : "spinning", items,
        thief_count);
    free(all.payloads);
    evc_delete(all.parking);
    wsd_delete(all.deque);
}

static void count_up(void *context, int64_t index, int32_t worker)
{
    (void)worker;
    ((int32_t *)context)[index]++; /* not atomic: each index belongs to one job */
}

static void stress_executor(int64_t jobs, int32_t threads, int rounds)
{
    int32_t *counts = calloc((size_t)jobs, sizeof(int32_t));
    if (counts == NULL)
        fail("no memory", jobs);
    exe_report report;
    for (int round = 0; round < rounds; round++)
        if (exe_run(count_up, counts, jobs, threads, &report) != 0 || report.executed != jobs)
            fail("jobs", report.executed);
    for (int64_t job = 0; job < jobs; job++)
        if (counts[job] != rounds)
            fail("job", job);
    if (exe_run(count_up, counts, 0, threads, &report) != 0 || report.executed != 0)
        fail("no jobs", report.executed);
    if (exe_run(count_up, counts, jobs, 0, &report) != -1)
        fail("no threads accepted", 0);
    printf("ok executor: %d x %" PRId64 " jobs, %d threads\n", rounds, jobs, threads);
    free(counts);
}

int main(int count, char **arguments)
{
    if (count != 4)
        fail("usage: stress ITEMS THIEVES SEED", count);
    int64_t items = atoll(arguments[1]);
    int thieves = atoi(arguments[2]);
    uint64_t seed = strtoull(arguments[3], NULL, 10) | 1;
    if (items < 1 || thieves < 1 || thieves > MAX_THIEVES)
        fail("arguments", items);
    stress_deque(items, thieves, seed, false);
    stress_deque(items, thieves, seed, true);
    stress_executor(items / 10 + 1, thieves + 1, 3);
    return 0;
}

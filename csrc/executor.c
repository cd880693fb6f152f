#define _GNU_SOURCE /* memmem */

#include "executor.h"

#include "chase_lev.h"
#include "eventcount.h"

#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEARCH_ROUNDS 16

typedef struct batch batch;

typedef struct worker {
    batch *owner;
    wsd *deque;
    pthread_t thread;
    int64_t executed;
    int64_t stolen;
    int32_t number;
    bool is_started;
} worker;

struct batch {
    exe_job job;
    void *context;
    evc *parking;
    _Atomic int64_t left;
    int32_t threads;
    worker workers[EXE_MAX_THREADS];
};

/* A range of jobs [low, high) is one item of a deque. */
static int64_t pack(int64_t low, int64_t high)
{
    return (int64_t)((uint64_t)low << 32 | (uint64_t)high);
}

static bool is_done(batch *all)
{
    /* pairs with: the decrement in run_range; what the jobs wrote is visible to exe_run */
    return atomic_load_explicit(&all->left, memory_order_acquire) == 0;
}

/* Halve the range until one job is left of it, leaving the halves to whoever comes. */
static void run_range(worker *self, int64_t range)
{
    batch *all = self->owner;
    int64_t low = range >> 32;
    int64_t high = range & 0xffffffff;
    while (low < high) {
        int64_t middle = low + (high - low + 1) / 2;
        if (middle < high && wsd_push(self->deque, pack(middle, high))) {
            evc_notify(all->parking);
            high = middle;
            continue;
        }
        all->job(all->context, low, self->number);
        self->executed++;
        low++;
        /* pairs with: the load in is_done */
        if (atomic_fetch_sub_explicit(&all->left, 1, memory_order_acq_rel) == 1)
            evc_notify_all(all->parking);
    }
}

static bool steal_range(worker *self, int64_t *range)
{
    batch *all = self->owner;
    for (int32_t step = 1; step < all->threads; step++) {
        worker *victim = &all->workers[(self->number + step) % all->threads];
        if (wsd_steal(victim->deque, range)) {
            self->stolen++;
            return true;
        }
    }
    return false;
}

static bool find_range(worker *self, int64_t *range)
{
    evc *parking = self->owner->parking;
    while (!is_done(self->owner)) {
        bool found = false;
        evc_begin_search(parking);
        for (int round = 0; round < SEARCH_ROUNDS && !found; round++) {
            found = steal_range(self, range);
            if (!found)
                sched_yield();
        }
        if (evc_end_search(parking) && found)
            evc_notify(parking);
        if (found)
            return true;
        int64_t key = evc_prepare(parking);
        if (steal_range(self, range)) {
            evc_cancel(parking);
            evc_notify(parking);
            return true;
        }
        if (is_done(self->owner))
            evc_cancel(parking);
        else
            evc_wait(parking, key, -1);
    }
    return false;
}

static void *work(void *argument)
{
    worker *self = argument;
    int64_t range;
    while (wsd_pop(self->deque, &range) || find_range(self, &range))
        run_range(self, range);
    return NULL;
}

int exe_run(exe_job job, void *context, int64_t count, int32_t threads, exe_report *report)
{
    memset(report, 0, sizeof(*report));
    if (count < 0 || count > EXE_MAX_JOBS || threads < 1 || threads > EXE_MAX_THREADS)
        return -1;
    batch *all = calloc(1, sizeof(*all));
    if (all == NULL)
        return -1;
    int result = -1;
    all->job = job;
    all->context = context;
    all->threads = threads;
    atomic_init(&all->left, count);
    all->parking = evc_new();
    if (all->parking == NULL)
        goto finish;
    for (int32_t number = 0; number < threads; number++) {
        worker *self = &all->workers[number];
        self->owner = all;
        self->number = number;
        self->deque = wsd_new(64);
        if (self->deque == NULL)
            goto finish;
    }
    if (!wsd_push(all->workers[0].deque, pack(0, count)))
        goto finish;
    for (int32_t number = 1; number < threads; number++) {
        worker *self = &all->workers[number];
        self->is_started = pthread_create(&self->thread, NULL, work, self) == 0;
    }
    work(&all->workers[0]);
    for (int32_t number = 0; number < threads; number++) {
        worker *self = &all->workers[number];
        if (self->is_started)
            pthread_join(self->thread, NULL);
        report->executed += self->executed;
        report->stolen += self->stolen;
        report->threads += number == 0 || self->is_started;
    }
    result = 0;
finish:
    for (int32_t number = 0; number < threads; number++)
        if (all->workers[number].deque != NULL)
            wsd_delete(all->workers[number].deque);
    if (all->parking != NULL)
        evc_delete(all->parking);
    free(all);
    return result;
}

#define WINDOW ((size_t)256 * 1024)

typedef struct scan {
    const char *const *paths;
    const exe_needle *needles;
    int32_t needle_count;
    size_t overlap; /* longest needle - 1: what must be kept from one window to the next */
    int64_t *found;
    char *windows; /* one of `overlap + WINDOW` bytes for each worker */
} scan;

static int64_t scan_open_file(const scan *all, int file, char *window)
{
    uint64_t wanted = ((uint64_t)1 << all->needle_count) - 1;
    uint64_t found = 0;
    size_t kept = 0;
    while (found != wanted) {
        ssize_t got = read(file, window + kept, WINDOW);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        size_t size = kept + (size_t)got;
        for (int32_t needle = 0; needle < all->needle_count; needle++)
            if (!(found >> needle & 1)
                && memmem(window, size, all->needles[needle].text, all->needles[needle].length))
                found |= (uint64_t)1 << needle;
        kept = size < all->overlap ? size : all->overlap;
        memmove(window, window + size - kept, kept);
    }
    return (int64_t)found;
}

static void scan_one(void *context, int64_t index, int32_t worker_number)
{
    scan *all = context;
    struct stat status;
    /* O_NONBLOCK: opening a FIFO must not wait for its writer */
    int file = open(all->paths[index], O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (file < 0) {
        all->found[index] = -errno;
        return;
    }
    if (fstat(file, &status) != 0)
        all->found[index] = -errno;
    else if (!S_ISREG(status.st_mode))
        all->found[index] = S_ISDIR(status.st_mode) ? -EISDIR : -EINVAL;
    else
        all->found[index] = scan_open_file(
            all, file, all->windows + (size_t)worker_number * (all->overlap + WINDOW));
    close(file);
}

int exe_scan_files(const char *const *paths, int64_t path_count, const exe_needle *needles,
    int32_t needle_count, int32_t threads, int64_t *found, exe_report *report)
{
    memset(report, 0, sizeof(*report));
    if (needle_count < 0 || needle_count > EXE_MAX_NEEDLES || threads < 1
        || threads > EXE_MAX_THREADS)
        return -1;
    scan all = {
        .paths = paths, .needles = needles, .needle_count = needle_count, .found = found};
    for (int32_t needle = 0; needle < needle_count; needle++) {
        if (needles[needle].length == 0)
            return -1;
        if (needles[needle].length - 1 > all.overlap)
            all.overlap = needles[needle].length - 1;
    }
    all.windows = malloc((size_t)threads * (all.overlap + WINDOW));
    if (all.windows == NULL)
        return -1;
    int result = exe_run(scan_one, &all, path_count, threads, report);
    free(all.windows);
    return result;
}

/* Runs a batch of native jobs on a few threads that steal from each other. Plain C11, no Python. */
#ifndef ORCHESTRA_EXECUTOR_H
#define ORCHESTRA_EXECUTOR_H

#include <stddef.h>
#include <stdint.h>

/* One job; `worker` is below the number of threads, for scratch space of its own. */
typedef void (*exe_job)(void *context, int64_t index, int32_t worker);

typedef struct exe_report {
    int64_t executed;
    int64_t stolen; /* ranges of jobs taken from another thread */
    int32_t threads; /* how many could really be started, the caller's included */
} exe_report;

#define EXE_MAX_JOBS INT32_MAX
#define EXE_MAX_THREADS 64

/* Run job(context, 0) ... job(context, count - 1), in any order, and return when all are done. The
 * calling thread works too, so that the batch is done even where no thread can be started. Returns
 * 0, or -1 when memory is short (nothing was run) or an argument is out of range. */
int exe_run(exe_job job, void *context, int64_t count, int32_t threads, exe_report *report);

typedef struct exe_needle {
    const char *text;
    size_t length;
} exe_needle;

#define EXE_MAX_NEEDLES 62

/* Look for every needle in every file. found[i] gets bit k for needle k, or a negative errno when
 * file i cannot be read to its end. Returns as exe_run. */
int exe_scan_files(const char *const *paths, int64_t path_count, const exe_needle *needles,
    int32_t needle_count, int32_t threads, int64_t *found, exe_report *report);

#endif

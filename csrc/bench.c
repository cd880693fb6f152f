/* One thread's push + pop in raw C, against a ring behind a POSIX mutex. Prints nanoseconds for each
 * pair, in turns: "chase-lev 5.9 mutex 25.1 batch 1.3" (batch: 32 at a time, for each item). */
#include "chase_lev.h"

#include <pthread.h>
#include <stdio.h>
#include <time.h>

#define PAIRS 200000

typedef struct ring {
    pthread_mutex_t mutex;
    int64_t top, bottom;
    int64_t slots[64];
} ring;

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void ring_push(ring *self, int64_t item)
{
    pthread_mutex_lock(&self->mutex);
    self->slots[self->bottom++ & 63] = item;
    pthread_mutex_unlock(&self->mutex);
}

static int ring_pop(ring *self, int64_t *item)
{
    pthread_mutex_lock(&self->mutex);
    int is_there = self->bottom > self->top;
    if (is_there)
        *item = self->slots[--self->bottom & 63];
    pthread_mutex_unlock(&self->mutex);
    return is_there;
}

/* With one thread only, glibc's mutex does without atomic instructions. */
static void *idle(void *argument)
{
    pthread_mutex_lock(argument);
    return NULL;
}

int main(int count, char **arguments)
{
    int rounds = count > 1 ? atoi(arguments[1]) : 5;
    wsd *deque = wsd_new(64);
    static ring locked = {.mutex = PTHREAD_MUTEX_INITIALIZER};
    static pthread_mutex_t taken = PTHREAD_MUTEX_INITIALIZER;
    pthread_t thread;
    int64_t items[32] = {0};
    volatile int64_t sink = 0;
    pthread_mutex_lock(&taken);
    if (pthread_create(&thread, NULL, idle, &taken) != 0)
        return 1;
    for (int round = 0; round < rounds && deque != NULL; round++) {
        wsd_push(deque, 1); /* as in use: something stays below */
        ring_push(&locked, 1);
        double began = seconds();
        for (int64_t pair = 0; pair < PAIRS; pair++) {
            wsd_push(deque, pair);
            wsd_pop(deque, items);
            sink = items[0];
        }
        double lock_free = seconds() - began;
        began = seconds();
        for (int64_t pair = 0; pair < PAIRS; pair++) {
            ring_push(&locked, pair);
            ring_pop(&locked, items);
            sink = items[0];
        }
        double mutex = seconds() - began;
        began = seconds();
        for (int64_t batch = 0; batch < PAIRS / 32; batch++) {
            wsd_push_many(deque, items, 32);
            wsd_pop_many(deque, items, 32);
            sink = items[0];
        }
        double batched = seconds() - began;
        printf("chase-lev %.2f mutex %.2f batch %.2f\n", lock_free / PAIRS * 1e9,
            mutex / PAIRS * 1e9, batched / PAIRS * 1e9);
    }
    (void)sink;
    return deque == NULL;
}

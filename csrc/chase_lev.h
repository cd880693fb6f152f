/* The Chase-Lev work-stealing deque in C11.
 *
 * One owner pushes and pops at the bottom; any number of thieves steal at the top. The algorithm is
 * Chase & Lev (SPAA 2005) with the C11 memory orders of Le, Pop, Cohen & Zappa Nardelli
 * (PPoPP 2013), except that `pop` stores `bottom` with release: see README.md, "The trap".
 *
 * Every memory order is a macro, so that the tests can weaken one at a time with -D and so that the
 * explorer in tests/native reads the orders this file really uses. Plain C11, no Python.
 */
#ifndef ORCHESTRA_CHASE_LEV_H
#define ORCHESTRA_CHASE_LEV_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#ifndef WSD_PUSH_TOP
#define WSD_PUSH_TOP memory_order_acquire
#endif
#ifndef WSD_PUSH_SLOT
#define WSD_PUSH_SLOT memory_order_relaxed
#endif
#ifndef WSD_PUSH_BOTTOM
#define WSD_PUSH_BOTTOM memory_order_release
#endif
#ifndef WSD_GROW_ARRAY
#define WSD_GROW_ARRAY memory_order_release
#endif
#ifndef WSD_POP_BOTTOM
#define WSD_POP_BOTTOM memory_order_release
#endif
#ifndef WSD_POP_FENCE
#define WSD_POP_FENCE memory_order_seq_cst
#endif
#ifndef WSD_POP_TOP
#define WSD_POP_TOP memory_order_relaxed
#endif
#ifndef WSD_POP_CAS
#define WSD_POP_CAS memory_order_seq_cst
#endif
#ifndef WSD_STEAL_TOP
#define WSD_STEAL_TOP memory_order_acquire
#endif
#ifndef WSD_STEAL_FENCE
#define WSD_STEAL_FENCE memory_order_seq_cst
#endif
#ifndef WSD_STEAL_BOTTOM
#define WSD_STEAL_BOTTOM memory_order_acquire
#endif
#ifndef WSD_STEAL_ARRAY
#define WSD_STEAL_ARRAY memory_order_acquire
#endif
#ifndef WSD_STEAL_SLOT
#define WSD_STEAL_SLOT memory_order_relaxed
#endif
#ifndef WSD_STEAL_CAS
#define WSD_STEAL_CAS memory_order_seq_cst
#endif

/* Define WSD_SERIALISED where every caller holds one and the same lock (the native Python type under
 * the GIL): the lock then orders everything, and fences and locked instructions are left out. */
#ifdef WSD_SERIALISED
#undef WSD_POP_FENCE
#define WSD_POP_FENCE memory_order_relaxed
#undef WSD_STEAL_FENCE
#define WSD_STEAL_FENCE memory_order_relaxed
#endif

#ifdef __GNUC__
#define WSD_COLD __attribute__((noinline, cold, unused))
#else
#define WSD_COLD
#endif

#define WSD_MIN_CAPACITY 2
#define WSD_MAX_CAPACITY ((int64_t)1 << 40)
#define WSD_MAX_BATCH 32 /* one `wsd_steal_many` takes at most this many, and at most half */

typedef struct wsd_array {
    int64_t capacity; /* a power of two */
    struct wsd_array *older; /* kept until `wsd_destroy`: a slow thief may still read it */
    _Atomic int64_t slots[];
} wsd_array;

/* Indices are signed and only grow (apart from `bottom` stepping back in `pop`), so that an empty
 * deque with bottom = top - 1 in the middle of a `pop` needs no special case. `top`, `bottom` and
 * the owner's private copy of `top` share a line on purpose: under a stealing thief the owner then
 * fetches one line instead of two (README.md has the figures). */
typedef struct wsd {
    alignas(64) _Atomic int64_t top;
    _Atomic int64_t bottom;
    int64_t cached_top; /* owner only; a lower bound of `top` */
    _Atomic(wsd_array *) array;
} wsd;

/* Take index `expected` by moving `top` past it; false when somebody else did. */
static inline bool wsd_take(wsd *deque, int64_t expected, memory_order order)
{
#ifdef WSD_SERIALISED
    (void)order;
    /* pairs with: the lock that every caller holds */
    if (atomic_load_explicit(&deque->top, memory_order_relaxed) != expected)
        return false;
    /* pairs with: the lock that every caller holds */
    atomic_store_explicit(&deque->top, expected + 1, memory_order_relaxed);
    return true;
#else
    /* pairs with: itself, in other threads: one of them gets the item; and with the load of `top`
     * in wsd_grow */
    return atomic_compare_exchange_strong_explicit(
        &deque->top, &expected, expected + 1, order, memory_order_relaxed);
#endif
}

static inline wsd_array *wsd_array_new(int64_t capacity, wsd_array *older)
{
    wsd_array *array = malloc(sizeof(wsd_array) + (size_t)capacity * sizeof(array->slots[0]));
    if (array != NULL) {
        array->capacity = capacity;
        array->older = older;
    }
    return array;
}

static inline _Atomic int64_t *wsd_slot(wsd_array *array, int64_t index)
{
    return &array->slots[index & (array->capacity - 1)];
}

/* `capacity` is rounded up to a power of two. Returns false when memory is short. */
static inline bool wsd_init(wsd *deque, int64_t capacity)
{
    int64_t rounded = WSD_MIN_CAPACITY;
    while (rounded < capacity && rounded < WSD_MAX_CAPACITY)
        rounded *= 2;
    wsd_array *array = wsd_array_new(rounded, NULL);
    if (array == NULL)
        return false;
    atomic_init(&deque->top, 0);
    atomic_init(&deque->bottom, 0);
    atomic_init(&deque->array, array);
    deque->cached_top = 0;
    return true;
}

/* A deque on the heap, on its own cache line. NULL when memory is short. */
static inline wsd *wsd_new(int64_t capacity)
{
    wsd *deque = aligned_alloc(alignof(wsd), sizeof(wsd));
    if (deque != NULL && !wsd_init(deque, capacity)) {
        free(deque);
        deque = NULL;
    }
    return deque;
}

/* Only when no other thread can reach the deque any more. The items are the caller's business. */
static inline void wsd_destroy(wsd *deque)
{
    /* pairs with: nothing, the last user */
    wsd_array *array = atomic_load_explicit(&deque->array, memory_order_relaxed);
    while (array != NULL) {
        wsd_array *older = array->older;
        free(array);
        array = older;
    }
}

static inline void wsd_delete(wsd *deque)
{
    wsd_destroy(deque);
    free(deque);
}

/* Exact for the owner of a deque at rest, a moment's guess for everybody else. */
static inline int64_t wsd_size(wsd *deque)
{
    /* pairs with: nothing, a guess */
    int64_t bottom = atomic_load_explicit(&deque->bottom, memory_order_relaxed);
    /* pairs with: nothing, a guess */
    int64_t top = atomic_load_explicit(&deque->top, memory_order_relaxed);
    return bottom > top ? bottom - top : 0;
}

static inline int64_t wsd_free_slots(wsd *deque)
{
    /* pairs with: nothing, the owner is the only writer */
    int64_t bottom = atomic_load_explicit(&deque->bottom, memory_order_relaxed);
    /* pairs with: nothing, the owner is the only writer */
    wsd_array *array = atomic_load_explicit(&deque->array, memory_order_relaxed);
    return array->capacity - (bottom - deque->cached_top);
}

/* Owner, when the cached `top` says that there is no room: look at `top` itself, then grow. */
WSD_COLD static bool wsd_grow(wsd *deque, int64_t count)
{
    /* pairs with: wsd_take in wsd_steal_once; a slot is written again only when its thief is done */
    deque->cached_top = atomic_load_explicit(&deque->top, WSD_PUSH_TOP);
    if (count <= wsd_free_slots(deque))
        return true;
    /* pairs with: nothing, the owner is the only writer */
    int64_t bottom = atomic_load_explicit(&deque->bottom, memory_order_relaxed);
    /* pairs with: nothing, the owner is the only writer */
    wsd_array *array = atomic_load_explicit(&deque->array, memory_order_relaxed);
    int64_t used = bottom - deque->cached_top;
    if (count > WSD_MAX_CAPACITY - used)
        return false;
    int64_t capacity = array->capacity;
    while (capacity < used + count)
        capacity *= 2;
    wsd_array *larger = wsd_array_new(capacity, array);
    if (larger == NULL)
        return false;
    for (int64_t index = deque->cached_top; index < bottom; index++) {
        /* pairs with: nothing, the owner wrote it */
        int64_t item = atomic_load_explicit(wsd_slot(array, index), memory_order_relaxed);
        /* pairs with: the slot load in wsd_steal_once, ordered by WSD_GROW_ARRAY */
        atomic_store_explicit(wsd_slot(larger, index), item, memory_order_relaxed);
    }
    /* pairs with: the acquire of `array` in wsd_steal_once; the copies lie behind the pointer */
    atomic_store_explicit(&deque->array, larger, WSD_GROW_ARRAY);
    return true;
}

/* Owner: make room for `count` more items. Returns false when memory is short; nothing changed. */
static inline bool wsd_reserve(wsd *deque, int64_t count)
{
    return count <= wsd_free_slots(deque) || wsd_grow(deque, count);
}

/* Owner: add items; the last one is popped first. Returns false when memory is short. */
static inline bool wsd_push_many(wsd *deque, const int64_t *items, int64_t count)
{
    if (!wsd_reserve(deque, count))
        return false;
    /* pairs with: nothing, the owner is the only writer */
    int64_t bottom = atomic_load_explicit(&deque->bottom, memory_order_relaxed);
    /* pairs with: nothing, the owner is the only writer */
    wsd_array *array = atomic_load_explicit(&deque->array, memory_order_relaxed);
    for (int64_t index = 0; index < count; index++)
        /* pairs with: the slot load in wsd_steal_once, ordered by WSD_PUSH_BOTTOM */
        atomic_store_explicit(wsd_slot(array, bottom + index), items[index], WSD_PUSH_SLOT);
    /* pairs with: the acquire of `bottom` in wsd_steal_once; publishes slots, array and pointees */
    atomic_store_explicit(&deque->bottom, bottom + count, WSD_PUSH_BOTTOM);
    return true;
}

/* Owner: add one item. Returns false when memory is short. */
static inline bool wsd_push(wsd *deque, int64_t item)
{
    return wsd_push_many(deque, &item, 1);
}

/* Owner: take the item at index `top`, which is the last one there is, as a thief would: without
 * stepping `bottom` back there is nothing to order, so this needs no fence. */
static inline bool wsd_pop_last(wsd *deque, int64_t bottom, int64_t *item)
{
    /* pairs with: wsd_take in wsd_steal_once; an old value makes our own CAS fail */
    int64_t top = atomic_load_explicit(&deque->top, WSD_POP_TOP);
    deque->cached_top = bottom; /* whatever happens next, index `bottom - 1` is used up */
    if (top == bottom)
        return false;
    /* pairs with: nothing, the owner is the only writer */
    wsd_array *array = atomic_load_explicit(&deque->array, memory_order_relaxed);
    /* pairs with: nothing, the owner wrote it */
    *item = atomic_load_explicit(wsd_slot(array, top), memory_order_relaxed);
    return wsd_take(deque, top, WSD_POP_CAS);
}

/* Owner: take up to `count` of the newest items, newest first, for the price of one fence. Returns
 * how many.
 *
 * `bottom` steps back over everything wanted before `top` is read. Whatever lies above `top` then
 * is out of the reach of thieves: they read `bottom` after their own fence. Only index `top` itself
 * may be wanted by both sides, and is settled by the CAS. */
static inline int64_t wsd_pop_many(wsd *deque, int64_t *items, int64_t count)
{
    /* pairs with: nothing, the owner is the only writer */
    int64_t bottom = atomic_load_explicit(&deque->bottom, memory_order_relaxed);
    int64_t size = bottom - deque->cached_top; /* or less: cached_top <= top */
    if (count > size)
        count = size;
    if (count <= 0)
        return 0;
    if (size == 1)
        return wsd_pop_last(deque, bottom, items);
    int64_t target = bottom - count;
    /* pairs with: nothing, the owner is the only writer */
    wsd_array *array = atomic_load_explicit(&deque->array, memory_order_relaxed);
    for (int64_t offset = 0; offset < count; offset++) /* now, not in the shadow of the fence */
        /* pairs with: nothing, the owner wrote it */
        items[offset] =
            atomic_load_explicit(wsd_slot(array, bottom - 1 - offset), memory_order_relaxed);
    /* pairs with: the acquire of `bottom` in wsd_steal_once; relaxed here would hide an earlier
     * push from the thief that reads this store (README.md, "The trap") */
    atomic_store_explicit(&deque->bottom, target, WSD_POP_BOTTOM);
    /* pairs with: the fence in wsd_steal_once; one of us sees the other's index */
    atomic_thread_fence(WSD_POP_FENCE);
    /* pairs with: wsd_take in wsd_steal_once, ordered by the fences */
    int64_t top = atomic_load_explicit(&deque->top, WSD_POP_TOP);
    deque->cached_top = top;
    if (top < target)
        return count; /* everything wanted lies above `top` */
    bool has_top = top < bottom && wsd_take(deque, top, WSD_POP_CAS);
    int64_t rest = top < bottom ? top + 1 : bottom; /* taken or stolen, index `top` is used up */
    deque->cached_top = rest;
    /* pairs with: the acquire of `bottom` in wsd_steal_once */
    atomic_store_explicit(&deque->bottom, rest, WSD_POP_BOTTOM);
    return bottom - rest + has_top;
}

/* Owner: take the newest item. */
static inline bool wsd_pop(wsd *deque, int64_t *item)
{
    return wsd_pop_many(deque, item, 1) == 1;
}

typedef enum { WSD_STOLEN, WSD_EMPTY, WSD_LOST } wsd_outcome;

/* Thief: try once to take the oldest item. WSD_LOST: somebody else took it in between.
 *
 * The slot is read before the CAS: afterwards the owner may write it again. What was read counts
 * only if the CAS succeeds. */
static inline wsd_outcome wsd_steal_once(wsd *deque, int64_t *item)
{
    /* pairs with: wsd_take in other threads */
    int64_t top = atomic_load_explicit(&deque->top, WSD_STEAL_TOP);
    /* pairs with: the fence in wsd_pop_many; one of us sees the other's index */
    atomic_thread_fence(WSD_STEAL_FENCE);
    /* pairs with: the release of `bottom` in wsd_push_many and wsd_pop_many */
    int64_t bottom = atomic_load_explicit(&deque->bottom, WSD_STEAL_BOTTOM);
    if (top >= bottom)
        return WSD_EMPTY;
    /* pairs with: the release of `array` in wsd_reserve */
    wsd_array *array = atomic_load_explicit(&deque->array, WSD_STEAL_ARRAY);
    /* pairs with: the slot stores in wsd_push_many and wsd_reserve */
    *item = atomic_load_explicit(wsd_slot(array, top), WSD_STEAL_SLOT);
    return wsd_take(deque, top, WSD_STEAL_CAS) ? WSD_STOLEN : WSD_LOST;
}

/* Thief: take the oldest item; false means that the deque was empty. Lock-free: a lost race means
 * that somebody else got an item. */
static inline bool wsd_steal(wsd *deque, int64_t *item)
{
    wsd_outcome outcome;
    do {
        outcome = wsd_steal_once(deque, item);
    } while (outcome == WSD_LOST);
    return outcome == WSD_STOLEN;
}

/* How many items one batch may take: half, rounded up, and never more than WSD_MAX_BATCH. */
static inline int64_t wsd_batch(wsd *deque, int64_t count)
{
    int64_t half = (wsd_size(deque) + 1) / 2;
    if (count > half)
        count = half;
    return count < WSD_MAX_BATCH ? count : WSD_MAX_BATCH;
}

/* Thief: take up to `count` of the oldest items, oldest first. Returns how many.
 *
 * One CAS per item: moving `top` by several at once is wrong beside an owner that pops without a
 * CAS (README.md, "What does not work"). */
static inline int64_t wsd_steal_many(wsd *deque, int64_t *items, int64_t count)
{
    int64_t taken = 0;
    count = wsd_batch(deque, count);
    while (taken < count && wsd_steal(deque, &items[taken]))
        taken++;
    return taken;
}

#endif

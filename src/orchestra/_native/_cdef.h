/* What Python calls with the GIL released: batches of integers, parking, the batch executor. */
typedef struct wsd wsd;
typedef struct evc evc;

wsd *wsd_new(int64_t capacity);
void wsd_delete(wsd *deque);
int64_t wsd_size(wsd *deque);
_Bool wsd_push_many(wsd *deque, const int64_t *items, int64_t count);
int64_t wsd_pop_many(wsd *deque, int64_t *items, int64_t count);
int64_t wsd_steal_many(wsd *deque, int64_t *items, int64_t count);

_Bool evc_wait(evc *ec, int64_t key, int64_t timeout);

typedef struct exe_report { int64_t executed; int64_t stolen; int32_t threads; } exe_report;
typedef struct { const char *text; size_t length; } exe_needle;
#define EXE_MAX_THREADS ...
#define EXE_MAX_NEEDLES ...
int exe_scan_files(const char *const *paths, int64_t path_count, const exe_needle *needles,
    int32_t needle_count, int32_t threads, int64_t *found, exe_report *report);

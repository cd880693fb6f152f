/* The native types: one C call per push, pop or steal, with the GIL kept.
 *
 * cffi releases the GIL around every call, which costs a busy process its turn; so the per-object
 * operations are methods of ordinary C types, on the same csrc/chase_lev.h.
 *
 * References: `push` takes one and stores the pointer; `pop` or a successful steal hands that same
 * one on. Nothing touches a refcount before the item is ours. No method gives up the GIL (or, on
 * free-threaded builds, detaches) between taking an item and returning it, so the collector sees
 * every item either in the deque or in the caller's hands.
 */
/* pyconfig.h first: with the limited API on a free-threaded build the module would not load. */
#include <pyconfig.h>
#if !defined(Py_GIL_DISABLED) && !defined(Py_LIMITED_API)
#define Py_LIMITED_API 0x030b0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#ifndef Py_GIL_DISABLED
#define WSD_SERIALISED /* by the GIL; the cffi functions work on deques of their own */
#endif

#include "_docs.h"
#include "chase_lev.h"
#include "eventcount.h"

#define CHUNK 256

typedef struct {
    PyTypeObject *deque;
    PyTypeObject *stealer;
    PyTypeObject *eventcount;
    PyObject *statistics; /* the attrs class, set by the loader */
} module_state;

typedef struct deque_object {
    PyObject_HEAD
    wsd *items;
    _Atomic(const char *) owner_mark;
    _Atomic unsigned long owner; /* the same thread, as Python names it */
    PyObject *weakrefs;
    struct deque_object *next_dead;
} deque_object;

typedef struct {
    PyObject_HEAD
    deque_object *deque;
    PyObject *weakrefs;
} stealer_object;

typedef struct {
    PyObject_HEAD
    evc *counter;
} eventcount_object;

static int64_t to_word(PyObject *object) { return (int64_t)(intptr_t)object; }

static PyObject *to_object(int64_t word) { return (PyObject *)(intptr_t)word; }

/* Not Py_RETURN_NONE: headers of 3.12 and later take no reference there, and 3.11 would miss it. */
static PyObject *none(void)
{
    Py_INCREF(Py_None);
    return Py_None;
}

/* The address of a thread-local byte tells threads apart in one instruction, where
 * PyThread_get_thread_ident costs two calls. Both may come back for a later thread when one has
 * ended; it cannot meet the first. (musl cannot load this model with dlopen.) */
#if defined(__GLIBC__) && defined(__GNUC__)
__attribute__((tls_model("initial-exec")))
#endif
static _Thread_local const char thread_mark;

static unsigned long owner_of(deque_object *self)
{
    /* pairs with: nothing, as in set_owner */
    return atomic_load_explicit(&self->owner, memory_order_relaxed);
}

WSD_COLD static bool refuse(deque_object *self, const char *call)
{
    PyErr_Format(PyExc_RuntimeError,
        "%s() was called from thread %lu, but thread %lu owns this deque; steal through its "
        "stealer, or call adopt() first",
        call, PyThread_get_thread_ident(), owner_of(self));
    return false;
}

static inline bool is_owner(deque_object *self, const char *call)
{
    /* pairs with: nothing; a thread always reads its own last store */
    return atomic_load_explicit(&self->owner_mark, memory_order_relaxed) == &thread_mark
        || refuse(self, call);
}

static void set_owner(deque_object *self)
{
    /* pairs with: nothing; the caller of adopt() orders the hand-over, as by joining a thread */
    atomic_store_explicit(&self->owner_mark, &thread_mark, memory_order_relaxed);
    /* pairs with: nothing, as above */
    atomic_store_explicit(&self->owner, PyThread_get_thread_ident(), memory_order_relaxed);
}

/* A count of 0 or more, clipped to what fits; -1 with an exception set. */
static Py_ssize_t to_count(PyObject *argument)
{
    PyObject *number = PyNumber_Index(argument);
    if (number == NULL)
        return -1;
    Py_ssize_t count = PyNumber_AsSsize_t(number, NULL);
    if (count < 0)
        PyErr_Format(
            PyExc_ValueError, "cannot take %S items; give a count of 0 or more", number);
    Py_DECREF(number);
    return count < 0 ? -1 : count;
}

WSD_COLD static PyObject *refuse_arguments(const char *call, Py_ssize_t given)
{
    PyErr_Format(PyExc_TypeError, "%s expected at most 1 argument, got %zd", call, given);
    return NULL;
}

/* --- WorkStealingDeque ------------------------------------------------------------------- */

typedef PyObject *(*item_getter)(PyObject *, Py_ssize_t);

/* Push what a list or tuple holds. No Python code runs meanwhile, so that it cannot change. */
static bool push_sequence(deque_object *self, PyObject *items, Py_ssize_t count, item_getter get)
{
    int64_t words[CHUNK];
    if (!wsd_reserve(self->items, count))
        return false;
    for (Py_ssize_t start = 0; start < count; start += CHUNK) {
        Py_ssize_t length = count - start < CHUNK ? count - start : CHUNK;
        for (Py_ssize_t index = 0; index < length; index++) {
            PyObject *item = get(items, start + index);
            Py_INCREF(item);
            words[index] = to_word(item);
        }
        wsd_push_many(self->items, words, length); /* there is room: it cannot fail */
    }
    return true;
}

static PyObject *deque_push_many(deque_object *self, PyObject *iterable)
{
    if (!is_owner(self, "push_many"))
        return NULL;
#ifndef Py_GIL_DISABLED /* without a GIL another thread might change the list */
    if (PyList_CheckExact(iterable)) {
        if (!push_sequence(self, iterable, PyList_Size(iterable), PyList_GetItem))
            return PyErr_NoMemory();
        return none();
    }
#endif
    PyObject *items = PySequence_Tuple(iterable);
    if (items == NULL)
        return NULL;
    PyObject *result = NULL;
    if (is_owner(self, "push_many")) { /* the iterable may have made another thread the owner */
        if (push_sequence(self, items, PyTuple_Size(items), PyTuple_GetItem))
            result = none();
        else
            PyErr_NoMemory();
    }
    Py_DECREF(items);
    return result;
}

static PyObject *deque_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"", "capacity", NULL};
    PyObject *items = NULL;
    PyObject *capacity_argument = NULL;
    Py_ssize_t capacity = 64;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "|O$O:WorkStealingDeque", names, &items, &capacity_argument))
        return NULL;
    if (capacity_argument != NULL) {
        PyObject *number = PyNumber_Index(capacity_argument);
        if (number == NULL)
            return NULL;
        capacity = PyNumber_AsSsize_t(number, NULL);
        if (capacity < 1 || capacity > WSD_MAX_CAPACITY) {
            PyErr_Format(PyExc_ValueError,
                "a capacity of %S is out of range; choose one from 1 to %lld", number,
                (long long)WSD_MAX_CAPACITY);
            Py_DECREF(number);
            return NULL;
        }
        Py_DECREF(number);
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    deque_object *self = (deque_object *)allocate(type, 0);
    if (self == NULL)
        return NULL;
    self->items = wsd_new(capacity);
    if (self->items == NULL) {
        Py_DECREF((PyObject *)self);
        return PyErr_NoMemory();
    }
    set_owner(self);
    if (items != NULL) {
        PyObject *done = deque_push_many(self, items);
        if (done == NULL) {
            Py_DECREF((PyObject *)self);
            return NULL;
        }
        Py_DECREF(done);
    }
    return (PyObject *)self;
}

static int deque_traverse(deque_object *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    if (self->items == NULL)
        return 0;
    /* pairs with: nothing; with the GIL held, or the world stopped, nobody changes the deque */
    wsd_array *array = atomic_load_explicit(&self->items->array, memory_order_relaxed);
    /* pairs with: nothing, as above */
    int64_t bottom = atomic_load_explicit(&self->items->bottom, memory_order_relaxed);
    /* pairs with: nothing, as above */
    int64_t top = atomic_load_explicit(&self->items->top, memory_order_relaxed);
    for (int64_t index = top; index < bottom; index++) {
        /* pairs with: nothing, as above */
        int64_t word = atomic_load_explicit(wsd_slot(array, index), memory_order_relaxed);
        Py_VISIT(to_object(word));
    }
    return 0;
}

/* Drop what is inside now; a finaliser that pushes more does not keep us here for ever. */
static int deque_drop(deque_object *self)
{
    int64_t word;
    if (self->items == NULL)
        return 0;
    for (int64_t left = wsd_size(self->items); left > 0; left--) {
        if (!wsd_steal(self->items, &word))
            break;
        Py_DECREF(to_object(word));
    }
    return 0;
}

static void deque_free(deque_object *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    int64_t word;
    if (self->items != NULL) {
        while (wsd_steal(self->items, &word))
            Py_DECREF(to_object(word));
        wsd_delete(self->items);
    }
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* Deques inside deques inside deques would overflow the C stack; below a certain depth the dead
 * are queued and buried by the outermost call. (The limited API has no trashcan.) */
static void deque_dealloc(deque_object *self)
{
    static _Thread_local int depth = 0;
    static _Thread_local deque_object *dead = NULL;
    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)self);
    if (depth > 50) {
        self->next_dead = dead;
        dead = self;
        return;
    }
    depth++;
    deque_free(self);
    while (depth == 1 && dead != NULL) {
        deque_object *next = dead;
        dead = next->next_dead;
        deque_free(next);
    }
    depth--;
}

static PyObject *deque_push(deque_object *self, PyObject *item)
{
    if (!is_owner(self, "push"))
        return NULL;
    Py_INCREF(item); /* before it is published: a thief may already drop it */
    if (!wsd_push(self->items, to_word(item))) {
        Py_DECREF(item);
        return PyErr_NoMemory();
    }
    return none();
}

static PyObject *deque_pop(deque_object *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t word;
    if (given > 1)
        return refuse_arguments("pop", given);
    if (!is_owner(self, "pop"))
        return NULL;
    if (wsd_pop(self->items, &word))
        return to_object(word);
    if (given == 0)
        return none();
    Py_INCREF(args[0]);
    return args[0];
}

/* Cut a list that was made for more items than were there. */
static PyObject *cut(PyObject *list, Py_ssize_t length, Py_ssize_t wanted)
{
    if (length < wanted && PyList_SetSlice(list, length, wanted, NULL) < 0)
        Py_CLEAR(list);
    return list;
}

static PyObject *deque_pop_many(deque_object *self, PyObject *argument)
{
    if (!is_owner(self, "pop_many"))
        return NULL;
    Py_ssize_t count = to_count(argument);
    if (count < 0)
        return NULL;
    if (!is_owner(self, "pop_many")) /* __index__ may have made another thread the owner */
        return NULL;
    int64_t size = wsd_size(self->items);
    if (count > size)
        count = (Py_ssize_t)size;
    PyObject *list = PyList_New(count); /* before anything is taken, since it may fail */
    if (list == NULL)
        return NULL;
    int64_t words[CHUNK];
    Py_ssize_t length = 0;
    while (length < count) {
        Py_ssize_t wanted = count - length < CHUNK ? count - length : CHUNK;
        int64_t taken = wsd_pop_many(self->items, words, wanted);
        for (int64_t index = 0; index < taken; index++)
            PyList_SetItem(list, length++, to_object(words[index]));
        if (taken < wanted)
            break;
    }
    return cut(list, length, count);
}

static PyObject *deque_clear(deque_object *self, PyObject *Py_UNUSED(ignored))
{
    if (!is_owner(self, "clear"))
        return NULL;
    deque_drop(self);
    return none();
}

static PyObject *deque_adopt(deque_object *self, PyObject *Py_UNUSED(ignored))
{
    set_owner(self);
    return none();
}

static PyObject *deque_stealer(deque_object *self, void *Py_UNUSED(closure))
{
    module_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    if (state == NULL)
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(state->stealer, Py_tp_alloc);
    stealer_object *stealer = (stealer_object *)allocate(state->stealer, 0);
    if (stealer == NULL)
        return NULL;
    Py_INCREF((PyObject *)self);
    stealer->deque = self;
    return (PyObject *)stealer;
}

static PyObject *deque_owner(deque_object *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(owner_of(self));
}

static PyObject *deque_statistics(deque_object *self, PyObject *Py_UNUSED(ignored))
{
    module_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    if (state == NULL || state->statistics == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "the extension was not loaded through orchestra");
        return NULL;
    }
    long long arrays = 0;
    /* pairs with: the release of `array` in wsd_reserve */
    wsd_array *array = atomic_load_explicit(&self->items->array, memory_order_acquire);
    long long capacity = array->capacity;
    for (; array != NULL; array = array->older)
        arrays++;
    PyObject *empty = PyTuple_New(0);
    PyObject *fields = Py_BuildValue("{s:s,s:L,s:L,s:L,s:k}", "implementation", "native", "size",
        (long long)wsd_size(self->items), "capacity", capacity, "arrays", arrays, "owner",
        owner_of(self));
    PyObject *statistics = NULL;
    if (empty != NULL && fields != NULL)
        statistics = PyObject_Call(state->statistics, empty, fields);
    Py_XDECREF(empty);
    Py_XDECREF(fields);
    return statistics;
}

static Py_ssize_t deque_length(deque_object *self) { return (Py_ssize_t)wsd_size(self->items); }

static PyObject *deque_repr(deque_object *self)
{
    return PyUnicode_FromFormat("<WorkStealingDeque native: %zd items, owned by thread %lu>",
        deque_length(self), owner_of(self));
}

static PyObject *deque_reduce(deque_object *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    PyErr_SetString(PyExc_TypeError,
        "a WorkStealingDeque belongs to its threads and cannot be copied or pickled");
    return NULL;
}

#define METHOD(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef deque_methods[] = {
    {"push", METHOD(deque_push), METH_O, DOC_DEQUE_PUSH},
    {"push_many", METHOD(deque_push_many), METH_O, DOC_DEQUE_PUSH_MANY},
    {"pop", METHOD(deque_pop), METH_FASTCALL, DOC_DEQUE_POP},
    {"pop_many", METHOD(deque_pop_many), METH_O, DOC_DEQUE_POP_MANY},
    {"clear", METHOD(deque_clear), METH_NOARGS, DOC_DEQUE_CLEAR},
    {"adopt", METHOD(deque_adopt), METH_NOARGS, DOC_DEQUE_ADOPT},
    {"statistics", METHOD(deque_statistics), METH_NOARGS, DOC_DEQUE_STATISTICS},
    {"__reduce__", METHOD(deque_reduce), METH_NOARGS, NULL},
    {"__class_getitem__", METHOD(Py_GenericAlias), METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef deque_properties[] = {
    {"stealer", (getter)deque_stealer, NULL, DOC_DEQUE_STEALER, NULL},
    {"owner", (getter)deque_owner, NULL, DOC_DEQUE_OWNER, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef deque_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(deque_object, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot deque_slots[] = {
    {Py_tp_doc, DOC_DEQUE},
    {Py_tp_new, deque_new},
    {Py_tp_dealloc, deque_dealloc},
    {Py_tp_traverse, deque_traverse},
    {Py_tp_clear, deque_drop},
    {Py_tp_repr, deque_repr},
    {Py_tp_methods, deque_methods},
    {Py_tp_getset, deque_properties},
    {Py_tp_members, deque_members},
    {Py_sq_length, deque_length},
    {0, NULL},
};

static PyType_Spec deque_spec = {
    .name = "orchestra.stealing.WorkStealingDeque",
    .basicsize = sizeof(deque_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = deque_slots,
};

/* --- Stealer ----------------------------------------------------------------------------- */

static int stealer_traverse(stealer_object *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->deque);
    return 0;
}

static void stealer_dealloc(stealer_object *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)self);
    Py_CLEAR(self->deque);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *stealer_steal(stealer_object *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t word;
    if (given > 1)
        return refuse_arguments("steal", given);
    if (wsd_steal(self->deque->items, &word))
        return to_object(word);
    if (given == 0)
        return none();
    Py_INCREF(args[0]);
    return args[0];
}

static PyObject *stealer_steal_many(stealer_object *self, PyObject *argument)
{
    wsd *items = self->deque->items;
    Py_ssize_t count = to_count(argument);
    if (count < 0)
        return NULL;
    count = (Py_ssize_t)wsd_batch(items, count);
    PyObject *list = PyList_New(count); /* before anything is taken, since it may fail */
    if (list == NULL)
        return NULL;
    int64_t words[WSD_MAX_BATCH];
    Py_ssize_t length = (Py_ssize_t)wsd_steal_many(items, words, count);
    for (Py_ssize_t index = 0; index < length; index++)
        PyList_SetItem(list, index, to_object(words[index]));
    return cut(list, length, count);
}

static PyObject *stealer_steal_into(stealer_object *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"", "limit", NULL};
    PyObject *argument;
    PyObject *limit_argument = NULL;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O|O:steal_into", names, &argument, &limit_argument))
        return NULL;
    if (Py_TYPE(argument) != Py_TYPE((PyObject *)self->deque))
        return PyErr_Format(PyExc_TypeError,
            "steal_into() moves items to a WorkStealingDeque, not to %R", Py_TYPE(argument));
    Py_ssize_t limit = WSD_MAX_BATCH;
    if (limit_argument != NULL)
        limit = to_count(limit_argument);
    if (limit < 0)
        return NULL;
    deque_object *target = (deque_object *)argument;
    if (!is_owner(target, "steal_into"))
        return NULL;
    if (target == self->deque) {
        PyErr_SetString(PyExc_ValueError,
            "a deque cannot steal from itself; give another one as the target");
        return NULL;
    }
    if (!wsd_reserve(target->items, WSD_MAX_BATCH))
        return PyErr_NoMemory();
    int64_t words[WSD_MAX_BATCH];
    int64_t moved = wsd_steal_many(self->deque->items, words, limit);
    wsd_push_many(target->items, words, moved); /* there is room: it cannot fail */
    return PyLong_FromLongLong(moved);
}

static PyObject *stealer_statistics(stealer_object *self, PyObject *ignored)
{
    return deque_statistics(self->deque, ignored);
}

static Py_ssize_t stealer_length(stealer_object *self) { return deque_length(self->deque); }

static PyObject *stealer_repr(stealer_object *self)
{
    return PyUnicode_FromFormat("<Stealer native: %zd items, owned by thread %lu>",
        deque_length(self->deque), owner_of(self->deque));
}

static PyObject *stealer_reduce(stealer_object *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    PyErr_SetString(
        PyExc_TypeError, "a Stealer belongs to its threads and cannot be copied or pickled");
    return NULL;
}

static PyMethodDef stealer_methods[] = {
    {"steal", METHOD(stealer_steal), METH_FASTCALL, DOC_STEALER_STEAL},
    {"steal_many", METHOD(stealer_steal_many), METH_O, DOC_STEALER_STEAL_MANY},
    {"steal_into", METHOD(stealer_steal_into), METH_VARARGS | METH_KEYWORDS,
        DOC_STEALER_STEAL_INTO},
    {"statistics", METHOD(stealer_statistics), METH_NOARGS, DOC_STEALER_STATISTICS},
    {"__reduce__", METHOD(stealer_reduce), METH_NOARGS, NULL},
    {"__class_getitem__", METHOD(Py_GenericAlias), METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef stealer_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(stealer_object, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

/* No tp_clear: a Stealer never changes, and a cycle through it also goes through its deque. */
static PyType_Slot stealer_slots[] = {
    {Py_tp_doc, DOC_STEALER},
    {Py_tp_dealloc, stealer_dealloc},
    {Py_tp_traverse, stealer_traverse},
    {Py_tp_repr, stealer_repr},
    {Py_tp_methods, stealer_methods},
    {Py_tp_members, stealer_members},
    {Py_sq_length, stealer_length},
    {0, NULL},
};

static PyType_Spec stealer_spec = {
    .name = "orchestra.stealing.Stealer",
    .basicsize = sizeof(stealer_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE
        | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = stealer_slots,
};

/* --- EventCount: everything but the wait, which releases the GIL and goes through cffi -------- */

static PyObject *eventcount_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":EventCount", names))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    eventcount_object *self = (eventcount_object *)allocate(type, 0);
    if (self == NULL)
        return NULL;
    self->counter = evc_new();
    if (self->counter == NULL) {
        Py_DECREF((PyObject *)self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void eventcount_dealloc(eventcount_object *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    if (self->counter != NULL)
        evc_delete(self->counter);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *eventcount_prepare(eventcount_object *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLongLong(evc_prepare(self->counter));
}

static PyObject *eventcount_cancel(eventcount_object *self, PyObject *Py_UNUSED(ignored))
{
    evc_cancel(self->counter);
    return none();
}

static PyObject *eventcount_notify(eventcount_object *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(evc_notify(self->counter));
}

static PyObject *eventcount_notify_all(eventcount_object *self, PyObject *Py_UNUSED(ignored))
{
    evc_notify_all(self->counter);
    return none();
}

static PyObject *eventcount_begin_search(eventcount_object *self, PyObject *Py_UNUSED(ignored))
{
    evc_begin_search(self->counter);
    return none();
}

static PyObject *eventcount_end_search(eventcount_object *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(evc_end_search(self->counter));
}

static PyObject *eventcount_address(eventcount_object *self, void *Py_UNUSED(closure))
{
    return PyLong_FromVoidPtr(self->counter);
}

static PyObject *eventcount_waiting(eventcount_object *self, void *Py_UNUSED(closure))
{
    /* pairs with: nothing, a guess for statistics */
    return PyLong_FromLongLong(atomic_load_explicit(&self->counter->waiters, memory_order_relaxed));
}

static PyMethodDef eventcount_methods[] = {
    {"prepare", METHOD(eventcount_prepare), METH_NOARGS, DOC_EVENTCOUNT_PREPARE},
    {"cancel", METHOD(eventcount_cancel), METH_NOARGS, DOC_EVENTCOUNT_CANCEL},
    {"notify", METHOD(eventcount_notify), METH_NOARGS, DOC_EVENTCOUNT_NOTIFY},
    {"notify_all", METHOD(eventcount_notify_all), METH_NOARGS, DOC_EVENTCOUNT_NOTIFY_ALL},
    {"begin_search", METHOD(eventcount_begin_search), METH_NOARGS, DOC_EVENTCOUNT_BEGIN_SEARCH},
    {"end_search", METHOD(eventcount_end_search), METH_NOARGS, DOC_EVENTCOUNT_END_SEARCH},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef eventcount_properties[] = {
    {"address", (getter)eventcount_address, NULL, NULL, NULL},
    {"waiting", (getter)eventcount_waiting, NULL, DOC_EVENTCOUNT_WAITING, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot eventcount_slots[] = {
    {Py_tp_new, eventcount_new},
    {Py_tp_dealloc, eventcount_dealloc},
    {Py_tp_methods, eventcount_methods},
    {Py_tp_getset, eventcount_properties},
    {0, NULL},
};

static PyType_Spec eventcount_spec = {
    .name = "orchestra._native._objects.EventCount",
    .basicsize = sizeof(eventcount_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = eventcount_slots,
};

/* --- the module, loaded from the same file as the cffi one ----------------------------------- */

static PyObject *set_statistics(PyObject *module, PyObject *factory)
{
    module_state *state = PyModule_GetState(module);
    PyObject *old = state->statistics;
    Py_INCREF(factory);
    state->statistics = factory;
    Py_XDECREF(old);
    return none();
}

static PyMethodDef module_methods[] = {
    {"set_statistics", set_statistics, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (type != NULL && PyModule_AddType(module, type) < 0)
        Py_CLEAR(type);
    return type;
}

static int module_exec(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    state->deque = add_type(module, &deque_spec);
    state->stealer = add_type(module, &stealer_spec);
    state->eventcount = add_type(module, &eventcount_spec);
    return state->deque != NULL && state->stealer != NULL && state->eventcount != NULL ? 0 : -1;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    module_state *state = PyModule_GetState(module);
    Py_VISIT(state->deque);
    Py_VISIT(state->stealer);
    Py_VISIT(state->eventcount);
    Py_VISIT(state->statistics);
    return 0;
}

static int module_clear(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->deque);
    Py_CLEAR(state->stealer);
    Py_CLEAR(state->eventcount);
    Py_CLEAR(state->statistics);
    return 0;
}

static void module_free(void *module) { module_clear((PyObject *)module); }

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_objects",
    .m_size = sizeof(module_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__objects(void) { return PyModuleDef_Init(&module_definition); }

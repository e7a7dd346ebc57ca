/* The words of a segment for Python: the classes around _ring.h, which has the orderings.
 *
 * The twin with the same classes is _plain. Every object holds its Py_buffer until it is deallocated, so a mapping can
 * never vanish under a bound method. All sizes are checked against the buffer once, in the constructor; arguments are
 * checked in every call. Each of these headers has classes, and is included here alone:
 */
#include "_gating.h"
#include "_lossy.h"
#include "_rows.h"

/* ---------------------------------------------------------------- Words */

static PyObject *words_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    PyObject *buffer;
    if (!PyArg_ParseTuple(args, "O", &buffer)) {
        return NULL;
    }
    return (PyObject *)core_alloc(type, buffer, 0);
}

static PyObject *words_load(Core *self, PyObject *arg, int acquire) {
    uint64_t index;
    if (!as_index(arg, self->word_count, &index)) {
        return NULL;
    }
    const word_t *word = self->words + index;
    return PyLong_FromUnsignedLongLong(acquire ? load_acquire(word) : load_relaxed(word));
}

static PyObject *words_store(Core *self, PyObject *const *args, Py_ssize_t count, int release) {
    uint64_t index, value;
    if (!check_count(count, 2) || !as_index(args[0], self->word_count, &index) || !as_word(args[1], &value)) {
        return NULL;
    }
    if (self->view.readonly) {
        PyErr_SetString(PyExc_TypeError, "cannot store into a read-only mapping");
        return NULL;
    }
    if (release) {
        store_release(self->words + index, value);
    } else {
        store_relaxed(self->words + index, value);
    }
    Py_RETURN_NONE;
}

static PyObject *words_load_acquire(Core *self, PyObject *arg) {
    return words_load(self, arg, 1);
}
static PyObject *words_load_relaxed(Core *self, PyObject *arg) {
    return words_load(self, arg, 0);
}
static PyObject *words_store_release(Core *self, PyObject *const *args, Py_ssize_t count) {
    return words_store(self, args, count, 1);
}
static PyObject *words_store_relaxed(Core *self, PyObject *const *args, Py_ssize_t count) {
    return words_store(self, args, count, 0);
}
static PyObject *words_fence(Core *Py_UNUSED(self), PyObject *Py_UNUSED(arg)) {
    atomic_thread_fence(memory_order_seq_cst);
    Py_RETURN_NONE;
}

static PyMethodDef words_methods[] = {
    ONE("load_acquire", words_load_acquire, "Return word i; later accesses stay behind it."),
    ONE("load_relaxed", words_load_relaxed, "Return word i."),
    FAST("store_release", words_store_release, "Store word i; earlier accesses stay before it."),
    FAST("store_relaxed", words_store_relaxed, "Store word i."),
    NONE("fence", words_fence, "Full fence: nothing crosses it, not even a load over a store."),
    END,
};

TYPE(words_spec, "Words", words_new, words_methods, no_members);

/* ---------------------------------------------------------------- module */

static int add_types(PyObject *module) {
    PyType_Spec *specs[] = {&words_spec,         &lossy_writer_spec, &lossy_reader_spec, &gating_writer_spec,
                            &gating_reader_spec, &row_writer_spec,   &row_reader_spec,   &counter_words_spec};
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        PyObject *type = PyType_FromSpec(specs[i]);
        if (type == NULL) {
            return -1;
        }
        const char *name = strrchr(specs[i]->name, '.') + 1;
        int failed = PyModule_AddObjectRef(module, name, type);
        Py_DECREF(type);
        if (failed) {
            return -1;
        }
    }
    return PyModule_AddStringConstant(module, "BACKEND", "c");
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, add_types}, {0, NULL}};
static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT, "ringbuffer._words", "Words of a segment by C11 atomics.", 0, NULL, module_slots, NULL, NULL,
    NULL};

PyMODINIT_FUNC PyInit__words(void) {
    return PyModuleDef_Init(&module_definition);
}

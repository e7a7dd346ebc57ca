// An answer of a host, from the read that holds its head to its end, for the usual one to a client of HTTP: what else
// would be some twenty functions of Python for its first read and as many for its last, each of them memory that a
// first token finds cold.
//
//     Answers.begin()   a host's first read: the head of a stream, or a whole answer. Twin:
//                       HostConnection._collect_head with Attempt.begin, and Attempt._end_whole
//     Answers.take()    a read of a stream that is no single token like the last. Twin: Attempt._scan_read, and all
//                       behind it
//
// Each looks before it changes anything whether all is as usual; what is not is left to the twin: false is returned.
// From where a read is scanned, which cannot be undone, the twin takes over in the middle (Attempt._take_scanned,
// _record, complete, Loop.end_ok). So nothing here may guess, and a step is either wholly done here or wholly there.
//
// A write may call back into the router: the client's socket may be full. So what may have changed is read anew behind
// it.

#include "_answer_whole.h"

// ---------------------------------------------------------------- a read of a stream

PyDoc_STRVAR(take_doc,
    "take(attempt, data, now)\n--\n\n"
    "Take a read of a stream and return true; or change nothing and return false, where anything is not as usual.");

static PyObject *answers_take(Answers *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3 || !PyBytes_Check(arguments[1]) || !PyLong_Check(arguments[2])) {
        PyErr_SetString(PyExc_TypeError, "take(attempt, data: bytes, now: int)");
        return NULL;
    }
    int taken = self->is_ready ? take(self, arguments[0], arguments[1], arguments[2]) : 0;
    return taken < 0 ? NULL : PyBool_FromLong(taken);
}

// ---------------------------------------------------------------- a first read

// Take what begins with a head that is known.
static int begin_known(const Answers *self, PyObject *connection, PyObject *attempt, PyObject *data,
    const known_head *found, PyObject *now)
{
    PyObject *head = found->head;
    bool streams = is_true(head, &self->head.at.chunked);
    int may = is_fit(self, head, attempt, streams);
    if (may <= 0)
        return may;
    text rest = (text)PyBytes_AsString(data) + found->end;
    Py_ssize_t bytes = PyBytes_Size(data) - found->end;
    if (!streams)
        return bytes == found->length && bytes > 0
            ? take_whole(self, attempt, head, (span){rest, rest + bytes}, now) : 0;
    if (!begin_stream(self, connection, attempt, head, now))
        return -1;
    return bytes == 0 || take_rest(self, attempt, rest, bytes, now) ? 1 : -1;
}

// Take the first read of an answer: 1; 0 where the twin must, and nothing has changed; -1 with an exception set.
static int begin(const Answers *self, PyObject *connection, PyObject *data, PyObject *now)
{
    if (Py_TYPE(connection) != self->connection.known || !is_empty(connection, &self->connection.at._head))
        return 0;
    PyObject *attempt = Py_NewRef(field(connection, &self->connection.at.attempt));
    known_head found = {NULL, -1, 0};
    int may = find_head(self, data, &found);
    if (may > 0)
        may = begin_known(self, connection, attempt, data, &found, now);
    Py_DECREF(attempt);
    Py_XDECREF(found.head);
    return may;
}

PyDoc_STRVAR(begin_doc,
    "begin(connection, data, now)\n--\n\n"
    "Take the first read of an answer and return true; or change nothing and return false, where anything is not\n"
    "as usual.");

static PyObject *answers_begin(Answers *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3 || !PyBytes_Check(arguments[1]) || !PyLong_Check(arguments[2])) {
        PyErr_SetString(PyExc_TypeError, "begin(connection, data: bytes, now: int)");
        return NULL;
    }
    int taken = self->is_ready ? begin(self, arguments[0], arguments[1], arguments[2]) : 0;
    return taken < 0 ? NULL : PyBool_FromLong(taken);
}

// ---------------------------------------------------------------- what it is told

static const char *const connection_names[] = {FIELDS_OF_CONNECTION(AS_TEXT)};
static const char *const attempt_names[] = {FIELDS_OF_ATTEMPT(AS_TEXT)};
static const char *const request_names[] = {FIELDS_OF_REQUEST(AS_TEXT) COUNTS_OF_REQUEST(AS_TEXT)};
static const char *const client_names[] = {FIELDS_OF_CLIENT(AS_TEXT)};
static const char *const scanner_names[] = {FIELDS_OF_SCANNER(AS_TEXT)};
static const char *const decoder_names[] = {FIELDS_OF_DECODER(AS_TEXT)};
static const char *const head_names[] = {FIELDS_OF_HEAD(AS_TEXT)};
static const char *const host_names[] = {FIELDS_OF_HOST(AS_TEXT)};
static const char *const tool_names[] = {TOOLS(AS_TEXT)};
static const char *const number_names[] = {NUMBERS(AS_TEXT)};

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof *(array)))
#define SHAPE_OF(kind, objects) {#kind, kind##_names, COUNT_OF(kind##_names), objects, offsetof(Answers, kind.known), \
    offsetof(Answers, kind.at)}

static const struct {
    const char *kind;
    const char *const *names;
    int count, object_count;  // behind the objects stand unsigned numbers of C
    size_t known, slots;
} shapes[] = {
    SHAPE_OF(connection, COUNT_OF(connection_names)), SHAPE_OF(attempt, COUNT_OF(attempt_names)),
    SHAPE_OF(request, OBJECT_FIELDS_OF_REQUEST),      SHAPE_OF(client, COUNT_OF(client_names)),
    SHAPE_OF(scanner, COUNT_OF(scanner_names)),       SHAPE_OF(decoder, COUNT_OF(decoder_names)),
    SHAPE_OF(head, COUNT_OF(head_names)),             SHAPE_OF(host, COUNT_OF(host_names)),
};

static PyObject *given(PyObject *all, const char *name)
{
    PyObject *found = PyDict_GetItemString(all, name);
    if (found == NULL && !PyErr_Occurred())
        PyErr_Format(PyExc_KeyError, "%s is not given", name);
    return found;
}

static bool know_shape(Answers *self, PyObject *probes, int which)
{
    PyObject *probe = given(probes, shapes[which].kind);
    if (probe == NULL)
        return false;
    slot *slots = (slot *)((char *)self + shapes[which].slots);
    for (int i = 0; i < shapes[which].count; i++) {
        if (slots[i].name == NULL && (slots[i].name = PyUnicode_InternFromString(shapes[which].names[i])) == NULL)
            return false;
        if (!find_slot(probe, slots + i))
            return false;
        if (slots[i].kind != (i < shapes[which].object_count ? IS_OBJECT : IS_NUMBER)) {
            PyErr_Format(PyExc_ValueError, "%s.%U is not where it should be", shapes[which].kind, slots[i].name);
            return false;
        }
    }
    PyTypeObject **known = (PyTypeObject **)((char *)self + shapes[which].known), *before = *known;
    *known = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(probe));
    Py_XDECREF((PyObject *)before);
    return true;
}

static bool know_tools(Answers *self, PyObject *tools)
{
    PyObject **to = (PyObject **)&self->tool;
    for (int i = 0; i < COUNT_OF(tool_names); i++) {
        PyObject *tool = given(tools, tool_names[i]), *before = to[i];
        if (tool == NULL)
            return false;
        to[i] = Py_NewRef(tool);
        Py_XDECREF(before);
    }
    number *numbers = (number *)&self->is;
    for (int i = 0; i < COUNT_OF(number_names); i++) {
        PyObject *one = given(tools, number_names[i]);
        numbers[i] = one == NULL ? (number)-1 : PyLong_AsUnsignedLongLong(one);
        if (numbers[i] == (number)-1 && PyErr_Occurred())
            return false;
    }
    if (!PyDict_Check(self->tool.heads) || !PyBytes_Check(self->tool.usual_sentinel)
        || !PyBytes_Check(self->tool.usual_end)) {
        PyErr_SetString(PyExc_TypeError, "heads are a dict, usual_sentinel and usual_end bytes");
        return false;
    }
    return true;
}

PyDoc_STRVAR(know_doc,
    "know(probes, tools)\n--\n\n"
    "Be told one object of each kind, nobody else's, and what is called and compared with.\n"
    "Until then nothing is taken.");

static PyObject *answers_know(Answers *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyDict_Check(arguments[0]) || !PyDict_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "know(probes: dict, tools: dict)");
        return NULL;
    }
    self->is_ready = false;
    for (int i = 0; i < COUNT_OF(shapes); i++)
        if (!know_shape(self, arguments[0], i))
            return NULL;
    if (!know_tools(self, arguments[1]))
        return NULL;
    self->is_ready = true;
    Py_RETURN_NONE;
}

static PyObject *answers_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    (void)arguments, (void)keywords;
    Answers *self = (Answers *)PyType_GenericNew(type, NULL, NULL);
    if (self == NULL)
        return NULL;
    self->zero = PyLong_FromLong(0);
    self->empty = PyBytes_FromStringAndSize(NULL, 0);
    self->empty_text = PyUnicode_FromString("");
    if (self->zero == NULL || self->empty == NULL || self->empty_text == NULL)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void answers_dealloc(Answers *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    for (int which = 0; which < COUNT_OF(shapes); which++) {
        slot *slots = (slot *)((char *)self + shapes[which].slots);
        for (int i = 0; i < shapes[which].count; i++)
            Py_XDECREF(slots[i].name);
        Py_XDECREF(*(PyObject **)((char *)self + shapes[which].known));
    }
    for (int i = 0; i < COUNT_OF(tool_names); i++)
        Py_XDECREF(((PyObject **)&self->tool)[i]);
    Py_XDECREF(self->zero);
    Py_XDECREF(self->empty);
    Py_XDECREF(self->empty_text);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef answers_methods[] = {
    {"begin", (PyCFunction)(void (*)(void))answers_begin, METH_FASTCALL, begin_doc},
    {"know", (PyCFunction)(void (*)(void))answers_know, METH_FASTCALL, know_doc},
    {"take", (PyCFunction)(void (*)(void))answers_take, METH_FASTCALL, take_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot answers_slots[] = {
    {Py_tp_new, answers_new},
    {Py_tp_dealloc, answers_dealloc},
    {Py_tp_methods, answers_methods},
    {Py_tp_doc, "Answers()\n--\n\nTakes the reads of the usual stream that are more than one more token."},
    {0, NULL},
};

static PyType_Spec answers_spec = {"router._answer.Answers", sizeof(Answers), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, answers_slots};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "router._answer", .m_doc = "Answers of hosts, each read in one call.", .m_size = 0,
};

static bool intern_names(void)
{
    static const char *const texts[] = {NAMES(AS_TEXT)};
    PyObject **to = (PyObject **)&names;
    for (int i = 0; i < COUNT_OF(texts); i++)
        if ((to[i] = PyUnicode_InternFromString(texts[i])) == NULL)
            return false;
    return true;
}

PyMODINIT_FUNC PyInit__answer(void)
{
    PyObject *module = PyModule_Create(&definition), *type = PyType_FromSpec(&answers_spec);
    if (module == NULL || type == NULL || !intern_names() || PyModule_AddObjectRef(module, "Answers", type) != 0)
        Py_CLEAR(module);
    Py_XDECREF(type);
    return module;
}

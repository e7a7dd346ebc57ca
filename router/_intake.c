// A request like an earlier one, from its client's read to the loop, in one call: clients repeat themselves to the byte, but
// for a length, the messages, and the id that the router gives. What does not happen in the interpreter need not be found in
// memory by a request that finds the caches cold.
//
//     Intake.take()     twin: ClientConnection._take_at_once in router/ingress/http.py, which takes what this does not
//     Intake.next_id()  twin: RequestIds in router/ingress/submission.py
//
// A shape is what such requests have in common. It is learned of a request that the twin has made, whose copy all of the shape
// begin as; router/ingress/shapes.py says of which. A read is
//
//     before           the head up to the digits of its content-length
//     1 to 15 digits
//     middle           the rest of the head, and of the body what stands before the messages
//     messages         one JSON array, checked by the scan as it checks those of split_body()
//     after            the rest of the body

#include "_json.h"
#include "_native.h"
#include "_slots.h"

#include <time.h>

typedef unsigned long long number;

enum { LENGTH_DIGITS_MAX = 15, SHAPES_MAX = 64, LEARNED_OF = 8, ID_BYTES_MAX = 64 };

typedef struct {
    int uses;           // by the table, and by calls under way
    PyObject *pattern;  // a request that nobody else has
    PyObject *model, *name;
    bool closes, is_raw, asks_hosts;
    number word4, word5;  // of the request record, without the client's number and the body's length
    Py_ssize_t before, middle, after, head_bytes;  // head_bytes: of `middle`
    unsigned char bytes[];
} shape;

enum { RECV_NS, CLOSE_AFTER, RAW, CONNECTION_ID, REQUEST, NUMBER, CONNECTION_SLOTS };
enum { EGRESS, REQUEST_ID, BODY, RECV, BODY_NS, FOLD, REQUEST_SLOTS };

typedef struct {
    PyObject_HEAD
    PyTypeObject *connection_type, *request_type;
    slot of_connection[CONNECTION_SLOTS], of_request[REQUEST_SLOTS];
    Py_ssize_t copied_at, copied_count;  // the slots of a request lie side by side: where the first does
    const json_t *json;
    PyObject *json_capsule, *loop, *by_name, *add, *counter, *submit, *hosts, *facts, *cancels;
    Py_ssize_t head_bytes_max, body_bytes_max;
    number id_count;
    uint32_t prefix_crc;
    Py_ssize_t prefix_bytes;
    char id[ID_BYTES_MAX];  // its prefix stays
    int shape_count, passed_over;
    shape *shapes[SHAPES_MAX];
} Intake;

static inline PyObject *stamp(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return PyLong_FromLongLong((long long)now.tv_sec * 1000000000 + now.tv_nsec);
}

// ---------------------------------------------------------------- ids

// CRC-32 as of zlib, by half bytes: a table of one cache line.
static uint32_t crc_of(uint32_t crc, const char *bytes, Py_ssize_t count)
{
    static const uint32_t of_half[16] = {
        0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4, 0x4DB26158, 0x5005713C,
        0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C, 0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C,
    };
    for (Py_ssize_t i = 0; i < count; i++) {
        crc ^= (unsigned char)bytes[i];
        crc = of_half[crc & 15] ^ (crc >> 4);
        crc = of_half[crc & 15] ^ (crc >> 4);
    }
    return crc;
}

// A new id; `crc` is its CRC-32.
static PyObject *new_id(Intake *self, uint32_t *crc)
{
    char digits[24], *digit = digits + sizeof digits, *to = self->id + self->prefix_bytes;
    number left = ++self->id_count;
    do {
        *--digit = (char)('0' + left % 10);
        left /= 10;
    } while (left != 0);
    Py_ssize_t count = digits + sizeof digits - digit;
    memcpy(to, digit, count);
    *crc = ~crc_of(self->prefix_crc, to, count);
    return PyUnicode_FromStringAndSize(self->id, self->prefix_bytes + count);
}

PyDoc_STRVAR(next_id_doc, "next_id()\n--\n\nReturn a new id.");

static PyObject *intake_next_id(Intake *self, PyObject *unused)
{
    (void)unused;
    uint32_t crc;
    return new_id(self, &crc);
}

// ---------------------------------------------------------------- shapes

static void release(shape *of)
{
    if (--of->uses > 0)
        return;
    Py_XDECREF(of->pattern);
    Py_XDECREF(of->model);
    Py_XDECREF(of->name);
    PyMem_Free(of);
}

static void forget_shapes(Intake *self)
{
    while (self->shape_count > 0)
        release(self->shapes[--self->shape_count]);
}

static bool is_digit(unsigned char byte)
{
    return byte >= '0' && byte <= '9';
}

enum fit { IS_OTHER, IS_BROKEN, FITS };

// Whether a read has a shape; `body` is then where its body begins.
static enum fit fits(const Intake *self, const shape *of, text data, text end, text *body)
{
    if (end - data <= of->before + of->middle + of->after || memcmp(data, of->bytes, of->before) != 0)
        return IS_OTHER;
    text digits = data + of->before, at = digits;
    Py_ssize_t length = 0;
    while (at < end && at - digits < LENGTH_DIGITS_MAX && is_digit(*at))
        length = length * 10 + (*at++ - '0');
    text middle = of->bytes + of->before;
    if (at == digits || end - at <= of->middle + of->after || memcmp(at, middle, of->middle) != 0)
        return IS_OTHER;
    *body = at + of->head_bytes;
    if (end - *body != length || length > self->body_bytes_max || *body - data > self->head_bytes_max)
        return IS_BROKEN;
    text array = at + of->middle, array_end = end - of->after;
    if (memcmp(array_end, middle + of->middle, of->after) != 0)
        return IS_OTHER;
    return self->json->is_array(array, array_end) ? FITS : IS_BROKEN;
}

// The shape of a read, NULL for none that is known. One that is found goes forward by a place, so that the most frequent are
// found first. An array that is broken is looked at once.
static shape *shape_of(Intake *self, text data, text end, text *body)
{
    for (int i = 0; i < self->shape_count; i++) {
        shape *of = self->shapes[i];
        enum fit fit = fits(self, of, data, end, body);
        if (fit == IS_BROKEN)
            return NULL;
        if (fit == FITS) {
            if (i > 0)
                self->shapes[i] = self->shapes[i - 1], self->shapes[i - 1] = of;
            return of;
        }
    }
    return NULL;
}

// ---------------------------------------------------------------- a request

static PyObject *copy_of(const Intake *self, PyObject *pattern)
{
    allocfunc allocate = (allocfunc)PyType_GetSlot(self->request_type, Py_tp_alloc);
    PyObject *made = allocate(self->request_type, 0);
    if (made == NULL)
        return NULL;
    PyObject **from = (PyObject **)((char *)pattern + self->copied_at), **to = (PyObject **)((char *)made + self->copied_at);
    for (Py_ssize_t i = 0; i < self->copied_count; i++)
        to[i] = Py_XNewRef(from[i]);
    return made;
}

// Set a slot; takes over the value.
static void put(PyObject *owner, const slot *to, PyObject *value)
{
    PyObject **where = (PyObject **)((char *)owner + to->offset), *before = *where;
    *where = value;
    Py_XDECREF(before);
}

// Whether one of a model's hosts works on after a whole answer is broken off: the last line of Model.folds(). -1: an error.
static int is_folded(const Intake *self, const shape *of)
{
    PyObject *hosts = PyObject_GetAttr(of->model, self->hosts);
    int folded = hosts == NULL || !PyList_Check(hosts) ? -1 : 0;
    if (hosts != NULL && folded < 0)
        PyErr_SetString(PyExc_TypeError, "the hosts of a model are a list");
    for (Py_ssize_t i = 0; folded == 0 && i < PyList_Size(hosts); i++) {
        PyObject *host = Py_NewRef(PyList_GetItem(hosts, i)), *facts = PyObject_GetAttr(host, self->facts);
        PyObject *cancels = facts == NULL ? NULL : PyObject_GetAttr(facts, self->cancels);
        folded = cancels == NULL ? -1 : PyObject_Not(cancels);
        Py_DECREF(host);
        Py_XDECREF(facts);
        Py_XDECREF(cancels);
    }
    Py_XDECREF(hosts);
    return folded;
}

// Give the connection and a copy of the pattern what is their own; NULL with an exception set where memory is out.
static PyObject *begun(Intake *self, const shape *of, PyObject *connection, span body, uint32_t *crc)
{
    PyObject *recv = stamp(), *id = new_id(self, crc), *made = copy_of(self, of->pattern);
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)body.begin, body.end - body.begin), *body_ns = stamp();
    if (recv == NULL || id == NULL || made == NULL || bytes == NULL || body_ns == NULL) {
        Py_XDECREF(recv);
        Py_XDECREF(id);
        Py_XDECREF(made);
        Py_XDECREF(bytes);
        Py_XDECREF(body_ns);
        return NULL;
    }
    put(made, self->of_request + EGRESS, Py_NewRef(connection));
    put(made, self->of_request + REQUEST_ID, Py_NewRef(id));
    put(made, self->of_request + BODY, bytes);
    put(made, self->of_request + RECV, Py_NewRef(recv));
    put(made, self->of_request + BODY_NS, body_ns);
    put(connection, self->of_connection + RECV_NS, recv);
    put(connection, self->of_connection + CLOSE_AFTER, Py_NewRef(of->closes ? Py_True : Py_False));
    put(connection, self->of_connection + RAW, Py_NewRef(of->is_raw ? Py_True : Py_False));
    put(connection, self->of_connection + CONNECTION_ID, id);
    put(connection, self->of_connection + REQUEST, Py_NewRef(made));
    return made;
}

static bool submit(const Intake *self, PyObject *request, number word4, number word5, uint32_t crc)
{
    PyObject *words[3] = {
        PyLong_FromUnsignedLongLong(word4), PyLong_FromUnsignedLongLong(word5), PyLong_FromUnsignedLong(crc),
    };
    PyObject *done = NULL, *counted = NULL;
    if (words[0] != NULL && words[1] != NULL && words[2] != NULL)
        done = PyObject_CallMethodObjArgs(self->loop, self->submit, request, words[0], words[1], words[2], NULL);
    for (int i = 0; i < 3; i++)
        Py_XDECREF(words[i]);
    if (done != NULL)
        counted = PyObject_CallFunctionObjArgs(self->add, self->counter, NULL);
    bool is_done = counted != NULL;
    Py_XDECREF(done);
    Py_XDECREF(counted);
    return is_done;
}

// 1: it is the loop's; 0: it is not known after all; -1 with an exception set.
static int take(Intake *self, const shape *of, PyObject *connection, span body)
{
    PyObject *model = PyDict_GetItemWithError(self->by_name, of->name);
    if (model != of->model)
        return PyErr_Occurred() ? -1 : 0;
    int folded = of->asks_hosts ? is_folded(self, of) : 0;
    number client = PyLong_AsUnsignedLongLong(object_at(connection, self->of_connection + NUMBER));
    if (folded < 0 || (client == (number)-1 && PyErr_Occurred()))
        return -1;
    uint32_t crc;
    PyObject *request = begun(self, of, connection, body, &crc);
    if (request == NULL)
        return -1;
    if (of->asks_hosts)
        put(request, self->of_request + FOLD, Py_NewRef(folded ? Py_True : Py_False));
    number word5 = of->word5 | (uint32_t)(body.end - body.begin);
    bool is_taken = submit(self, request, of->word4 | client << 32, word5, crc);
    Py_DECREF(request);
    return is_taken ? 1 : -1;
}

PyDoc_STRVAR(take_doc,
    "take(connection, data)\n--\n\n"
    "Hand a read to the loop that is one whole request of a known shape; return whether it was one.");

static PyObject *intake_take(Intake *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyObject_TypeCheck(arguments[0], self->connection_type)) {
        PyErr_SetString(PyExc_TypeError, "take(connection, data)");
        return NULL;
    }
    if (!PyBytes_Check(arguments[1]))
        Py_RETURN_FALSE;
    text data = (text)PyBytes_AsString(arguments[1]), end = data + PyBytes_Size(arguments[1]), body;
    shape *of = shape_of(self, data, end, &body);
    if (of == NULL)
        Py_RETURN_FALSE;
    of->uses++;  // what the loop does may have the shapes forgotten
    int taken = take(self, of, arguments[0], (span){body, end});
    release(of);
    return taken < 0 ? NULL : PyBool_FromLong(taken);
}

// ---------------------------------------------------------------- what is known

PyDoc_STRVAR(may_learn_doc,
    "may_learn()\n--\n\nReturn whether a further shape is wanted. Where there is no room, one of eight takes the place of another: to\n"
    "learn costs more than it gives where more shapes come by turns than there are places.");

static PyObject *intake_may_learn(Intake *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(self->shape_count < SHAPES_MAX || ++self->passed_over % LEARNED_OF == 0);
}

PyDoc_STRVAR(learn_doc,
    "learn(pattern, model, name, before, middle, after, head_bytes, closes, raw, asks_hosts, word4, word5)\n--\n\n"
    "Know a shape from now on. The pattern, which is kept, is a request of it that is nobody else's; name is what its body calls\n"
    "the model.");

static PyObject *intake_learn(Intake *self, PyObject *arguments)
{
    PyObject *pattern, *model, *name;
    const char *parts[3];
    Py_ssize_t sizes[3], head_bytes;
    int closes, raw, asks_hosts;
    number word4, word5;
    if (!PyArg_ParseTuple(arguments, "OOUy#y#y#npppKK:learn", &pattern, &model, &name, parts, sizes, parts + 1, sizes + 1, parts + 2,
            sizes + 2, &head_bytes, &closes, &raw, &asks_hosts, &word4, &word5))
        return NULL;
    if (Py_TYPE(pattern) != self->request_type || head_bytes < 0 || head_bytes > sizes[1]) {
        PyErr_SetString(PyExc_ValueError, "learn: the pattern is a request, and the head ends in the middle");
        return NULL;
    }
    shape *made = PyMem_Malloc(sizeof *made + sizes[0] + sizes[1] + sizes[2]);
    if (made == NULL)
        return PyErr_NoMemory();
    *made = (shape){
        1, Py_NewRef(pattern), Py_NewRef(model), Py_NewRef(name), closes != 0, raw != 0, asks_hosts != 0, word4, word5,
        sizes[0], sizes[1], sizes[2], head_bytes,
    };
    memcpy(made->bytes, parts[0], sizes[0]);
    memcpy(made->bytes + sizes[0], parts[1], sizes[1]);
    memcpy(made->bytes + sizes[0] + sizes[1], parts[2], sizes[2]);
    shape *last = self->shape_count == SHAPES_MAX ? self->shapes[--self->shape_count] : NULL;
    self->shapes[self->shape_count++] = made;
    if (last != NULL)
        release(last);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(forget_doc, "forget(head_bytes_max, body_bytes_max)\n--\n\nForget all shapes; no larger request is taken from now on.");

static PyObject *intake_forget(Intake *self, PyObject *arguments)
{
    if (!PyArg_ParseTuple(arguments, "nn:forget", &self->head_bytes_max, &self->body_bytes_max))
        return NULL;
    forget_shapes(self);
    Py_RETURN_NONE;
}

// ---------------------------------------------------------------- the type

static bool find_slots(PyObject *probe, const char *const *names, slot *to, int count)
{
    for (int i = 0; i < count; i++) {
        if ((to[i].name = PyUnicode_InternFromString(names[i])) == NULL || !find_slot(probe, to + i))
            return false;
        if (to[i].kind != IS_OBJECT) {
            PyErr_Format(PyExc_ValueError, "%s is no slot", names[i]);
            return false;
        }
    }
    return true;
}

static bool find_copied(Intake *self, PyObject *probe, PyObject *names)
{
    Py_ssize_t first = PY_SSIZE_T_MAX, last = 0;
    self->copied_count = PyTuple_Size(names);
    for (Py_ssize_t i = 0; i < self->copied_count; i++) {
        slot each = {.name = PyTuple_GetItem(names, i)};
        if (!find_slot(probe, &each))
            return false;
        if (each.kind != IS_OBJECT) {
            PyErr_Format(PyExc_ValueError, "%S is no slot", each.name);
            return false;
        }
        first = each.offset < first ? each.offset : first;
        last = each.offset > last ? each.offset : last;
    }
    self->copied_at = first;
    if (self->copied_count == 0 || last - first != (self->copied_count - 1) * (Py_ssize_t)sizeof(PyObject *)) {
        PyErr_SetString(PyExc_ValueError, "the slots of requests do not lie side by side");
        return false;
    }
    return true;
}

static bool take_prefix(Intake *self, const char *prefix, Py_ssize_t bytes)
{
    if (bytes > ID_BYTES_MAX - 20) { // the digits of 2**64
        PyErr_Format(PyExc_ValueError, "a prefix has %d bytes at most", ID_BYTES_MAX - 20);
        return false;
    }
    memcpy(self->id, prefix, bytes);
    self->prefix_bytes = bytes;
    self->prefix_crc = crc_of(UINT32_MAX, prefix, bytes);
    return true;
}

static bool take_names(Intake *self)
{
    self->submit = PyUnicode_InternFromString("submit");
    self->hosts = PyUnicode_InternFromString("hosts");
    self->facts = PyUnicode_InternFromString("facts");
    self->cancels = PyUnicode_InternFromString("cancels_whole_answers");
    return self->submit != NULL && self->hosts != NULL && self->facts != NULL && self->cancels != NULL;
}

static PyObject *intake_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static const char *const of_connection[] = {"recv_ns", "_close_after", "raw", "request_id", "request", "number"};
    static const char *const of_request[] = {"egress", "request_id", "body", "recv", "body_ns", "fold"};
    (void)keywords;
    PyObject *connection, *request, *names, *loop, *by_name, *add, *counter, *capsule;
    const char *prefix;
    Py_ssize_t prefix_bytes;
    if (!PyArg_ParseTuple(arguments, "OOO!OO!OOOs#:Intake", &connection, &request, &PyTuple_Type, &names, &loop, &PyDict_Type, &by_name,
            &add, &counter, &capsule, &prefix, &prefix_bytes))
        return NULL;
    const json_t *json = PyCapsule_GetPointer(capsule, RINGROUTER_JSON);
    Intake *self = json == NULL ? NULL : (Intake *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->json = json;
    self->connection_type = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(connection));
    self->request_type = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(request));
    PyObject *given[] = {capsule, loop, by_name, add, counter}, **held[] = {
        &self->json_capsule, &self->loop, &self->by_name, &self->add, &self->counter,
    };
    for (size_t i = 0; i < sizeof held / sizeof *held; i++)
        *held[i] = Py_NewRef(given[i]);
    if (!take_prefix(self, prefix, prefix_bytes) || !take_names(self)
        || !find_slots(connection, of_connection, self->of_connection, CONNECTION_SLOTS)
        || !find_slots(request, of_request, self->of_request, REQUEST_SLOTS) || !find_copied(self, request, names))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static int intake_traverse(Intake *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->loop);
    Py_VISIT(self->by_name);
    Py_VISIT(self->add);
    for (int i = 0; i < self->shape_count; i++) {
        if (self->shapes[i]->uses == 1) {  // else a call under way holds it too
            Py_VISIT(self->shapes[i]->pattern);
            Py_VISIT(self->shapes[i]->model);
        }
    }
    return 0;
}

static int intake_clear(Intake *self)
{
    forget_shapes(self);
    Py_CLEAR(self->loop);
    Py_CLEAR(self->by_name);
    Py_CLEAR(self->add);
    return 0;
}

static void intake_dealloc(Intake *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    intake_clear(self);
    PyObject **held[] = {
        &self->json_capsule, &self->counter, &self->submit, &self->hosts, &self->facts, &self->cancels,
        (PyObject **)&self->connection_type, (PyObject **)&self->request_type,
    };
    for (size_t i = 0; i < sizeof held / sizeof *held; i++)
        Py_CLEAR(*held[i]);
    for (int i = 0; i < CONNECTION_SLOTS; i++)
        Py_XDECREF(self->of_connection[i].name);
    for (int i = 0; i < REQUEST_SLOTS; i++)
        Py_XDECREF(self->of_request[i].name);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMethodDef intake_methods[] = {
    {"forget", (PyCFunction)intake_forget, METH_VARARGS, forget_doc},
    {"learn", (PyCFunction)intake_learn, METH_VARARGS, learn_doc},
    {"may_learn", (PyCFunction)intake_may_learn, METH_NOARGS, may_learn_doc},
    {"next_id", (PyCFunction)intake_next_id, METH_NOARGS, next_id_doc},
    {"take", (PyCFunction)(void (*)(void))intake_take, METH_FASTCALL, take_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(intake_doc,
    "Intake(connection, request, request_slots, loop, by_name, add, counter, json, id_prefix)\n--\n\n"
    "Takes requests of known shapes. The connection and the request are probes, nobody else's; add(counter) is called for each.");

static PyType_Slot intake_slots[] = {
    {Py_tp_new, intake_new},
    {Py_tp_dealloc, intake_dealloc},
    {Py_tp_traverse, intake_traverse},
    {Py_tp_clear, intake_clear},
    {Py_tp_methods, intake_methods},
    {Py_tp_doc, (void *)intake_doc},
    {0, NULL},
};

static PyType_Spec intake_spec = {
    "router._intake.Intake", sizeof(Intake), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, intake_slots,
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "router._intake", .m_doc = "A request like an earlier one, in one call.", .m_size = 0,
};

PyMODINIT_FUNC PyInit__intake(void)
{
    PyObject *module = PyModule_Create(&definition), *type = PyType_FromSpec(&intake_spec);
    if (module == NULL || type == NULL || PyModule_AddObjectRef(module, "Intake", type) != 0)
        Py_CLEAR(module);
    Py_XDECREF(type);
    return module;
}

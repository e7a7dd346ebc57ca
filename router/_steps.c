// Steps of a request's path: what else would take many of the interpreter's, each of them memory that a first token finds
// cold. Every function has a twin in plain Python, which is the fallback and the judge of what is right:
//
//     split_head      router/http1.py                 a head without what varies between heads that are the same otherwise
//     StageTimes      router/ingress/heads.py         the value of server-timing
//     first_byte      router/messages.py              of anything with a buffer
//     offset_of       router/caches/tools.py          where a part of a buffer begins in it
//     dots            router/caches/selection.py      how near vectors are to another
//     tcp_info        router/telemetry/tcp.py         TCP_INFO as it stands in a record
//     Packer          router/telemetry/packing.py     a record out of the attributes of one object
//     Mould           router/mould.py                 objects that begin alike
//     Picker          router/picking.py               which host gets a request, by the default policy

#include "_native.h"
#include "_slots.h"

#include <sys/socket.h>

#include <linux/tcp.h>
#include <netinet/in.h>

// ---------------------------------------------------------------- heads

enum { LENGTH_DIGITS_MAX = 15, DATE_BYTES_MAX = 40 };

static bool is_digit(unsigned char byte)
{
    return byte >= '0' && byte <= '9';
}

static bool is_of_date(unsigned char byte)
{
    unsigned char lower = byte | 0x20;
    return is_digit(byte) || (lower >= 'a' && lower <= 'z') || (byte != 0 && strchr(",: +-", byte) != NULL);
}

// Whether a header line has this name; `name` in lower case, with the colon.
static bool has_name(text line, text end, const char *name, Py_ssize_t name_bytes)
{
    if (end - line < name_bytes)
        return false;
    for (Py_ssize_t i = 0; i < name_bytes; i++) {
        unsigned char byte = line[i];
        if (byte >= 'A' && byte <= 'Z')
            byte |= 0x20;
        if (byte != (unsigned char)name[i])
            return false;
    }
    return true;
}

// The value of a line "name: value" behind its one space, if all of it is of the form; begin NULL if not.
static span varying_value(text at, text line_end, Py_ssize_t bytes_max, bool (*fits)(unsigned char))
{
    span none = {NULL, NULL}, value = {at + 1, line_end};
    if (at >= line_end || *at != ' ' || line_end - value.begin < 1 || line_end - value.begin > bytes_max)
        return none;
    for (text byte = value.begin; byte < line_end; byte++)
        if (!fits(*byte))
            return none;
    return value;
}

PyDoc_STRVAR(split_head_doc,
    "split_head(data, position, head_bytes_max)\n--\n\n"
    "Return a head without the values of its content-length and date, the length (-1: none), and where it ends; or None.");

// The twin of plain_split_head() in router/http1.py.
static PyObject *split_head(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    if (count != 3 || !PyBytes_Check(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "split_head(data: bytes, position: int, head_bytes_max: int)");
        return NULL;
    }
    Py_ssize_t position = PyLong_AsSsize_t(arguments[1]), bytes_max = PyLong_AsSsize_t(arguments[2]);
    if (PyErr_Occurred())
        return NULL;
    Py_ssize_t size = PyBytes_Size(arguments[0]);
    if (position < 0 || position > size || bytes_max < 0)
        Py_RETURN_NONE;
    text begin = (text)PyBytes_AsString(arguments[0]) + position;
    text limit = size - position > bytes_max ? begin + bytes_max : begin + (size - position);
    span length = {NULL, NULL}, date = {NULL, NULL};
    text line = begin, end = NULL;
    while (end == NULL) {
        text line_end = memchr(line, '\r', limit - line);
        while (line_end != NULL && limit - line_end >= 2 && line_end[1] != '\n') // a CR that ends no line
            line_end = memchr(line_end + 1, '\r', limit - line_end - 1);
        if (line_end == NULL || limit - line_end < 2)
            Py_RETURN_NONE;
        if (line != begin && has_name(line, line_end, "content-length:", 15)) {
            if (length.begin != NULL || (length = varying_value(line + 15, line_end, LENGTH_DIGITS_MAX, is_digit)).begin == NULL)
                Py_RETURN_NONE;
        } else if (line != begin && has_name(line, line_end, "date:", 5)) {
            if (date.begin != NULL || (date = varying_value(line + 5, line_end, DATE_BYTES_MAX, is_of_date)).begin == NULL)
                Py_RETURN_NONE;
        }
        if (limit - line_end >= 4 && line_end[2] == '\r' && line_end[3] == '\n')
            end = line_end + 4;
        line = line_end + 2;
    }
    long long declared = length.begin == NULL ? -1 : 0;
    for (text digit = length.begin; digit != NULL && digit < length.end; digit++)
        declared = declared * 10 + (*digit - '0');
    span first = length, second = date;
    if (date.begin != NULL && (length.begin == NULL || date.begin < length.begin))
        first = date, second = length;
    if (first.begin == NULL)
        first.begin = first.end = end;
    if (second.begin == NULL)
        second.begin = second.end = end;
    Py_ssize_t one = first.begin - begin, two = second.begin - first.end, three = end - second.end;
    PyObject *key = PyBytes_FromStringAndSize(NULL, one + two + three);
    if (key == NULL)
        return NULL;
    char *to = PyBytes_AsString(key);
    memcpy(to, begin, one);
    memcpy(to + one, first.end, two);
    memcpy(to + one + two, second.end, three);
    PyObject *values[] = {key, PyLong_FromLongLong(declared), PyLong_FromSsize_t(position + (Py_ssize_t)(end - begin))};
    return tuple_of(values, 3);
}

// ---------------------------------------------------------------- times

enum { STAGES = 5, STAGE_BYTES_MAX = 48 };

// Times in milliseconds with three digits behind the point; one below zero is left out.
static PyObject *shown_times(const long long stages_ns[STAGES])
{
    static const char *const names[STAGES] = {"ingress;dur=", "queue;dur=", "route;dur=", "connect;dur=", "host;dur="};
    char text_of[STAGES * STAGE_BYTES_MAX], *to = text_of;
    for (int i = 0; i < STAGES; i++) {
        long long ns = stages_ns[i];
        if (ns < 0)
            continue;
        unsigned long long us = ((unsigned long long)ns + 500) / 1000, whole = us / 1000;
        if (to != text_of)
            *to++ = ',', *to++ = ' ';
        for (const char *byte = names[i]; *byte != 0; byte++)
            *to++ = *byte;
        char digits[24], *digit = digits + sizeof digits;
        do {
            *--digit = (char)('0' + whole % 10);
            whole /= 10;
        } while (whole != 0);
        while (digit < digits + sizeof digits)
            *to++ = *digit++;
        *to++ = '.';
        *to++ = (char)('0' + us / 100 % 10);
        *to++ = (char)('0' + us / 10 % 10);
        *to++ = (char)('0' + us % 10);
    }
    return PyBytes_FromStringAndSize(text_of, to - text_of);
}

// ---------------------------------------------------------------- TCP_INFO

PyDoc_STRVAR(tcp_info_doc,
    "tcp_info(descriptor)\n--\n\n"
    "Return round-trip times and counts of a TCP connection as they stand in a record, empty where there is none.");

// The twin of plain_tcp_info() in router/telemetry/tcp.py.
static PyObject *tcp_info(PyObject *module, PyObject *argument)
{
    (void)module;
    int descriptor = (int)PyLong_AsLong(argument);
    if (PyErr_Occurred())
        return NULL;
    struct tcp_info info = {0};
    socklen_t size = sizeof info;
    if (descriptor < 0 || getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, &info, &size) != 0
        || size < offsetof(struct tcp_info, tcpi_total_retrans) + sizeof info.tcpi_total_retrans)
        return PyBytes_FromStringAndSize(NULL, 0);
    uint32_t min_rtt = size >= offsetof(struct tcp_info, tcpi_min_rtt) + sizeof info.tcpi_min_rtt ? info.tcpi_min_rtt : 0;
    uint32_t values[] = {
        info.tcpi_rtt, info.tcpi_rttvar, min_rtt == UINT32_MAX ? 0 : min_rtt, info.tcpi_retrans, info.tcpi_total_retrans,
        info.tcpi_snd_cwnd, info.tcpi_unacked, 1,
    };
    return PyBytes_FromStringAndSize((const char *)values, sizeof values);
}

// ---------------------------------------------------------------- records

// The twin of PlainPacker in router/telemetry/packing.py, where the codes are told.
typedef struct {
    slot from;
    char code;
    Py_ssize_t offset, width;
} field;

typedef struct {
    PyObject_HEAD
    PyTypeObject *known;  // whose slots are known; NULL: all is asked for by name
    Py_ssize_t size, count;
    field *fields;
} Packer;

static Py_ssize_t width_of(const char *code)
{
    if (code[0] >= '1' && code[0] <= '9') {
        Py_ssize_t width = 0;
        while (*code >= '0' && *code <= '9' && width < (1 << 20))
            width = width * 10 + (*code++ - '0');
        return code[0] == 's' && code[1] == 0 ? width : -1;
    }
    if (code[0] == 0 || code[1] != 0)
        return -1;
    return code[0] == 'Q' ? 8 : code[0] == 'I' || code[0] == 'f' ? 4 : code[0] == 'H' ? 2 : code[0] == 'B' ? 1 : -1;
}

static bool take_field(Packer *self, PyObject *given)
{
    field *to = self->fields + self->count;
    PyObject *name;
    const char *code;
    if (!PyTuple_Check(given) || !PyArg_ParseTuple(given, "Usn;a field is (name, code, offset)", &name, &code, &to->offset)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "a field is (name, code, offset)");
        return false;
    }
    to->width = width_of(code);
    if (to->width < 0 || to->offset < 0 || to->offset > self->size - to->width) {
        PyErr_Format(PyExc_ValueError, "field %U: code %s at %zd is none, or outside of %zd bytes", name, code, to->offset, self->size);
        return false;
    }
    to->code = code[0] >= '1' && code[0] <= '9' ? 's' : code[0];
    to->from.name = Py_NewRef(name);
    PyUnicode_InternInPlace(&to->from.name);
    self->count++;
    return true;
}

static bool know(Packer *self, PyObject *probe)
{
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (!find_slot(probe, &self->fields[i].from))
            return false;
    self->known = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(probe));
    return true;
}

static PyObject *packer_new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    (void)names;
    Py_ssize_t size;
    PyObject *given, *probe = Py_None;
    if (!PyArg_ParseTuple(arguments, "nO|O:Packer", &size, &given, &probe))
        return NULL;
    PyObject *fields = PySequence_Tuple(given);
    Packer *self = fields == NULL ? NULL : (Packer *)PyType_GenericNew(type, NULL, NULL);
    if (self == NULL) {
        Py_XDECREF(fields);
        return NULL;
    }
    self->size = size;
    self->fields = PyMem_Calloc(PyTuple_Size(fields) + 1, sizeof(field));
    bool taken = self->fields != NULL;
    if (!taken)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; taken && i < PyTuple_Size(fields); i++)
        taken = take_field(self, PyTuple_GetItem(fields, i));
    Py_DECREF(fields);
    if (taken && probe != Py_None)
        taken = know(self, probe);
    if (!taken)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void packer_dealloc(Packer *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    for (Py_ssize_t i = 0; i < self->count; i++)
        Py_DECREF(self->fields[i].from.name);
    Py_XDECREF((PyObject *)self->known);
    PyMem_Free(self->fields);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

// What is over the field's width is stored as the largest that it holds.
static void store_unsigned(const field *to, uint64_t number, unsigned char *record)
{
    uint64_t largest = to->width == 8 ? UINT64_MAX : (UINT64_C(1) << 8 * to->width) - 1;
    if (number > largest)
        number = largest;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    switch (to->width) { // of known length each copy is one instruction
    case 8: memcpy(record + to->offset, &number, 8); return;
    case 4: memcpy(record + to->offset, &number, 4); return;
    case 2: memcpy(record + to->offset, &number, 2); return;
    }
#endif
    for (Py_ssize_t i = 0; i < to->width; i++)
        record[to->offset + i] = (unsigned char)(number >> 8 * i);
}

static bool store_number(const field *to, PyObject *value, unsigned char *record)
{
    int overflow;
    long long signed_number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (signed_number == -1 && PyErr_Occurred())
        return false;
    if (overflow < 0 || (overflow == 0 && signed_number < 0)) {
        PyErr_Format(PyExc_OverflowError, "%U: %S is below zero", to->from.name, value);
        return false;
    }
    uint64_t number = (uint64_t)signed_number;
    if (overflow > 0) {
        number = PyLong_AsUnsignedLongLong(value);
        if (number == UINT64_MAX && PyErr_Occurred())
            PyErr_Clear(); // over 64 bits: the largest, as it stands there
    }
    store_unsigned(to, number, record);
    return true;
}

static bool store(const field *to, PyObject *value, unsigned char *record)
{
    if (to->code == 's') {
        if (!PyBytes_Check(value)) {
            PyErr_Format(PyExc_TypeError, "%U: bytes are wanted", to->from.name);
            return false;
        }
        Py_ssize_t size = PyBytes_Size(value);
        memcpy(record + to->offset, PyBytes_AsString(value), size < to->width ? size : to->width);
        return true;
    }
    if (to->code != 'f')
        return store_number(to, value, record);
    double number = PyFloat_AsDouble(value);
    if (number == -1.0 && PyErr_Occurred())
        return false;
    float narrow = (float)number;
    memcpy(record + to->offset, &narrow, sizeof narrow);
    return true;
}

static bool pack_field(const field *to, PyObject *source, bool is_known, unsigned char *record)
{
    if (is_known && to->from.kind == IS_NUMBER && to->code != 's' && to->code != 'f') {
        store_unsigned(to, *number_at(source, &to->from), record);
        return true;
    }
    PyObject *value = is_known && to->from.kind == IS_OBJECT ? object_at(source, &to->from) : NULL;
    value = value != NULL ? Py_NewRef(value) : PyObject_GetAttr(source, to->from.name);
    bool stored = value != NULL && store(to, value, record);
    Py_XDECREF(value);
    return stored;
}

PyDoc_STRVAR(packer_pack_doc, "pack(source)\n--\n\nReturn the record of an object; what no field covers is zero.");

static PyObject *packer_pack(Packer *self, PyObject *source)
{
    PyObject *packed = PyBytes_FromStringAndSize(NULL, self->size);
    if (packed == NULL)
        return NULL;
    unsigned char *record = (unsigned char *)PyBytes_AsString(packed);
    memset(record, 0, self->size);
    bool is_known = Py_TYPE(source) == self->known;
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (!pack_field(self->fields + i, source, is_known, record)) {
            Py_DECREF(packed);
            return NULL;
        }
    return packed;
}

static PyMethodDef packer_methods[] = {
    {"pack", (PyCFunction)packer_pack, METH_O, packer_pack_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot packer_slots[] = {
    {Py_tp_new, packer_new},
    {Py_tp_dealloc, packer_dealloc},
    {Py_tp_methods, packer_methods},
    {Py_tp_doc, "Packer(size, fields)\n--\n\nPacks a record out of the attributes of one object."},
    {0, NULL},
};

static PyType_Spec packer_spec = {"router._steps.Packer", sizeof(Packer), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, packer_slots};

// ---------------------------------------------------------------- times of a request

enum { RECV, DEQ, ADMITTED, ROUTED, CONN, SENT, HFB, TOK_1, TOK_N, STAMPS };

typedef struct {
    PyObject_HEAD
    PyTypeObject *known;
    slot slots[STAMPS];
} StageTimes;

static bool stamp_of(const StageTimes *self, PyObject *request, int which, long long *to)
{
    const slot *from = self->slots + which;
    bool is_known = Py_TYPE(request) == self->known;
    if (is_known && from->kind == IS_NUMBER) {
        *to = (long long)*number_at(request, from);
        return true;
    }
    PyObject *value = is_known && from->kind == IS_OBJECT ? object_at(request, from) : NULL;
    value = value != NULL ? Py_NewRef(value) : PyObject_GetAttr(request, from->name);
    *to = value == NULL ? -1 : PyLong_AsLongLong(value);
    Py_XDECREF(value);
    return *to != -1 || !PyErr_Occurred();
}

PyDoc_STRVAR(stage_times_of_doc, "of(request)\n--\n\nReturn the value of server-timing for a request as far as it has come.");

// The twin of plain_server_timing() in router/ingress/heads.py.
static PyObject *stage_times_of(StageTimes *self, PyObject *request)
{
    long long at[STAMPS];
    for (int i = 0; i < STAMPS; i++)
        if (!stamp_of(self, request, i, at + i))
            return NULL;
    long long last = at[TOK_N] != 0 ? at[TOK_N] : at[TOK_1] != 0 ? at[TOK_1] : at[HFB];
    const long long stages_ns[STAGES] = {
        at[DEQ] != 0 ? at[DEQ] - at[RECV] : -1, at[ADMITTED] != 0 ? at[ADMITTED] - at[DEQ] : -1,
        at[ROUTED] != 0 ? at[ROUTED] - at[ADMITTED] : -1, at[CONN] != 0 ? at[CONN] - at[ROUTED] : -1,
        at[HFB] != 0 ? last - (at[SENT] != 0 ? at[SENT] : at[CONN]) : -1,
    };
    return shown_times(stages_ns);
}

static PyObject *stage_times_new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static const char *const slot_names[STAMPS] = {
        "recv", "deq", "admitted", "routed", "conn_ns", "sent_ns", "hfb", "tok1", "tok_n",
    };
    (void)names;
    PyObject *probe;
    if (!PyArg_ParseTuple(arguments, "O:StageTimes", &probe))
        return NULL;
    StageTimes *self = (StageTimes *)PyType_GenericNew(type, NULL, NULL);
    for (int i = 0; self != NULL && i < STAMPS; i++)
        if ((self->slots[i].name = PyUnicode_InternFromString(slot_names[i])) == NULL || !find_slot(probe, self->slots + i))
            Py_CLEAR(self);
    if (self != NULL)
        self->known = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(probe));
    return (PyObject *)self;
}

static void stage_times_dealloc(StageTimes *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    for (int i = 0; i < STAMPS; i++)
        Py_XDECREF(self->slots[i].name);
    Py_XDECREF((PyObject *)self->known);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef stage_times_methods[] = {
    {"of", (PyCFunction)stage_times_of, METH_O, stage_times_of_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot stage_times_slots[] = {
    {Py_tp_new, stage_times_new},
    {Py_tp_dealloc, stage_times_dealloc},
    {Py_tp_methods, stage_times_methods},
    {Py_tp_doc, "StageTimes(probe)\n--\n\nShows the times of requests; the probe is one, nobody else's."},
    {0, NULL},
};

static PyType_Spec stage_times_spec = {
    "router._steps.StageTimes", sizeof(StageTimes), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, stage_times_slots,
};

// ---------------------------------------------------------------- objects that begin alike

// What mould() in router/mould.py returns is the class's own way where there is no native code: that is the twin.
typedef struct {
    PyObject_HEAD
    PyObject *pattern;  // what all are copies of
    Py_ssize_t count;
    slot *slots;
} Mould;

// Shared by all copies, a value must never change.
static bool may_be_shared(PyObject *value)
{
    return !(PyList_Check(value) || PyDict_Check(value) || PySet_Check(value) || PyByteArray_Check(value));
}

static bool take_slot(Mould *self, PyObject *name)
{
    slot *to = self->slots + self->count;
    if (!PyUnicode_Check(name)) {
        PyErr_SetString(PyExc_TypeError, "names of slots are strings");
        return false;
    }
    to->name = Py_NewRef(name);
    self->count++;
    if (!find_slot(self->pattern, to))
        return false;
    PyObject *value = to->kind == IS_OBJECT ? object_at(self->pattern, to) : NULL;
    if (value == NULL || !may_be_shared(value)) {
        PyErr_Format(PyExc_ValueError, "%U is no slot, or has a value that may change", name);
        return false;
    }
    return true;
}

static PyObject *mould_new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    (void)names;
    PyObject *pattern, *given;
    if (!PyArg_ParseTuple(arguments, "OO:Mould", &pattern, &given))
        return NULL;
    PyObject *slots = PySequence_Tuple(given);
    Mould *self = slots == NULL ? NULL : (Mould *)PyType_GenericNew(type, NULL, NULL);
    if (self == NULL) {
        Py_XDECREF(slots);
        return NULL;
    }
    self->pattern = Py_NewRef(pattern);
    self->slots = PyMem_Calloc(PyTuple_Size(slots) + 1, sizeof(slot));
    bool taken = self->slots != NULL;
    if (!taken)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; taken && i < PyTuple_Size(slots); i++)
        taken = take_slot(self, PyTuple_GetItem(slots, i));
    Py_DECREF(slots);
    if (!taken)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void mould_dealloc(Mould *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    for (Py_ssize_t i = 0; i < self->count; i++)
        Py_DECREF(self->slots[i].name);
    PyMem_Free(self->slots);
    Py_XDECREF(self->pattern);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(mould_make_doc, "make()\n--\n\nReturn a new object whose slots are those of the pattern; numbers of C in it are 0.");

static PyObject *mould_make(Mould *self, PyObject *unused)
{
    (void)unused;
    PyTypeObject *type = Py_TYPE(self->pattern);
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *made = allocate(type, 0);
    for (Py_ssize_t i = 0; made != NULL && i < self->count; i++) {
        Py_ssize_t offset = self->slots[i].offset;
        *(PyObject **)((char *)made + offset) = Py_NewRef(*(PyObject **)((char *)self->pattern + offset));
    }
    return made;
}

static PyMethodDef mould_methods[] = {
    {"make", (PyCFunction)mould_make, METH_NOARGS, mould_make_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot mould_slots[] = {
    {Py_tp_new, mould_new},
    {Py_tp_dealloc, mould_dealloc},
    {Py_tp_methods, mould_methods},
    {Py_tp_doc, "Mould(pattern, slots)\n--\n\nMakes copies of an object, of which nothing but slots is copied."},
    {0, NULL},
};

static PyType_Spec mould_spec = {"router._steps.Mould", sizeof(Mould), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, mould_slots};

// ---------------------------------------------------------------- which host

enum { HOST_ID, RUNNING, SLOTS, BAR, DRAINING, USABLE, HOST_SLOTS };
enum { CANDIDATES_TOLD = 4, CANDIDATE_BYTES = 8, HOSTS_ON_STACK = 64 };  // the layout is that of CANDIDATES in records.py
enum { CHOSEN = 1, BUSIER = 2, FULL = 3, UNHEALTHY = 4 };                // of routing/candidates.py

typedef struct {
    PyObject_HEAD
    PyTypeObject *known;
    slot slots[HOST_SLOTS];
} Picker;

typedef struct {
    long long id, busy, slots, bar;
    bool usable;
} candidate;

static PyObject *attribute(const Picker *self, PyObject *host, int which)
{
    const slot *from = self->slots + which;
    PyObject *value = Py_TYPE(host) == self->known && from->kind == IS_OBJECT ? object_at(host, from) : NULL;
    return value != NULL ? Py_NewRef(value) : PyObject_GetAttr(host, from->name);
}

static bool whole_number(const Picker *self, PyObject *host, int which, long long *to)
{
    PyObject *value = attribute(self, host, which);
    *to = value == NULL ? -1 : PyLong_AsLongLong(value);
    Py_XDECREF(value);
    return *to != -1 || !PyErr_Occurred();
}

static bool look_at(const Picker *self, PyObject *host, candidate *to)
{
    if (!whole_number(self, host, HOST_ID, &to->id) || !whole_number(self, host, RUNNING, &to->busy)
        || !whole_number(self, host, SLOTS, &to->slots) || !whole_number(self, host, BAR, &to->bar))
        return false;
    PyObject *draining = attribute(self, host, DRAINING), *usable = draining == NULL ? NULL : attribute(self, host, USABLE);
    Py_ssize_t drained = usable == NULL ? -1 : PyObject_Size(draining);
    int is_usable = drained < 0 ? -1 : PyObject_IsTrue(usable);
    Py_XDECREF(draining);
    Py_XDECREF(usable);
    if (is_usable < 0)
        return false;
    to->busy += drained;
    to->usable = is_usable == 1;
    if (to->slots <= 0 || to->id < 0 || to->id > 0xFFFF || to->bar < 0 || to->bar > 0xFFFF) {
        PyErr_SetString(PyExc_ValueError, "a host has an id and a bar of 16 bits, and slots");
        return false;
    }
    return true;
}

// The twin of choose() in routing/least_outstanding.py, for hosts of which none has failed the request.
static Py_ssize_t least_outstanding(const candidate *all, Py_ssize_t count, Py_ssize_t turn)
{
    Py_ssize_t best = -1;
    long long best_busy = 1, best_slots = 1;
    for (Py_ssize_t offset = 0; offset < count; offset++) {
        Py_ssize_t index = (turn + offset) % count;
        const candidate *each = all + index;
        if (each->usable && each->busy * best_slots < best_busy * each->slots)
            best = index, best_busy = each->busy, best_slots = each->slots;
    }
    return best;
}

static void tell(const candidate *of, int reason, unsigned char *to)
{
    float load = (float)((double)of->busy / (double)of->slots);
    to[0] = (unsigned char)of->id, to[1] = (unsigned char)(of->id >> 8);
    to[2] = (unsigned char)reason, to[3] = (unsigned char)(reason >> 8);
    memcpy(to + 4, &load, sizeof load);
}

static PyObject *told(const candidate *all, Py_ssize_t count, Py_ssize_t chosen)
{
    unsigned char record[CANDIDATES_TOLD * CANDIDATE_BYTES] = {0}, *to = record + CANDIDATE_BYTES;
    tell(all + chosen, CHOSEN, record);
    for (Py_ssize_t i = 0; i < count && to < record + sizeof record; i++)
        if (i != chosen) {
            const candidate *each = all + i;
            int barred = each->bar != 0 ? (int)each->bar : UNHEALTHY;
            tell(each, !each->usable ? barred : each->busy >= each->slots ? FULL : BUSIER, to);
            to += CANDIDATE_BYTES;
        }
    return PyBytes_FromStringAndSize((const char *)record, sizeof record);
}

PyDoc_STRVAR(pick_doc,
    "pick(hosts, turn)\n--\n\n"
    "Return the index of the host that gets a request (-1: none can take it) and what a record tells of the hosts.");

static PyObject *picker_pick(Picker *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyList_Check(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "pick(hosts: list, turn: int)");
        return NULL;
    }
    Py_ssize_t turn = PyLong_AsSsize_t(arguments[1]), host_count = PyList_Size(arguments[0]);
    if (turn < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "a turn is not below zero");
        return NULL;
    }
    candidate on_stack[HOSTS_ON_STACK], *all = on_stack;
    if (host_count > HOSTS_ON_STACK && (all = PyMem_Malloc(host_count * sizeof *all)) == NULL)
        return PyErr_NoMemory();
    bool seen = true;
    for (Py_ssize_t i = 0; seen && i < host_count; i++) {
        PyObject *host = PyList_GetItem(arguments[0], i);  // NULL where asking a host has made the list shorter
        seen = host != NULL;
        if (seen) {
            Py_INCREF(host);
            seen = look_at(self, host, all + i);
            Py_DECREF(host);
        }
    }
    Py_ssize_t chosen = seen ? least_outstanding(all, host_count, turn) : -1;
    PyObject *record = !seen ? NULL : chosen < 0 ? PyBytes_FromStringAndSize(NULL, 0) : told(all, host_count, chosen);
    if (all != on_stack)
        PyMem_Free(all);
    return record == NULL ? NULL : tuple_of((PyObject *[]){PyLong_FromSsize_t(chosen), record}, 2);
}

static PyObject *picker_new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static const char *const slot_names[HOST_SLOTS] = {"host_id", "running", "slots", "bar", "draining", "usable"};
    (void)names;
    PyObject *probe;
    if (!PyArg_ParseTuple(arguments, "O:Picker", &probe))
        return NULL;
    Picker *self = (Picker *)PyType_GenericNew(type, NULL, NULL);
    for (int i = 0; self != NULL && i < HOST_SLOTS; i++)
        if ((self->slots[i].name = PyUnicode_InternFromString(slot_names[i])) == NULL || !find_slot(probe, self->slots + i))
            Py_CLEAR(self);
    if (self != NULL)
        self->known = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(probe));
    return (PyObject *)self;
}

static void picker_dealloc(Picker *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    for (int i = 0; i < HOST_SLOTS; i++)
        Py_XDECREF(self->slots[i].name);
    Py_XDECREF((PyObject *)self->known);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef picker_methods[] = {
    {"pick", (PyCFunction)(void (*)(void))picker_pick, METH_FASTCALL, pick_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot picker_slots[] = {
    {Py_tp_new, picker_new},
    {Py_tp_dealloc, picker_dealloc},
    {Py_tp_methods, picker_methods},
    {Py_tp_doc, "Picker(probe)\n--\n\nPicks among hosts; the probe is one, nobody else's."},
    {0, NULL},
};

static PyType_Spec picker_spec = {"router._steps.Picker", sizeof(Picker), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, picker_slots};

// ---------------------------------------------------------------- parts of buffers

PyDoc_STRVAR(first_byte_doc, "first_byte(data)\n--\n\nReturn the first byte of anything with a buffer, -1 where it is empty.");

// The twin of plain_first_byte() in router/messages.py.
static PyObject *first_byte(PyObject *module, PyObject *data)
{
    (void)module;
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) != 0)
        return NULL;
    long first = view.len > 0 ? *(const unsigned char *)view.buf : -1;
    PyBuffer_Release(&view);
    return PyLong_FromLong(first);
}

PyDoc_STRVAR(offset_of_doc, "offset_of(whole, part)\n--\n\nReturn where a part of a buffer begins in it, -1 if it is no part of it.");

// The twin of plain_offset_of() in router/caches/tools.py, exact where that must guess.
static PyObject *offset_of(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "offset_of(whole, part)");
        return NULL;
    }
    Py_buffer whole, part;
    if (PyObject_GetBuffer(arguments[0], &whole, PyBUF_SIMPLE) != 0)
        return NULL;
    if (PyObject_GetBuffer(arguments[1], &part, PyBUF_SIMPLE) != 0) {
        PyBuffer_Release(&whole);
        return NULL;
    }
    uintptr_t begin = (uintptr_t)whole.buf, at = (uintptr_t)part.buf;
    bool is_inside = at >= begin && at - begin <= (uintptr_t)whole.len && (uintptr_t)part.len <= (uintptr_t)whole.len - (at - begin);
    Py_ssize_t offset = is_inside ? (Py_ssize_t)(at - begin) : -1;
    PyBuffer_Release(&part);
    PyBuffer_Release(&whole);
    return PyLong_FromSsize_t(offset);
}

PyDoc_STRVAR(dots_doc, "dots(query, vectors)\n--\n\nReturn the inner product of a vector with each of a list; all are bytes of f32.");

// The twin of plain_dots() in router/caches/selection.py.
static PyObject *dots(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    if (count != 2 || !PyBytes_Check(arguments[0]) || !PyList_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "dots(query: bytes, vectors: list[bytes])");
        return NULL;
    }
    Py_ssize_t size = PyBytes_Size(arguments[0]), rows = PyList_Size(arguments[1]);
    const char *query = PyBytes_AsString(arguments[0]);
    PyObject *products = PyList_New(rows);
    for (Py_ssize_t row = 0; products != NULL && row < rows; row++) {
        PyObject *vector = PyList_GetItem(arguments[1], row);
        if (!PyBytes_Check(vector) || PyBytes_Size(vector) != size) {
            PyErr_SetString(PyExc_ValueError, "dots: vectors of another length than the query");
            Py_CLEAR(products);
            break;
        }
        const char *other = PyBytes_AsString(vector);
        double sum = 0;
        for (Py_ssize_t at = 0; at + (Py_ssize_t)sizeof(float) <= size; at += sizeof(float)) {
            float one, two; // copied: nothing promises that bytes are aligned
            memcpy(&one, query + at, sizeof one);
            memcpy(&two, other + at, sizeof two);
            sum += (double)one * two;
        }
        PyObject *product = PyFloat_FromDouble(sum);
        if (product == NULL || PyList_SetItem(products, row, product) != 0)
            Py_CLEAR(products);
    }
    return products;
}

static PyMethodDef methods[] = {
    {"dots", (PyCFunction)(void (*)(void))dots, METH_FASTCALL, dots_doc},
    {"first_byte", first_byte, METH_O, first_byte_doc},
    {"offset_of", (PyCFunction)(void (*)(void))offset_of, METH_FASTCALL, offset_of_doc},
    {"split_head", (PyCFunction)(void (*)(void))split_head, METH_FASTCALL, split_head_doc},
    {"tcp_info", tcp_info, METH_O, tcp_info_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "router._steps", .m_doc = "Steps of a request's path, each in one call.", .m_size = 0, .m_methods = methods,
};

static int add_type(PyObject *module, const char *name, PyType_Spec *spec)
{
    PyObject *type = PyType_FromSpec(spec);
    int failed = type == NULL ? -1 : PyModule_AddObjectRef(module, name, type);
    Py_XDECREF(type);
    return failed;
}

PyMODINIT_FUNC PyInit__steps(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL
        && (add_type(module, "Packer", &packer_spec) != 0 || add_type(module, "Mould", &mould_spec) != 0
            || add_type(module, "Picker", &picker_spec) != 0 || add_type(module, "StageTimes", &stage_times_spec) != 0))
        Py_CLEAR(module);
    return module;
}

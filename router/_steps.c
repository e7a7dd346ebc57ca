// Steps of a request's path: what else would take many of the interpreter's, each of them memory that a first token finds
// cold. Every function has a twin in plain Python, which is the fallback and the judge of what is right:
//
//     split_head      router/http1.py                 a head without what varies between heads that are the same otherwise
//     first_byte      router/messages.py              of anything with a buffer
//     offset_of       router/caches/tools.py          where a part of a buffer begins in it
//     dots            router/caches/selection.py      how near vectors are to another
//     tcp_info        router/telemetry/tcp.py         TCP_INFO as it stands in a record
//
// So have its types, each in a header of its own that nothing else includes.

#include "_mould.h"
#include "_packer.h"
#include "_picker.h"
#include "_stage_times.h"

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

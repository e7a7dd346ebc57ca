// Packer: a record out of the attributes of one object. The twin is PlainPacker in router/telemetry/packing.py, where the codes
// are told.

#ifndef RINGROUTER_PACKER_H
#define RINGROUTER_PACKER_H

#include "_slots.h"

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
    for (Py_ssize_t i = 0; i < self->count; i++)
        Py_DECREF(self->fields[i].from.name);
    Py_XDECREF((PyObject *)self->known);
    PyMem_Free(self->fields);
    free_object(self);
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
    PyObject *value = value_at(source, is_known, &to->from);
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

#endif

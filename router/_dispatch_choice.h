// Whether a request is a usual one, and which host and connection it gets; nothing is changed here.

#ifndef RINGROUTER_DISPATCH_CHOICE_H
#define RINGROUTER_DISPATCH_CHOICE_H

#include "_dispatch_fields.h"

// 1: the model has the default policy, nobody waits for it; 0: not so; -1: an exception is set.
static inline int is_plain_model(PyObject *model)
{
    int is_plain = is_named(model, names.policy, Py_None);
    PyObject *waiting = is_plain == 1 ? PyObject_GetAttr(model, names.waiting) : NULL;
    if (waiting == NULL)
        return is_plain == 1 ? -1 : is_plain;
    int has_size = named_truth(waiting, names.size);
    Py_DECREF(waiting);
    return has_size < 0 ? -1 : !has_size;
}

// The same of what the request itself says.
static inline int is_plain_request(const Dispatch *self, PyObject *request)
{
    if (at(self, request, r_terms) != self->held[NO_TERMS] || at(self, request, r_attempt_count) != self->held[ZERO]
        || at(self, request, r_admitted) != self->held[ZERO] || at(self, request, r_routed1) != self->held[ZERO])
        return 0;
    int has_path = PyObject_IsTrue(at(self, request, r_path));
    int was_tried = has_path == 0 ? PyObject_IsTrue(at(self, request, r_tried)) : 0;
    return has_path < 0 || was_tried < 0 ? -1 : !has_path && !was_tried;
}

// The same of the idle connection that the host's next request gets: open, and not past its age.
static inline int is_ready(const Dispatch *self, const passage *way)
{
    PyObject *facts = at(self, way->host, h_facts), *age_max = PyObject_GetAttr(facts, names.idle_close_s);
    double age_max_s = age_max == NULL ? -1.0 : PyFloat_AsDouble(age_max);
    Py_XDECREF(age_max);
    number idle_since;
    if (PyErr_Occurred() || !number_in(self, way->connection, c_idle_since, &idle_since))
        return -1;
    if ((double)(long long)(way->routed_ns - idle_since) > age_max_s * NS_PER_S)
        return 0;
    PyObject *closing = PyObject_CallMethodObjArgs(way->transport, names.is_closing, NULL);
    int is_closing = closing == NULL ? -1 : PyObject_IsTrue(closing);
    Py_XDECREF(closing);
    return is_closing < 0 ? -1 : !is_closing;
}

// Find the youngest idle connection of the chosen host, as Fleet.take does; it stays where it is.
static inline int find_connection(const Dispatch *self, passage *way)
{
    if (Py_TYPE(way->host) != self->kinds[HOST] || !PyList_Check(at(self, way->host, h_idle)))
        return 0;
    PyObject *idle = at(self, way->host, h_idle);
    Py_ssize_t count = PyList_Size(idle);
    PyObject *youngest = count == 0 ? NULL : PyList_GetItem(idle, count - 1);
    if (youngest == NULL || Py_TYPE(youngest) != self->kinds[CONNECTION] || at(self, youngest, c_transport) == Py_None)
        return 0;
    way->connection = Py_NewRef(youngest);
    way->transport = Py_NewRef(at(self, youngest, c_transport));
    return is_ready(self, way);
}

static inline int find_host(const Dispatch *self, passage *way)
{
    PyObject *hosts = PyObject_GetAttr(way->model, names.hosts);
    PyObject *turn = hosts == NULL ? NULL : PyObject_GetAttr(way->model, names.turn);
    PyObject *picked = turn == NULL ? NULL : PyObject_CallFunctionObjArgs(self->held[PICK], hosts, turn, NULL);
    int found = -1;
    if (picked != NULL && PyTuple_Check(picked) && PyTuple_Size(picked) == 2) {
        way->chosen = PyLong_AsSsize_t(PyTuple_GetItem(picked, 0));
        way->candidates = Py_NewRef(PyTuple_GetItem(picked, 1));
        found = PyErr_Occurred() ? -1 : 0;
        if (way->chosen >= 0) {
            PyObject *host = PyList_GetItem(hosts, way->chosen);
            way->host = Py_XNewRef(host);
            found = host == NULL ? -1 : 1;
        }
    } else if (picked != NULL) {
        PyErr_SetString(PyExc_TypeError, "pick() returns (index, bytes)");
    }
    Py_XDECREF(hosts);
    Py_XDECREF(turn);
    Py_XDECREF(picked);
    return found;
}

// Find out whether a request is a usual one, and where it goes; nothing is changed but `way`.
static inline int find(const Dispatch *self, passage *way)
{
    int is_usual = is_plain_request(self, way->request);
    if (is_usual != 1)
        return is_usual;
    way->model = Py_NewRef(at(self, way->request, r_model));
    if ((is_usual = is_plain_model(way->model)) != 1 || (is_usual = find_host(self, way)) != 1)
        return is_usual;
    way->routed_ns = monotonic_ns();
    return find_connection(self, way);
}

#endif

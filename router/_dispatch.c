// A request from the ring to a warm connection of its host, in one call: published, taken off, routed, written, and only then
// booked. Each step of the interpreter that is not made here is memory that a first token need not find cold.
//
//     Dispatch.submit   twin: Loop.submit in router/loop.py with what it calls: drain, place, _go, connect, connected, _book;
//                       Fleet.take, Attempt.of, Attempt.start, outbound.build, Telemetry.show_phase, SpareTarget.start
//
// It is for a request of which nothing special is known, that the default policy routes to a host with an idle connection.
// Whether it is one is found out before anything of it is changed; any other is handed to the loop as it would get it
// without this file. What is rare within it (a body to be edited, the last row taken, too few spares) is asked of Python there.

#include "_dispatch_booking.h"
#include "_dispatch_choice.h"
#include "_dispatch_message.h"

// ---------------------------------------------------------------- to the host

// Write the request on its connection, as Attempt.start().
static bool start(const Dispatch *self, const passage *way, PyObject *now, PyObject *data)
{
    PyObject *request = way->request, *attempt = way->attempt, *connection = way->connection;
    number idle_since;
    if (!number_in(self, connection, c_idle_since, &idle_since))
        return false;
    put(self, attempt, a_connection, connection);
    PyObject *used = at(self, connection, c_used);
    put(self, attempt, a_on_kept_connection, used == Py_True ? used : idle_since > 0 ? Py_True : Py_False);
    put(self, attempt, a_last_read_ns, now);
    put(self, request, r_conn_ns, now);
    put(self, request, r_check_ns, self->held[ZERO]);
    put(self, request, r_phase, self->held[PREFILL]);
    put(self, connection, c_attempt, attempt);
    if (!done_with(PyObject_CallMethodObjArgs(way->transport, names.write, data, NULL)))
        return false;
    int is_blocked = PyObject_IsTrue(at(self, connection, c_blocked));
    if (is_blocked != 0)
        return is_blocked == 1;
    if (!put_new(self, request, r_sent_ns, PyLong_FromUnsignedLongLong(monotonic_ns())))
        return false;
    put(self, attempt, a_last_read_ns, at(self, request, r_sent_ns));
    return true;
}

// Send the request, then write down that it was, as Loop.connected().
static bool connected(const Dispatch *self, const passage *way)
{
    PyObject *request = way->request, *now = PyLong_FromUnsignedLongLong(monotonic_ns());
    PyObject *data = now == NULL ? NULL : build(self, way);
    bool is_done = false;
    if (data == NULL) {
        if (!PyErr_Occurred())
            is_done = done_with(PyObject_CallMethodObjArgs(self->held[LOOP], names.connected, way->attempt, way->connection, now, NULL));
    } else {
        is_done = start(self, way, now, data) && book(self, way) && publish(self, way, now, self->kind_dispatched)
            && done_with(PyObject_CallMethodObjArgs(at(self, request, r_egress), names.prepare, request, NULL));
    }
    Py_XDECREF(now);
    Py_XDECREF(data);
    return is_done;
}

// As Attempt.of().
static bool new_attempt(const Dispatch *self, passage *way)
{
    PyObject *attempt = way->attempt = PyObject_CallNoArgs(self->held[NEW_ATTEMPT]);
    if (attempt != NULL && Py_TYPE(attempt) != self->kinds[ATTEMPT])
        PyErr_SetString(PyExc_TypeError, "what makes attempts has made something else");
    if (PyErr_Occurred())
        return false;
    put(self, attempt, a_loop, self->held[LOOP]);
    put(self, attempt, a_request, way->request);
    put(self, attempt, a_host, way->host);
    return put_new(self, attempt, a_publish, PyObject_GetAttr(self->held[TELEMETRY], names.publish_token))
        && put_new(self, attempt, a_native_publish, PyObject_GetAttr(self->held[TELEMETRY], names.native_publish))
        && put_new(self, attempt, a_host_bits, PyLong_FromUnsignedLongLong(way->host_id << 16));
}

// Start the attempt at the host and the connection that were found.
static bool go(const Dispatch *self, passage *way)
{
    PyObject *request = way->request, *turn = PyLong_FromSsize_t(way->chosen + 1), *idle = at(self, way->host, h_idle);
    bool is_set = turn != NULL && PyObject_SetAttr(way->model, names.turn, turn) == 0;
    number running;
    Py_XDECREF(turn);
    if (!is_set || !number_in(self, way->host, h_host_id, &way->host_id) || !number_in(self, way->host, h_running, &running)
        || !put_new(self, request, r_routed, PyLong_FromUnsignedLongLong(way->routed_ns)))
        return false;
    put(self, request, r_packed_candidates, way->candidates);
    put(self, request, r_admitted, way->now);
    put(self, request, r_host, at(self, way->host, h_host_id));
    put(self, request, r_routed1, at(self, request, r_routed));
    put(self, request, r_attempt_count, self->held[ONE]);
    if (!put_new(self, way->host, h_running, PyLong_FromUnsignedLongLong(running + 1)) || !new_attempt(self, way))
        return false;
    put(self, request, r_attempt, way->attempt);
    put(self, request, r_phase, self->held[CONNECTING]);
    put(self, request, r_check_ns, self->held[ZERO]);
    Py_ssize_t last = PyList_Size(idle) - 1;
    if (PyList_SetSlice(idle, last, last + 1, NULL) != 0 || !connected(self, way) || !tend_spares(self, way, running + 1))
        return false;
    long row = PyLong_AsLong(at(self, request, r_row));
    if (row >= 0)
        return true;
    return !PyErr_Occurred() && done_with(PyObject_CallMethodObjArgs(self->held[LOOP], names._book, request, NULL));
}

// ---------------------------------------------------------------- off the ring

// What the loop does with each request off the ring: here if it is a usual one and nobody has put himself in front.
static bool take(const Dispatch *self, PyObject *request, PyObject *now)
{
    PyObject *taker = PyObject_GetAttr(self->held[LOOP], names.take);
    if (taker == NULL)
        return false;
    passage way = {.request = request, .now = Py_NewRef(now)};
    int is_usual = taker == self->held[PLACE] ? find(self, &way) : 0;
    bool is_taken = is_usual == 1 ? go(self, &way)
        : is_usual == 0           ? done_with(PyObject_CallFunctionObjArgs(taker, request, now, NULL))
                                  : false;
    Py_DECREF(taker);
    leave(&way);
    return is_taken;
}

// An exception of the router's own while a request was placed: the loop logs it and ends the request, if it is nowhere.
static bool give_up(const Dispatch *self, PyObject *request)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return false;
    PyObject *kind, *error, *traceback;
    PyErr_Fetch(&kind, &error, &traceback);
    PyErr_NormalizeException(&kind, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    bool is_done = done_with(PyObject_CallMethodObjArgs(self->held[LOOP], names._give_up, request, error, NULL));
    Py_XDECREF(kind);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    return is_done;
}

// Let the ring have the request's slot, whatever has happened to the request; an exception that is set stays so.
static bool release(const Dispatch *self, PyObject *end, bool is_well)
{
    PyObject *kind = NULL, *error = NULL, *traceback = NULL;
    if (!is_well)
        PyErr_Fetch(&kind, &error, &traceback);
    bool is_released = done_with(PyObject_CallFunctionObjArgs(self->held[RELEASE], end, NULL));
    if (is_released && !is_well) {
        PyErr_Restore(kind, error, traceback);
    } else {
        Py_XDECREF(kind);
        Py_XDECREF(error);
        Py_XDECREF(traceback);
    }
    return is_released && is_well;
}

// Take a request that was published alone off the ring.
static bool drain_one(const Dispatch *self, PyObject *request, PyObject *end)
{
    PyObject *now = PyLong_FromUnsignedLongLong(monotonic_ns());
    bool is_well = now != NULL;
    if (is_well) {
        put(self, request, r_deq, now);
        is_well = PyDict_SetItem(self->held[IN_FLIGHT], at(self, request, r_seq), request) == 0
            && (take(self, request, now) || give_up(self, request));
    }
    Py_XDECREF(now);
    return release(self, end, is_well);
}

// 1: there is room for one more request; 0: Python is to say why not; -1: an exception.
static int has_room(const Dispatch *self)
{
    PyObject *loop = self->held[LOOP];
    int is_stopping = named_truth(loop, names.stopping);
    PyObject *limits = is_stopping == 0 ? PyObject_GetAttr(loop, names.limits) : NULL;
    number in_flight_max;
    if (limits == NULL)
        return is_stopping == 1 ? 0 : -1;
    bool is_read = named_number(limits, names.in_flight, &in_flight_max);
    Py_DECREF(limits);
    return !is_read ? -1 : (number)PyDict_Size(self->held[IN_FLIGHT]) < in_flight_max;
}

// Drain what was published: the usual way if the ring holds nothing else, as in a turn within a turn.
static bool drain(const Dispatch *self, PyObject *request, PyObject *sequence)
{
    PyObject *ready = PyObject_CallFunctionObjArgs(self->held[POLL], self->held[BATCH_MAX], NULL);
    if (ready == NULL)
        return false;
    number first, end, own;
    bool is_range = PyTuple_Check(ready) && PyTuple_Size(ready) == 2 && to_number(PyTuple_GetItem(ready, 0), &first)
        && to_number(PyTuple_GetItem(ready, 1), &end) && to_number(sequence, &own);
    bool is_well = false;
    if (is_range && first == own && end == own + 1)
        is_well = drain_one(self, request, PyTuple_GetItem(ready, 1));
    else if (is_range)
        is_well = PyDict_SetItem(self->held[PUBLISHED], sequence, request) == 0
            && done_with(PyObject_CallMethodObjArgs(self->held[LOOP], names.drain, NULL));
    else if (!PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "poll() returns (first, end)");
    Py_DECREF(ready);
    return is_well;
}

PyDoc_STRVAR(submit_doc,
    "submit(request, w4, w5, w6)\n--\n\n"
    "Publish a request into the ring and drain it in this turn, as Loop.submit() does.");

static PyObject *dispatch_submit(Dispatch *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 4 || Py_TYPE(arguments[0]) != self->kinds[REQUEST]) {
        PyErr_SetString(PyExc_TypeError, "submit(request: Request, w4: int, w5: int, w6: int)");
        return NULL;
    }
    PyObject *request = arguments[0], *zero = self->held[ZERO];
    int room = has_room(self);
    if (room < 0)
        return NULL;
    if (room == 0)
        return PyObject_CallFunctionObjArgs(self->held[PLAIN], request, arguments[1], arguments[2], arguments[3], NULL);
    if (!put_new(self, request, r_pub, PyLong_FromUnsignedLongLong(monotonic_ns())))
        return NULL;
    PyObject *sequence = PyObject_CallFunctionObjArgs(
        self->held[TRY_PUBLISH], at(self, request, r_recv), at(self, request, r_body_ns), at(self, request, r_pub), arguments[1],
        arguments[2], arguments[3], zero, NULL);
    int is_full = sequence == NULL ? -1 : PyObject_RichCompareBool(sequence, zero, Py_LT);
    PyObject *result = NULL;
    if (is_full == 1) {
        result = PyObject_CallMethodObjArgs(self->held[LOOP], names.refuse_ring_full, request, NULL);
    } else if (is_full == 0) {
        put(self, request, r_seq, sequence);
        result = drain(self, request, sequence) ? Py_NewRef(Py_None) : NULL;
    }
    Py_XDECREF(sequence);
    return result;
}

// ---------------------------------------------------------------- made and let go

static bool find_slots(Dispatch *self, PyObject *const *probes)
{
    for (int i = 0; i < KINDS; i++)
        self->kinds[i] = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(probes[i]));
    for (int i = 0; i < SLOTS; i++) {
        slot *to = self->slots + i;
        if ((to->name = PyUnicode_InternFromString(slot_of[i].name)) == NULL || !find_slot(probes[slot_of[i].kind], to))
            return false;
        if (to->kind != IS_OBJECT) {
            PyErr_Format(PyExc_NotImplementedError, "%U is no slot whose place can be told", to->name);
            return false;
        }
    }
    return true;
}

// The parts of the loop and of its telemetry that stay the same for its whole life.
static bool hold_parts(Dispatch *self, PyObject *given)
{
    static const char *const expected = "Dispatch(): a tuple of %d parts is expected, of which some are dictionaries and one is a list";
    if (!PyTuple_Check(given) || PyTuple_Size(given) != ZERO) {
        PyErr_Format(PyExc_TypeError, expected, ZERO);
        return false;
    }
    for (int i = 0; i < ZERO; i++)
        self->held[i] = Py_NewRef(PyTuple_GetItem(given, i));
    if (!PyDict_Check(self->held[IN_FLIGHT]) || !PyDict_Check(self->held[PUBLISHED]) || !PyList_Check(self->held[FREE_ROWS])) {
        PyErr_Format(PyExc_TypeError, expected, ZERO);
        return false;
    }
    return true;
}

static PyObject *dispatch_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    (void)keywords;
    PyObject *parts, *probes[KINDS], *usage_field;
    number open, dispatched, usage_added, batch_max;
    Py_ssize_t id_bytes;
    if (!PyArg_ParseTuple(arguments, "O(OOOOO)(KKKKnS):Dispatch", &parts, probes, probes + 1, probes + 2, probes + 3, probes + 4,
            &open, &dispatched, &usage_added, &batch_max, &id_bytes, &usage_field))
        return NULL;
    Dispatch *self = (Dispatch *)PyType_GenericNew(type, NULL, NULL);
    if (self == NULL)
        return NULL;
    self->kind_open = open, self->kind_dispatched = dispatched, self->usage_added = usage_added, self->id_bytes = id_bytes;
    self->usage_field = Py_NewRef(usage_field);
    self->held[ZERO] = PyLong_FromLong(0);
    self->held[ONE] = PyLong_FromLong(1);
    self->held[BATCH_MAX] = PyLong_FromUnsignedLongLong(batch_max);
    if (self->held[ZERO] == NULL || self->held[ONE] == NULL || self->held[BATCH_MAX] == NULL || !hold_parts(self, parts)
        || !find_slots(self, probes))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static int dispatch_traverse(Dispatch *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    for (int i = 0; i < HELD; i++)
        Py_VISIT(self->held[i]);
    for (int i = 0; i < KINDS; i++)
        Py_VISIT((PyObject *)self->kinds[i]);
    return 0;
}

static int dispatch_clear(Dispatch *self)
{
    for (int i = 0; i < HELD; i++)
        Py_CLEAR(self->held[i]);
    for (int i = 0; i < KINDS; i++)
        Py_CLEAR(self->kinds[i]);
    Py_CLEAR(self->usage_field);
    return 0;
}

static void dispatch_dealloc(Dispatch *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    dispatch_clear(self);
    for (int i = 0; i < SLOTS; i++)
        Py_XDECREF(self->slots[i].name);
    freefunc release_memory = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release_memory(self);
    Py_DECREF(type);
}

static PyMethodDef dispatch_methods[] = {
    {"submit", (PyCFunction)(void (*)(void))dispatch_submit, METH_FASTCALL, submit_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot dispatch_slots[] = {
    {Py_tp_new, dispatch_new},
    {Py_tp_dealloc, dispatch_dealloc},
    {Py_tp_traverse, dispatch_traverse},
    {Py_tp_clear, dispatch_clear},
    {Py_tp_methods, dispatch_methods},
    {Py_tp_doc, "Dispatch(parts, probes, constants)\n--\n\nTakes the requests of one loop to their hosts; made by router/dispatching.py."},
    {0, NULL},
};

static PyType_Spec dispatch_spec = {
    "router._dispatch.Dispatch", sizeof(Dispatch), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, dispatch_slots,
};

#define INTERN(name) && (names.name = PyUnicode_InternFromString(#name)) != NULL

static bool add_names(void)
{
    return true ALL_NAMES(INTERN);
}

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "router._dispatch", .m_doc = "A request from the ring to its host, in one call.", .m_size = 0,
};

PyMODINIT_FUNC PyInit__dispatch(void)
{
    PyObject *module = PyModule_Create(&definition);
    PyObject *type = module == NULL || !add_names() ? NULL : PyType_FromSpec(&dispatch_spec);
    if (type == NULL || PyModule_AddObjectRef(module, "Dispatch", type) != 0)
        Py_CLEAR(module);
    Py_XDECREF(type);
    return module;
}

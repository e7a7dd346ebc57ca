// Timers, streams that can write, idle connections: the lists that the loop works off.
#include "mockhost.h"

// ------------------------------------------------------------------------------- timers: a binary heap by due_ns

static connection **heap;
static int heap_length, heap_capacity;

static void heap_put(int i, connection *c)
{
    heap[i] = c;
    c->heap_index = i;
}

static void heap_rise(int i)
{
    connection *c = heap[i];
    for (; i && heap[(i - 1) / 2]->due_ns > c->due_ns; i = (i - 1) / 2)
        heap_put(i, heap[(i - 1) / 2]);
    heap_put(i, c);
}

static void heap_sink(int i)
{
    connection *c = heap[i];
    for (int child; (child = 2 * i + 1) < heap_length; i = child) {
        if (child + 1 < heap_length && heap[child + 1]->due_ns < heap[child]->due_ns)
            child++;
        if (heap[child]->due_ns >= c->due_ns)
            break;
        heap_put(i, heap[child]);
    }
    heap_put(i, c);
}

void timer_start(connection *c)
{
    if (heap_length == heap_capacity)
        heap = resized(heap, sizeof *heap * (heap_capacity = heap_capacity ? heap_capacity * 2 : 256));
    heap_put(heap_length, c);
    heap_rise(heap_length++);
}

void timer_stop(connection *c)
{
    int i = c->heap_index;
    if (i < 0)
        return;
    c->heap_index = -1;
    if (i == --heap_length)
        return;
    heap_put(i, heap[heap_length]);
    heap_rise(i);
    heap_sink(heap[i]->heap_index);
}

// ------------------------------------------------ ready list: unpaced streams that can write in the next turn

static connection **ready;
static int ready_length, ready_capacity;

void ready_add(connection *c)
{
    if (c->ready_index >= 0)
        return;
    if (ready_length == ready_capacity)
        ready = resized(ready, sizeof *ready * (ready_capacity = ready_capacity ? ready_capacity * 2 : 256));
    ready[ready_length] = c;
    c->ready_index = ready_length++;
}

void ready_remove(connection *c)
{
    int i = c->ready_index;
    if (i < 0)
        return;
    c->ready_index = -1;
    if (i == --ready_length)
        return;
    ready[i] = ready[ready_length];
    ready[i]->ready_index = i;
}

// -------------------------------------------------------------------- idle connections, the longest idle first

static connection *idle_first, *idle_last;

void idle_remove(connection *c)
{
    if (!c->in_idle_list)
        return;
    c->in_idle_list = 0;
    *(c->idle_previous ? &c->idle_previous->idle_next : &idle_first) = c->idle_next;
    *(c->idle_next ? &c->idle_next->idle_previous : &idle_last) = c->idle_previous;
    c->idle_previous = c->idle_next = NULL;
}

void idle_append(connection *c)
{
    idle_remove(c);
    c->in_idle_list = 1;
    c->idle_since_ns = now_ns();
    c->idle_previous = idle_last;
    *(idle_last ? &idle_last->idle_next : &idle_first) = c;
    idle_last = c;
}

// Of each list what is next: the connections that the loop looks at, NULL when there is none.

connection *first_due(void)
{
    return heap_length ? heap[0] : NULL;
}

connection *first_idle(void)
{
    return idle_first;
}

int ready_total(void)
{
    return ready_length;
}

connection *ready_at(int i)
{
    return ready[i];
}

// Counts what Python allocates: a library that is loaded into the interpreter with ctypes.PyDLL.
//
// Every request for memory of the interpreter and its extensions goes through three allocators (PEP 445). Each is
// replaced by one that counts and hands on, as tracemalloc does, which however knows only what is still held.
#include <Python.h>

enum { DOMAIN_COUNT = 3 };

static PyMemAllocatorEx originals[DOMAIN_COUNT];
static unsigned long allocation_count;

static void *counted_malloc(void *context, size_t size)
{
    const PyMemAllocatorEx *original = context;
    allocation_count++;
    return original->malloc(original->ctx, size);
}

static void *counted_calloc(void *context, size_t count, size_t size)
{
    const PyMemAllocatorEx *original = context;
    allocation_count++;
    return original->calloc(original->ctx, count, size);
}

static void *counted_realloc(void *context, void *block, size_t size)
{
    const PyMemAllocatorEx *original = context;
    allocation_count++; // growing may copy, so it costs what a new block costs
    return original->realloc(original->ctx, block, size);
}

static void counted_free(void *context, void *block)
{
    const PyMemAllocatorEx *original = context;
    original->free(original->ctx, block);
}

// Once and for good: blocks of either kind are freed by the same original, so the order does not matter.
void allocations_start(void)
{
    static const PyMemAllocatorDomain domains[DOMAIN_COUNT] = {PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};
    for (int i = 0; i < DOMAIN_COUNT; i++) {
        PyMem_GetAllocator(domains[i], &originals[i]);
        PyMemAllocatorEx counted = {&originals[i], counted_malloc, counted_calloc, counted_realloc, counted_free};
        PyMem_SetAllocator(domains[i], &counted);
    }
}

unsigned long allocations_total(void)
{
    return allocation_count;
}

// What other native code of the router may ask of the scan's JSON (_scan.c): the pointer in the capsule `router._scan.json`.

#ifndef RINGROUTER_JSON_H
#define RINGROUTER_JSON_H

#include "_native.h"

#define RINGROUTER_JSON "router.json/1"

typedef struct {
    bool (*is_array)(text begin, text end); // whether all of it is one array, as split_body() takes it
} json_t;

#endif

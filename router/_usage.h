// Usage of OpenAI's shape → counts of tokens. The judge is read_report() in router/telemetry/host_report.py.

#ifndef RINGROUTER_USAGE_H
#define RINGROUTER_USAGE_H

#include "_json_cursor.h"

enum { USAGE_NUMBERS = 5 };  // the layout is that of TOKENS in records.py

// Take an object with a count in it, or null.
static inline bool take_details(cursor *c, const char *field, uint32_t *count)
{
    bool is_twice = false;
    if (next_is(c, 'n'))
        return take_word(c, "null", 4);
    members all;
    for (bool is_more = first_member(c, &all); is_more; is_more = next_member(c, &all)) {
        if (!is(all.name, field)) {
            if (!take_value(c, all.name))
                return false;
        } else if (is_twice || !take_whole_number(c, UINT32_MAX, count)) {
            return false;
        } else {
            is_twice = true;
        }
    }
    return all.is_whole;
}

// Take all of a usage.
static inline bool take_usage(cursor *c, uint32_t numbers[USAGE_NUMBERS])
{
    enum { IN = 1, OUT = 2, IN_DETAILS = 4, OUT_DETAILS = 8 };
    unsigned keys = 0;
    members all;
    for (bool is_more = first_member(c, &all); is_more; is_more = next_member(c, &all)) {
        bool ok;
        if (is(all.name, "prompt_tokens"))
            ok = !seen(&keys, IN) && take_whole_number(c, UINT32_MAX, numbers);
        else if (is(all.name, "completion_tokens"))
            ok = !seen(&keys, OUT) && take_whole_number(c, UINT32_MAX, numbers + 1);
        else if (is(all.name, "prompt_tokens_details"))
            ok = !seen(&keys, IN_DETAILS) && take_details(c, "cached_tokens", numbers + 2);
        else if (is(all.name, "completion_tokens_details"))
            ok = !seen(&keys, OUT_DETAILS) && take_details(c, "reasoning_tokens", numbers + 3);
        else
            ok = take_value(c, all.name);
        if (!ok)
            return false;
    }
    numbers[4] = numbers[1] != 0;
    skip_blanks(c);
    return all.is_whole && c->at == c->end && (keys & IN) != 0;
}

#endif

/* glob.h - patterns in which * stands for any run of bytes, also none, and nothing else is special. */
#ifndef RINGCAST_GLOB_H
#define RINGCAST_GLOB_H

#include <stdint.h>

/* Does the whole text match? The last * takes more whenever what follows it does not fit; those before
 * it never need to be looked at again. So it takes at most length * text_length steps. */
static inline int rc_matches(const char *pattern, uint32_t length, const char *text,
                             uint32_t text_length)
{
    uint32_t at = 0, in = 0, star = UINT32_MAX, back = 0;
    while (in < text_length) {
        if (at < length && pattern[at] == '*') {
            star = at++;
            back = in;
        } else if (at < length && pattern[at] == text[in]) {
            at++;
            in++;
        } else if (star != UINT32_MAX) {
            at = star + 1;
            in = ++back;
        } else {
            return 0;
        }
    }
    while (at < length && pattern[at] == '*')
        at++;
    return at == length;
}

#endif

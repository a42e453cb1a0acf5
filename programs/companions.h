/* companions.h - other requests that run beside one request, to test that its answer does not depend on them.
 * Each has a thread of its own; started and finished by the main thread. */
#ifndef PROGRAMS_COMPANIONS_H
#define PROGRAMS_COMPANIONS_H

#include "yoke.h"

struct companions; /* opaque */

/* Submits n requests like `like`, but with its prompt rotated and shortened, each differently. Returns an
 * exit status; *out may be NULL when n is 0. */
int companions_start(struct companions **out, struct yoke *y, const struct yoke_request_options *like, int n);
/* Cancels what still runs, waits for all threads and frees c (may be NULL). Returns an exit status: EXIT_DONE
 * unless a companion failed, which is reported in one line. */
int companions_finish(struct companions *c);

#endif

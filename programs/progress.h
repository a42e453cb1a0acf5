/* progress.h - a progress bar on stderr, shown only when stderr is a terminal and the work takes a while.
 * Main thread only. */
#ifndef PROGRAMS_PROGRESS_H
#define PROGRAMS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    bool enabled, shown;
    char what[32];               /* the work it shows */
    double started, last_update; /* seconds on the monotonic clock */
};

void progress_init(struct progress *p, bool quiet);
/* A yoke_progress callback, user = struct progress: draws, and cancels the work when Ctrl-C was pressed. */
int progress_update(void *user, const char *what, uint64_t done, uint64_t total);
/* Clears the bar's line, if there is one. */
void progress_end(struct progress *p);

#endif

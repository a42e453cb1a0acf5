/* interrupt.h - Ctrl-C. The first SIGINT asks the work in progress to stop, so that a command can report what
 * it has done; the second ends the program at once. The main thread installs and watches; the handler does
 * its work on the main thread whichever thread the kernel picked, so a request cannot be closed under it. */
#ifndef PROGRAMS_INTERRUPT_H
#define PROGRAMS_INTERRUPT_H

#include "yoke.h"

#include <stdbool.h>

/* restart: system calls go on after the signal; without it reading from a terminal ends with EINTR. */
void interrupt_install(bool restart);
bool interrupt_pending(void);
/* The request that a SIGINT cancels (at once, if one came before); NULL: none any more. */
void interrupt_watch(struct yoke_request *request);

#endif

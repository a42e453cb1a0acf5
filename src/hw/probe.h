/* probe.h - what this machine really gives: measured limits that reports compare with. */
#ifndef HW_PROBE_H
#define HW_PROBE_H

#include "hw/team.h"

/* Bytes per second that all threads of the team together read from memory, each from its own 64 MB (touched
 * by itself, so on its own node), median of several passes; takes about a third of a second. 0 when memory
 * for it could not be had. */
double probe_read_bandwidth(struct team *team);

#endif

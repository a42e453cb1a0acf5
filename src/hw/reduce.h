/* reduce.h - the all-reduce: sums of per-rank partial results through shared memory, in a fixed order.
 *
 * Each rank owns two buffers (used in turn by parity, so that one meeting per reduction is enough: a rank that
 * comes to reduction i + 1 has finished reading i). A reduction is
 *     float *mine = reduce_buffer(r, w);   // write partial sums, (rows, cols) row-major
 *     if (reduce_meet(r, w, what)) return; // all ranks' partials of this reduction are visible
 *     reduce_sum(r, w, offset, n, out);    // out[i] = tree sum over ranks of partial[offset + i]
 * A thread that meets for reduction i + 1 thereby says that it reads reduction i no more.
 *
 * Tree for 1, 2, 4, 8 ranks: ((p0+p1)+(p2+p3))+((p4+p5)+(p6+p7)), the top of the K-slab tree of ARCHITECTURE.md
 * "One answer". Called by rank threads in SPMD order; reduce_open by the opening thread. */
#ifndef HW_REDUCE_H
#define HW_REDUCE_H

#include "base/err.h"
#include "hw/arena.h"
#include "hw/team.h"

#include <stddef.h>

struct reduce;

/* `elements`: capacity of one partial buffer in floats. Both buffers of a rank come from its arena, which
 * must have reduce_arena_bytes() left. */
MUST_CHECK int reduce_open(struct reduce **out, int n_ranks, int n_threads, size_t elements,
                           struct arena *const arenas[], struct err *err);
void reduce_close(struct reduce *r);
/* The most that reduce_open takes from each rank's arena. */
size_t reduce_arena_bytes(size_t elements);

float *reduce_buffer(struct reduce *r, const struct worker *w);
MUST_CHECK int reduce_meet(struct reduce *r, struct worker *w, const char *what);
/* `out` must not overlap the partial buffers. Threads may each sum a part of the elements, or all of them. */
void reduce_sum(const struct reduce *r, const struct worker *w, size_t offset, size_t n, float *out);

#endif

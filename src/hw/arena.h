/* arena.h - one rank's memory: a reserved range bound to the rank's NUMA node, in 2 MB pages where the kernel
 * gives them, touched first by the rank's own threads. A bump allocator: everything is placed at open,
 * nothing is freed singly. Allocation from one thread at a time; the memory itself is for whoever the owner
 * says. */
#ifndef HW_ARENA_H
#define HW_ARENA_H

#include "base/err.h"
#include "hw/topo.h"

#include <stddef.h>
#include <stdint.h>

enum { ARENA_HUGE_PAGE = 2 << 20 };

struct arena {
    uint8_t *base;
    size_t reserved_bytes; /* address space */
    size_t used_bytes;     /* handed out, always a multiple of 64 */
};

/* Reserves address space (no memory yet), binds it to the place's node (a machine that refuses binding, e.g.
 * a container, is no error: *bound tells), asks for transparent huge pages. Fresh memory reads as zero. */
MUST_CHECK int arena_open(struct arena *a, const struct topo *t, int rank, size_t bytes, bool *bound,
                          struct err *err);
/* 64-byte aligned (2 MB aligned when bytes >= 2 MB). NULL when the reservation is exhausted: that is a
 * mistake in the memory plan, callers assert. */
void *arena_alloc(struct arena *a, size_t bytes);
void arena_close(struct arena *a);
/* The most that arena_alloc(bytes) can take, its alignment included; for memory plans. */
static inline size_t arena_bytes_for(size_t bytes)
{
    return (bytes + 63) / 64 * 64 + (bytes >= ARENA_HUGE_PAGE ? ARENA_HUGE_PAGE - 64 : 0);
}

/* Where the pages really are, asked of the kernel (mincore / move_pages): bytes resident, and of those the
 * bytes on `node`. Above 1 GiB a sample, good to 1 %. Where the kernel does not tell (no NUMA support in it),
 * local = resident and *known=false. */
void arena_residency(const struct arena *a, int node, uint64_t *resident_bytes, uint64_t *local_bytes,
                     bool *known);

#endif

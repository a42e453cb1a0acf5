/* topo.h - the parts of this machine, and which rank gets which part.
 *
 * hwloc finds NUMA nodes, L3 domains and cores; place_ranks() turns them into one `struct place` per rank.
 * Pure function of the topology: tested on synthetic machines. Called once, by the opening thread. */
#ifndef HW_TOPO_H
#define HW_TOPO_H

#include "base/err.h"

#include <hwloc.h>
#include <stdbool.h>
#include <stdint.h>

enum { MAX_RANKS = 8, MAX_THREADS_PER_RANK = 256 };

/* What the ranks were cut along. */
enum place_kind {
    PLACE_MACHINE, /* one rank: everything */
    PLACE_NODE,    /* one NUMA node each (or several whole nodes) */
    PLACE_L3,      /* one L3 domain each (or several whole ones) */
    PLACE_CORES,   /* a group of cores that shares its L3 with others */
    PLACE_SHARED,  /* more ranks than cores: ranks share cores */
};

struct place {
    int rank;
    enum place_kind kind;
    int n_cpus;            /* hardware threads usable by this rank, one per core (no SMT siblings) */
    int *cpus;             /* (n_cpus) OS indices, ascending; owned by the topo */
    int node;              /* OS index of the NUMA node whose memory it uses (of several nodes, the first) */
    uint64_t memory_bytes; /* of that node (its share when several ranks use one node), as hwloc reports it */
};

struct topo {
    hwloc_topology_t hwloc;
    bool synthetic; /* described, not this machine: cannot be run on */
    int n_nodes, n_l3, n_cores,
        n_cpus; /* nodes that have CPUs; n_cpus counts SMT siblings, n_l3 0 = unknown */
    int n_ranks;
    int n_threads; /* per rank, the same for all */
    struct place places[MAX_RANKS];
};

/* Finds this machine (synthetic == NULL; restricted to the CPUs this process may use) or builds the described
 * one (hwloc's synthetic syntax, e.g. "numa:2 l3:2 core:8 pu:1").
 *   tp      ranks: 0 = auto (one per NUMA node; one per L3 domain when the L3 domains have separate memory
 *           paths, i.e. belong to different nodes; 1 on a plain machine; rounded down to 1, 2, 4 or 8),
 *           else 1, 2, 4 or 8; anything else is ERR_USAGE.
 *   threads per rank: 0 = one per core of the smallest place.
 * topo_close() releases. */
MUST_CHECK int topo_open(struct topo *out, const char *synthetic, int tp, int threads, struct err *err);
void topo_close(struct topo *t);

/* Memory that a place can still take, in bytes: free + reclaimable of its node, divided by the ranks sharing
 * the node; and no more than its even part of what the cgroup and MemAvailable leave to all ranks together.
 * For a described machine, the place's memory_bytes. */
uint64_t topo_available_bytes(const struct topo *t, int rank);

const char *place_kind_name(enum place_kind kind);

#endif

/* topo.c - see topo.h. The machine is flattened to a list of cores, each with its NUMA node and L3 domain, in
 * the order of the topology tree; ranks are then cut out of that list, along nodes first, then L3 domains,
 * then cores. */
#include "hw/topo.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct core {
    int cpu;   /* OS index of its first usable hardware thread */
    int node;  /* index into machine.nodes */
    int l3;    /* hwloc's logical index, -1 when the machine tells of no L3 */
    int order; /* position in the tree */
};

struct machine {
    hwloc_obj_t *nodes; /* (n_nodes) with CPUs, in the order of the tree */
    int n_nodes;
    struct core *cores; /* (n_cores) sorted by node, L3, order */
    int n_cores;
};

static int by_width_then_index(const void *a, const void *b)
{
    const hwloc_obj_t x = *(const hwloc_obj_t *)a, y = *(const hwloc_obj_t *)b;
    int wx = hwloc_bitmap_weight(x->cpuset), wy = hwloc_bitmap_weight(y->cpuset);
    if (wx != wy)
        return wx < wy ? -1 : 1;
    return (x->os_index > y->os_index) - (x->os_index < y->os_index);
}

static int by_tree_order(const void *a, const void *b)
{
    const hwloc_obj_t x = *(const hwloc_obj_t *)a, y = *(const hwloc_obj_t *)b;
    return (x->logical_index > y->logical_index) - (x->logical_index < y->logical_index);
}

static int by_domain(const void *a, const void *b)
{
    const struct core *x = a, *y = b;
    if (x->node != y->node)
        return x->node < y->node ? -1 : 1;
    if (x->l3 != y->l3)
        return x->l3 < y->l3 ? -1 : 1;
    return (x->order > y->order) - (x->order < y->order);
}

static int by_value(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

/* Keeps the nodes that CPUs call their own. A node that is memory only (CXL, HBM) either has no CPUs or is
 * attached by hwloc to those near it, which are at least as many as those of the CPUs' own node: so the
 * narrowest nodes come first and one whose CPUs are taken is left out. */
static int find_nodes(struct machine *m, hwloc_topology_t hwloc)
{
    int n = hwloc_get_nbobjs_by_type(hwloc, HWLOC_OBJ_NUMANODE);
    hwloc_bitmap_t covered = hwloc_bitmap_alloc();
    m->nodes = malloc((size_t)(n > 0 ? n : 1) * sizeof *m->nodes);
    if (!covered || !m->nodes) {
        hwloc_bitmap_free(covered);
        return -1;
    }
    for (int i = 0; i < n; i++)
        m->nodes[i] = hwloc_get_obj_by_type(hwloc, HWLOC_OBJ_NUMANODE, (unsigned)i);
    if (n > 0)
        qsort(m->nodes, (size_t)n, sizeof *m->nodes, by_width_then_index);
    for (int i = 0; i < n; i++) {
        hwloc_obj_t node = m->nodes[i];
        if (hwloc_bitmap_iszero(node->cpuset) || hwloc_bitmap_intersects(node->cpuset, covered))
            continue;
        hwloc_bitmap_or(covered, covered, node->cpuset);
        m->nodes[m->n_nodes++] = node;
    }
    qsort(m->nodes, (size_t)m->n_nodes, sizeof *m->nodes, by_tree_order);
    hwloc_bitmap_free(covered);
    return 0;
}

/* Cores outside every node (their memory is closed to this process, e.g. by cpuset.mems) are left out: all
 * they read would come from far away. */
static int find_cores(struct machine *m, hwloc_topology_t hwloc)
{
    int n = hwloc_get_nbobjs_by_type(hwloc, HWLOC_OBJ_PU);
    m->cores = malloc((size_t)(n > 0 ? n : 1) * sizeof *m->cores);
    if (!m->cores)
        return -1;
    hwloc_obj_t last_core = NULL;
    for (int i = 0; i < n; i++) {
        hwloc_obj_t pu = hwloc_get_obj_by_type(hwloc, HWLOC_OBJ_PU, (unsigned)i);
        hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(hwloc, HWLOC_OBJ_CORE, pu);
        hwloc_obj_t l3 = hwloc_get_ancestor_obj_by_type(hwloc, HWLOC_OBJ_L3CACHE, pu);
        if (core && core == last_core)
            continue; /* an SMT sibling; a machine that tells of no cores has one per hardware thread */
        last_core = core;
        int node = 0;
        while (node < m->n_nodes && !hwloc_bitmap_isset(m->nodes[node]->cpuset, pu->os_index))
            node++;
        if (node == m->n_nodes)
            continue;
        m->cores[m->n_cores++] = (struct core){
            .cpu = (int)pu->os_index, .node = node, .l3 = l3 ? (int)l3->logical_index : -1, .order = i};
    }
    qsort(m->cores, (size_t)m->n_cores, sizeof *m->cores, by_domain);
    return 0;
}

static uint64_t node_memory(const struct machine *m, int node)
{
    return m->nodes[node]->attr->numanode.local_memory;
}

/* The node whose memory a rank on cores [first, last) uses: its first that has any, else the machine's first
 * that has any (dies without memory of their own exist). */
static int memory_node(const struct machine *m, int first, int last)
{
    for (int i = first; i < last; i++)
        if (node_memory(m, m->cores[i].node))
            return m->cores[i].node;
    for (int i = 0; i < m->n_nodes; i++)
        if (node_memory(m, i))
            return i;
    return m->cores[first].node;
}

/* The levels at which the list of cores is cut, and the kind of place a piece cut there is. */
enum level { LEVEL_NODE, LEVEL_L3, LEVEL_CORE };
static const enum place_kind level_kind[] = {PLACE_NODE, PLACE_L3, PLACE_CORES};

struct cutter {
    struct topo *topo;
    const struct machine *machine;
    int next_rank;
    int memory_index[MAX_RANKS]; /* per rank: index of its node in machine.nodes */
};

/* Gives cores [first, last) to the next rank. */
static int cut_off(struct cutter *c, int first, int last, enum place_kind kind)
{
    int rank = c->next_rank++;
    struct place *p = &c->topo->places[rank];
    p->rank = rank;
    p->kind = kind;
    p->n_cpus = last - first;
    p->cpus = malloc((size_t)p->n_cpus * sizeof *p->cpus);
    if (!p->cpus)
        return -1;
    for (int i = first; i < last; i++)
        p->cpus[i - first] = c->machine->cores[i].cpu;
    qsort(p->cpus, (size_t)p->n_cpus, sizeof *p->cpus, by_value);
    c->memory_index[rank] = memory_node(c->machine, first, last);
    return 0;
}

/* End of the unit (node, L3 domain, core) that starts at core `first`. */
static int unit_end(const struct machine *m, int first, int last, enum level level)
{
    int end = first + 1;
    if (level == LEVEL_CORE)
        return end;
    while (end < last && m->cores[end].node == m->cores[first].node &&
           (level == LEVEL_NODE || m->cores[end].l3 == m->cores[first].l3))
        end++;
    return end;
}

/* At least as many units as ranks: each rank gets neighbouring whole units, their numbers as even as can be.
 */
static int cut_whole_units(struct cutter *c, int first, int last, int n_units, int n_ranks, enum level level)
{
    int unit = 0;
    for (int r = 0; r < n_ranks; r++) {
        int begin = first;
        for (; unit < (r + 1) * n_units / n_ranks; unit++)
            first = unit_end(c->machine, first, last, level);
        if (cut_off(c, begin, first, level_kind[level]))
            return -1;
    }
    return 0;
}

static int cut(struct cutter *c, int first, int last, int n_ranks, enum level level)
{
    int n_units = 0;
    for (int i = first; i < last; i = unit_end(c->machine, i, last, level))
        n_units++;
    if (n_ranks <= n_units)
        return cut_whole_units(c, first, last, n_units, n_ranks, level);
    if (level == LEVEL_CORE) {
        for (int r = 0; r < n_ranks; r++)
            if (cut_off(c, first + r * n_units / n_ranks, first + r * n_units / n_ranks + 1, PLACE_SHARED))
                return -1;
        return 0;
    }

    /* Fewer units than ranks: one rank for each, and each further one to the unit that has the most cores per
     * rank after getting it. So no core is shared while another is free. */
    int sizes[MAX_RANKS], shares[MAX_RANKS], n = 0;
    for (int i = first, end; i < last; i = end, n++) {
        end = unit_end(c->machine, i, last, level);
        sizes[n] = end - i;
        shares[n] = 1;
    }
    for (int left = n_ranks - n; left > 0; left--) {
        int best = 0;
        for (int i = 1; i < n; i++)
            if (sizes[i] * (shares[best] + 1) > sizes[best] * (shares[i] + 1))
                best = i;
        shares[best]++;
    }
    for (int i = 0; i < n; first += sizes[i++]) {
        int failed = shares[i] == 1 ? cut_off(c, first, first + sizes[i], level_kind[level])
                                    : cut(c, first, first + sizes[i], shares[i], level + 1);
        if (failed)
            return -1;
    }
    return 0;
}

static int auto_ranks(const struct machine *m)
{
    int with_memory = 0, n = 1;
    for (int i = 0; i < m->n_nodes; i++)
        with_memory += node_memory(m, i) > 0;
    while (n * 2 <= with_memory && n * 2 <= MAX_RANKS)
        n *= 2;
    return n;
}

static int place_ranks(struct topo *t, const struct machine *m, int tp, int threads, struct err *err)
{
    struct cutter c = {.topo = t, .machine = m};
    t->n_ranks = tp ? tp : auto_ranks(m);
    int failed = t->n_ranks == 1 ? cut_off(&c, 0, m->n_cores, PLACE_MACHINE)
                                 : cut(&c, 0, m->n_cores, t->n_ranks, LEVEL_NODE);
    if (failed)
        return err_set(err, ERR_SYSTEM, "out of memory while placing the ranks");
    assert(c.next_rank == t->n_ranks);
    int smallest = MAX_THREADS_PER_RANK;
    for (int r = 0; r < t->n_ranks; r++) {
        uint64_t sharers = 0;
        for (int other = 0; other < t->n_ranks; other++)
            sharers += c.memory_index[other] == c.memory_index[r];
        t->places[r].node = (int)m->nodes[c.memory_index[r]]->os_index;
        t->places[r].memory_bytes = node_memory(m, c.memory_index[r]) / sharers;
        if (t->places[r].n_cpus < smallest)
            smallest = t->places[r].n_cpus;
    }
    t->n_threads = threads ? threads : smallest;
    return 0;
}

/* hwloc wants a description to end with the hardware threads; "numa:2 core:8" means one per core. */
static bool describe(hwloc_topology_t hwloc, const char *synthetic)
{
    char text[512];
    if (hwloc_topology_set_synthetic(hwloc, synthetic) == 0)
        return true;
    size_t length = strlen(synthetic);
    if (length == 0 || !isdigit((unsigned char)synthetic[length - 1]) || strstr(synthetic, "pu:") ||
        (size_t)snprintf(text, sizeof text, "%s pu:1", synthetic) >= sizeof text)
        return false;
    return hwloc_topology_set_synthetic(hwloc, text) == 0;
}

/* Loads hwloc's view: of the described machine, or of this one less the CPUs that the process is kept from by
 * its cgroup (hwloc does that) or by its affinity mask (taskset, batch systems). */
static int load_hwloc(struct topo *t, const char *synthetic, struct err *err)
{
    if (hwloc_topology_init(&t->hwloc)) {
        t->hwloc = NULL;
        return err_set(err, ERR_SYSTEM, "hwloc cannot be started: %s", strerror(errno));
    }
    if (synthetic && !describe(t->hwloc, synthetic))
        return err_set(err, ERR_USAGE, "not a machine description: '%s' (example: 'numa:2 l3:2 core:8 pu:1')",
                       synthetic);
    if (hwloc_topology_load(t->hwloc))
        return err_set(err, ERR_SYSTEM, "hwloc cannot read this machine's topology: %s", strerror(errno));
    /* hwloc's own environment variables can replace this machine by a described one. */
    t->synthetic = !hwloc_topology_is_thissystem(t->hwloc);
    if (!t->synthetic) {
        hwloc_bitmap_t allowed = hwloc_bitmap_alloc();
        if (allowed && hwloc_get_cpubind(t->hwloc, allowed, HWLOC_CPUBIND_THREAD) == 0)
            hwloc_topology_restrict(t->hwloc, allowed, 0); /* on failure all CPUs stay, which works too */
        hwloc_bitmap_free(allowed);
    }
    return 0;
}

int topo_open(struct topo *out, const char *synthetic, int tp, int threads, struct err *err)
{
    memset(out, 0, sizeof *out);
    if (tp != 0 && tp != 1 && tp != 2 && tp != 4 && tp != 8)
        return err_set(err, ERR_USAGE, "the number of ranks must be 1, 2, 4 or 8 (or auto), not %d", tp);
    if (threads < 0 || threads > MAX_THREADS_PER_RANK)
        return err_set(err, ERR_USAGE,
                       "the number of threads per rank must be 1 to %d (or 0: one per core), not %d",
                       MAX_THREADS_PER_RANK, threads);
    struct machine m = {0};
    int rc = load_hwloc(out, synthetic, err);
    if (rc)
        goto out;
    if (find_nodes(&m, out->hwloc) || find_cores(&m, out->hwloc)) {
        rc = err_set(err, ERR_SYSTEM, "out of memory while reading the machine's topology");
        goto out;
    }
    if (m.n_cores == 0) {
        rc = err_set(err, ERR_SYSTEM,
                     "this process may use no CPU that has memory: check its cgroup's cpuset");
        goto out;
    }
    out->n_nodes = m.n_nodes;
    out->n_l3 = hwloc_get_nbobjs_by_type(out->hwloc, HWLOC_OBJ_L3CACHE);
    out->n_cores = m.n_cores;
    out->n_cpus = hwloc_get_nbobjs_by_type(out->hwloc, HWLOC_OBJ_PU);
    rc = place_ranks(out, &m, tp, threads, err);
out:
    free(m.nodes);
    free(m.cores);
    if (rc)
        topo_close(out);
    return rc;
}

void topo_close(struct topo *t)
{
    for (int r = 0; r < MAX_RANKS; r++)
        free(t->places[r].cpus);
    if (t->hwloc)
        hwloc_topology_destroy(t->hwloc);
    memset(t, 0, sizeof *t);
}

const char *place_kind_name(enum place_kind kind)
{
    static const char *const names[] = {[PLACE_MACHINE] = "machine",
                                        [PLACE_NODE] = "NUMA node",
                                        [PLACE_L3] = "L3 domain",
                                        [PLACE_CORES] = "cores",
                                        [PLACE_SHARED] = "shared core"};
    return names[kind];
}

/* test_topo.c - how ranks are placed on described machines, and what is found on this one. */
#include "hw/topo.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GB ((uint64_t)1000000000) /* as hwloc reads it */

static void open_ok(struct topo *t, const char *machine, int tp, int threads)
{
    struct err err = {0};
    int rc = topo_open(t, machine, tp, threads, &err);
    if (rc)
        fail_msg("%s tp=%d: %s", machine ? machine : "this machine", tp, err.message);
}

static void check_cpus(const struct topo *t, int rank, int n, const int *cpus)
{
    assert_int_equal(t->places[rank].n_cpus, n);
    for (int i = 0; i < n; i++)
        assert_int_equal(t->places[rank].cpus[i], cpus[i]);
}

/* The core that a CPU belongs to. */
static hwloc_obj_t core_of(const struct topo *t, int cpu)
{
    hwloc_obj_t pu = hwloc_get_pu_obj_by_os_index(t->hwloc, (unsigned)cpu);
    assert_non_null(pu);
    hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(t->hwloc, HWLOC_OBJ_CORE, pu);
    return core ? core : pu;
}

/* What holds on every machine for every number of ranks. */
static void check_rules(const struct topo *t, int tp)
{
    assert_int_equal(t->n_ranks, tp);
    bool shared = tp > t->n_cores;
    int smallest = MAX_THREADS_PER_RANK;
    hwloc_obj_t *seen = calloc((size_t)t->n_cpus, sizeof *seen);
    int n_seen = 0;
    assert_non_null(seen);
    for (int r = 0; r < tp; r++) {
        const struct place *p = &t->places[r];
        assert_int_equal(p->rank, r);
        assert_in_range(p->n_cpus, 1, t->n_cores);
        if (shared)
            assert_int_equal(p->n_cpus, 1);
        else
            assert_int_not_equal(p->kind, PLACE_SHARED);
        for (int i = 0; i < p->n_cpus; i++) {
            if (i > 0)
                assert_true(p->cpus[i - 1] < p->cpus[i]);
            hwloc_obj_t core = core_of(t, p->cpus[i]);
            for (int j = 0; j < n_seen && !shared; j++)
                assert_ptr_not_equal(seen[j], core); /* no core twice, so no SMT siblings either */
            if (!shared)
                seen[n_seen++] = core;
        }
        if (p->n_cpus < smallest)
            smallest = p->n_cpus;
        assert_true(p->memory_bytes > 0);
    }
    assert_int_equal(t->n_threads, smallest);
    if (!shared)
        assert_int_equal(n_seen, t->n_cores); /* no core left out */
    free(seen);
}

/* Kinds that the places must have for tp = 1, 2, 4, 8, and what auto must give. */
struct expected {
    const char *machine;
    int n_nodes, n_l3, n_cores, n_cpus, auto_ranks;
    enum place_kind kinds[4];
};

static const struct expected machines[] = {
    /* two sockets with SMT */
    {"pack:2 numa:1 l3:1 core:8 pu:2",
     2,
     2,
     16,
     32,
     2,
     {PLACE_MACHINE, PLACE_NODE, PLACE_CORES, PLACE_CORES}},
    /* two sockets of four sub-NUMA clusters behind one L3 */
    {"pack:2 l3:1 numa:4 core:6 pu:2", 8, 2, 48, 96, 8, {PLACE_MACHINE, PLACE_NODE, PLACE_NODE, PLACE_NODE}},
    /* two sockets of three clusters: six nodes */
    {"pack:2 l3:1 numa:3 core:5 pu:1", 6, 2, 30, 30, 4, {PLACE_MACHINE, PLACE_NODE, PLACE_NODE, PLACE_CORES}},
    /* desktop with two dies */
    {"numa:1 l3:2 core:8 pu:2", 1, 2, 16, 32, 1, {PLACE_MACHINE, PLACE_L3, PLACE_CORES, PLACE_CORES}},
    /* one socket of twelve dies */
    {"numa:1 l3:12 core:8 pu:2", 1, 12, 96, 192, 1, {PLACE_MACHINE, PLACE_L3, PLACE_L3, PLACE_L3}},
    /* as before in four nodes of three dies */
    {"numa:4 l3:3 core:8 pu:1", 4, 12, 96, 96, 4, {PLACE_MACHINE, PLACE_NODE, PLACE_NODE, PLACE_L3}},
    /* one core, two cores */
    {"core:1 pu:1", 1, 0, 1, 1, 1, {PLACE_MACHINE, PLACE_SHARED, PLACE_SHARED, PLACE_SHARED}},
    {"l3:1 core:2 pu:2", 1, 1, 2, 4, 1, {PLACE_MACHINE, PLACE_CORES, PLACE_SHARED, PLACE_SHARED}},
    /* a virtual machine that tells neither cores nor caches */
    {"pu:6", 1, 0, 6, 6, 1, {PLACE_MACHINE, PLACE_CORES, PLACE_CORES, PLACE_SHARED}},
};

static void test_machines(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof machines / sizeof machines[0]; i++) {
        const struct expected *e = &machines[i];
        struct topo t;
        for (int k = 0; k < 4; k++) {
            open_ok(&t, e->machine, 1 << k, 0);
            assert_true(t.synthetic);
            assert_int_equal(t.n_nodes, e->n_nodes);
            assert_int_equal(t.n_l3, e->n_l3);
            assert_int_equal(t.n_cores, e->n_cores);
            assert_int_equal(t.n_cpus, e->n_cpus);
            check_rules(&t, 1 << k);
            /* Where units do not divide evenly, later ranks may have a whole one: the first tells the cut. */
            assert_int_equal(t.places[0].kind, e->kinds[k]);
            topo_close(&t);
        }
        open_ok(&t, e->machine, 0, 0);
        check_rules(&t, e->auto_ranks);
        topo_close(&t);
    }
}

static void test_whole_nodes(void **state)
{
    (void)state;
    struct topo t;
    open_ok(&t, "pack:2 l3:1 numa:2(memory=64GB) core:2 pu:2", 2, 0);
    check_cpus(&t, 0, 4, (int[]){0, 2, 4, 6});
    check_cpus(&t, 1, 4, (int[]){8, 10, 12, 14});
    assert_int_equal(t.places[0].node, 0);
    assert_int_equal(t.places[1].node, 2); /* its first */
    assert_int_equal(t.places[1].memory_bytes, 64 * GB);
    assert_int_equal(topo_available_bytes(&t, 1), 64 * GB);
    topo_close(&t);
}

static void test_shares_of_a_node(void **state)
{
    (void)state;
    struct topo t;
    open_ok(&t, "numa:2(memory=64GB) l3:2 core:3 pu:1", 8, 0); /* two ranks in each L3 of three cores */
    check_cpus(&t, 0, 1, (int[]){0});
    check_cpus(&t, 1, 2, (int[]){1, 2});
    check_cpus(&t, 2, 1, (int[]){3});
    check_cpus(&t, 7, 2, (int[]){10, 11});
    assert_int_equal(t.places[3].node, 0);
    assert_int_equal(t.places[4].node, 1);
    assert_int_equal(t.places[4].memory_bytes, 16 * GB);
    assert_int_equal(t.n_threads, 1);
    topo_close(&t);

    open_ok(&t, "numa:1 l3:3 core:4 pu:1", 4, 0); /* one L3 is cut, the others stay whole */
    assert_int_equal(t.places[0].kind, PLACE_CORES);
    assert_int_equal(t.places[1].kind, PLACE_CORES);
    assert_int_equal(t.places[2].kind, PLACE_L3);
    check_cpus(&t, 1, 2, (int[]){2, 3});
    check_cpus(&t, 3, 4, (int[]){8, 9, 10, 11});
    topo_close(&t);
}

static void test_memory_only_nodes(void **state)
{
    (void)state;
    struct topo t;
    /* Each package has its own memory and, attached to the same CPUs, a second node. */
    open_ok(&t, "pack:2 [numa(memory=64GB)] [numa(memory=16GB)] l3:1 core:4 pu:1", 0, 0);
    assert_int_equal(t.n_nodes, 2);
    check_rules(&t, 2);
    assert_int_equal(t.places[0].memory_bytes, 64 * GB);
    assert_int_equal(t.places[1].memory_bytes, 64 * GB);
    topo_close(&t);
    /* One memory-only node attached to the whole machine. */
    open_ok(&t, "[numa(memory=512GB)] pack:2 [numa(memory=64GB)] core:4 pu:1", 0, 0);
    check_rules(&t, 2);
    assert_int_equal(t.places[0].memory_bytes, 64 * GB);
    assert_int_equal(t.places[1].memory_bytes, 64 * GB);
    topo_close(&t);
}

/* Opens `machine` without the CPUs of `removed` (a list such as "0,4-7"), the way hwloc loads another
 * machine's description: from an XML file named by its environment variable. */
static void open_without(struct topo *t, const char *machine, const char *removed, int tp)
{
    hwloc_topology_t h;
    hwloc_bitmap_t kept = hwloc_bitmap_alloc();
    assert_int_equal(hwloc_topology_init(&h), 0);
    assert_int_equal(hwloc_topology_set_synthetic(h, machine), 0);
    assert_int_equal(hwloc_topology_load(h), 0);
    assert_int_equal(hwloc_bitmap_list_sscanf(kept, removed), 0);
    hwloc_bitmap_andnot(kept, hwloc_topology_get_topology_cpuset(h), kept);
    assert_int_equal(hwloc_topology_restrict(h, kept, 0), 0);
    hwloc_bitmap_free(kept);
    char path[] = "/tmp/test_topo.XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(hwloc_topology_export_xml(h, path, 0), 0);
    hwloc_topology_destroy(h);
    setenv("HWLOC_XMLFILE", path, 1);
    open_ok(t, NULL, tp, 0);
    unsetenv("HWLOC_XMLFILE");
    unlink(path);
    assert_true(t->synthetic);
}

static void test_asymmetric(void **state)
{
    (void)state;
    struct topo t;
    const char *machine = "numa:2 l3:2 core:4 pu:1"; /* CPUs 0-7 and 8-15 */
    for (int tp = 1; tp <= 8; tp *= 2) {
        open_without(&t, machine, "1-7", tp); /* one core against eight */
        assert_int_equal(t.n_cores, 9);
        check_rules(&t, tp);
        if (tp >= 2)
            check_cpus(&t, 0, 1, (int[]){0});
        topo_close(&t);
    }
    open_without(&t, machine, "5-9", 4); /* 4+1 and 2+4 cores: two ranks in each node, along the L3 domains */
    check_rules(&t, 4);
    check_cpus(&t, 0, 4, (int[]){0, 1, 2, 3});
    check_cpus(&t, 1, 1, (int[]){4});
    check_cpus(&t, 2, 2, (int[]){10, 11});
    check_cpus(&t, 3, 4, (int[]){12, 13, 14, 15});
    topo_close(&t);
    open_without(&t, machine, "8-15", 0); /* the second node keeps its memory but has no CPU */
    assert_int_equal(t.n_nodes, 1);
    check_rules(&t, 1);
    topo_close(&t);
    open_without(&t, "numa:4 core:2 pu:1", "2,3", 0); /* three nodes with CPUs: two ranks */
    check_rules(&t, 2);
    check_cpus(&t, 0, 2, (int[]){0, 1});
    check_cpus(&t, 1, 4, (int[]){4, 5, 6, 7});
    topo_close(&t);
}

static void test_threads(void **state)
{
    (void)state;
    struct topo t;
    open_ok(&t, "numa:2 core:4 pu:1", 2, 3);
    assert_int_equal(t.n_threads, 3);
    topo_close(&t);
    open_ok(&t, "numa:2 core:4 pu:1", 2, 9); /* more than cores: allowed, they share */
    assert_int_equal(t.n_threads, 9);
    topo_close(&t);
}

static void test_errors(void **state)
{
    (void)state;
    struct topo t;
    const int bad_tp[] = {3, -1, 5, 16};
    for (size_t i = 0; i < sizeof bad_tp / sizeof bad_tp[0]; i++) {
        struct err err = {0};
        assert_int_equal(topo_open(&t, "numa:2 core:4 pu:1", bad_tp[i], 0, &err), ERR_USAGE);
        assert_non_null(strstr(err.message, "1, 2, 4 or 8"));
        topo_close(&t); /* harmless */
    }
    const char *const bad_machines[] = {"",
                                        "nonsense",
                                        "core:0",
                                        "core:",
                                        "numa:2 core:4 pu:1 pu:1",
                                        "core:-3 pu:1",
                                        "core:2 numa:99999999999 pu:1"};
    for (size_t i = 0; i < sizeof bad_machines / sizeof bad_machines[0]; i++) {
        struct err err = {0};
        assert_int_equal(topo_open(&t, bad_machines[i], 2, 0, &err), ERR_USAGE);
        assert_non_null(strstr(err.message, "machine description"));
    }
    struct err err = {0};
    assert_int_equal(topo_open(&t, "core:4 pu:1", 2, -1, &err), ERR_USAGE);
    assert_int_equal(topo_open(&t, "core:4 pu:1", 2, MAX_THREADS_PER_RANK + 1, &err), ERR_USAGE);
}

static void test_this_machine(void **state)
{
    (void)state;
    for (int tp = 1; tp <= 8; tp *= 2) {
        struct topo t;
        open_ok(&t, NULL, tp, 0);
        assert_false(t.synthetic);
        check_rules(&t, tp);
        uint64_t total = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE), sum = 0;
        for (int r = 0; r < tp; r++) {
            assert_true(topo_available_bytes(&t, r) > 0);
            sum += topo_available_bytes(&t, r);
        }
        assert_true(sum <= total);
        topo_close(&t);
    }
}

static void test_affinity_is_respected(void **state)
{
    (void)state;
    cpu_set_t old, one;
    assert_int_equal(sched_getaffinity(0, sizeof old, &old), 0);
    if (CPU_COUNT(&old) < 2)
        skip();
    int cpu = CPU_SETSIZE - 1;
    while (!CPU_ISSET(cpu, &old))
        cpu--;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    struct topo t;
    open_ok(&t, NULL, 1, 0);
    assert_int_equal(sched_setaffinity(0, sizeof old, &old), 0);
    assert_int_equal(t.n_cpus, 1);
    check_cpus(&t, 0, 1, &cpu);
    topo_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_machines),
        cmocka_unit_test(test_whole_nodes),
        cmocka_unit_test(test_shares_of_a_node),
        cmocka_unit_test(test_memory_only_nodes),
        cmocka_unit_test(test_asymmetric),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_this_machine),
        cmocka_unit_test(test_affinity_is_respected),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

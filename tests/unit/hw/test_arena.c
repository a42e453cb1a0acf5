/* test_arena.c - what an arena hands out, and what the kernel says about where its pages are. */
#include "hw/arena.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#define MB ((size_t)1 << 20)

static struct topo topo;

static int open_topo(void **state)
{
    (void)state;
    return topo_open(&topo, NULL, 1, 1, NULL);
}

static int close_topo(void **state)
{
    (void)state;
    topo_close(&topo);
    return 0;
}

static void open_arena(struct arena *a, size_t bytes)
{
    struct err err = {0};
    bool bound;
    if (arena_open(a, &topo, 0, bytes, &bound, &err))
        fail_msg("%s", err.message);
}

static void test_alloc(void **state)
{
    (void)state;
    struct arena a;
    open_arena(&a, 7 * MB);
    assert_true(a.reserved_bytes >= 7 * MB);
    uint8_t *small = arena_alloc(&a, 1), *next = arena_alloc(&a, 100), *large = arena_alloc(&a, 2 * MB);
    assert_ptr_equal(next, small + 64);
    assert_int_equal((uintptr_t)large % (2 * MB), 0);
    assert_true(large >= next + 128);
    assert_int_equal(a.used_bytes % 64, 0);
    for (size_t i = 0; i < 2 * MB; i += 1000)
        assert_int_equal(large[i], 0);
    memset(small, 1, 1);
    memset(large, 1, 2 * MB);
    assert_int_equal(next[0], 0);
    arena_close(&a);
    arena_close(&a); /* harmless */
}

static void test_exhausted(void **state)
{
    (void)state;
    struct arena a;
    open_arena(&a, 4 * MB);
    size_t reserved = a.reserved_bytes;
    assert_null(arena_alloc(&a, reserved + 1));
    assert_null(arena_alloc(&a, SIZE_MAX));
    assert_null(arena_alloc(&a, SIZE_MAX - 63));
    assert_int_equal(a.used_bytes, 0);
    assert_non_null(arena_alloc(&a, reserved - 64));
    assert_non_null(arena_alloc(&a, 64));
    assert_null(arena_alloc(&a, 1));
    assert_int_equal(a.used_bytes, reserved);
    arena_close(&a);
}

/* arena_bytes_for() is enough in every order of allocations. */
static void test_plan(void **state)
{
    (void)state;
    const size_t sizes[] = {1, 3 * MB, 100, 2 * MB, 64, 2 * MB - 1, 2 * MB + 1};
    size_t plan = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        plan += arena_bytes_for(sizes[i]);
    struct arena a;
    open_arena(&a, plan);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        assert_non_null(arena_alloc(&a, sizes[i]));
    assert_true(a.used_bytes <= plan);
    arena_close(&a);
}

static void check_residency(const struct arena *a, uint64_t expected, uint64_t tolerance)
{
    uint64_t resident, local;
    bool known;
    arena_residency(a, topo.places[0].node, &resident, &local, &known);
    assert_in_range(resident, expected > tolerance ? expected - tolerance : 0, expected + tolerance);
    if (known && topo.n_nodes == 1 && hwloc_get_nbobjs_by_type(topo.hwloc, HWLOC_OBJ_NUMANODE) == 1)
        assert_int_equal(local, resident);
    assert_true(local <= resident);
    if (known) { /* a node that is not there has nothing */
        arena_residency(a, 1000, &resident, &local, &known);
        assert_int_equal(local, 0);
    }
}

static void test_residency(void **state)
{
    (void)state;
    struct arena a;
    open_arena(&a, 64 * MB);
    check_residency(&a, 0, 0);
    uint8_t *bytes = arena_alloc(&a, 32 * MB);
    check_residency(&a, 0, 0);
    memset(bytes, 1, 16 * MB);
    check_residency(&a, 16 * MB, 0);
    memset(bytes, 1, 32 * MB);
    check_residency(&a, 32 * MB, 0);
    arena_close(&a);
}

/* Above 1 GiB pages are sampled. Little memory is touched. */
static void test_residency_of_large(void **state)
{
    (void)state;
    struct arena a;
    open_arena(&a, 3072 * MB);
    uint8_t *bytes = arena_alloc(&a, 3072 * MB);
    memset(bytes + 1000 * MB, 1, 32 * MB);
    check_residency(&a, 32 * MB, MB / 8);
    arena_close(&a);
}

static void test_errors(void **state)
{
    (void)state;
    struct arena a;
    struct err err = {0};
    bool bound;
    assert_int_equal(arena_open(&a, &topo, 0, SIZE_MAX, &bound, &err), ERR_SYSTEM);
    assert_int_equal(arena_open(&a, &topo, 0, SIZE_MAX / 4, &bound, &err), ERR_SYSTEM);
    assert_non_null(strstr(err.message, "cannot reserve"));
    assert_null(a.base);
    struct topo described;
    assert_int_equal(topo_open(&described, "numa:2 core:1 pu:1", 2, 0, &err), 0);
    assert_int_equal(arena_open(&a, &described, 1, MB, &bound, &err), ERR_USAGE);
    topo_close(&described);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alloc),
        cmocka_unit_test(test_exhausted),
        cmocka_unit_test(test_plan),
        cmocka_unit_test(test_residency),
        cmocka_unit_test(test_residency_of_large),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, open_topo, close_topo);
}

/* test_reduce.c - the all-reduce gives exactly the tree sum, for every number of ranks, again and again with
 * changing data and without any meeting but its own (a wrong use of the two buffers shows as a wrong sum). */
#include "hw/reduce.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

enum { ELEMENTS = 203, MAX_THREADS = 2 };

/* Values of all magnitudes, so that another order of adding gives other bits. */
static float partial(int rank, int round, int i)
{
    uint32_t h = (uint32_t)rank * 2654435761u ^ (uint32_t)round * 2246822519u ^ (uint32_t)i * 3266489917u;
    h ^= h >> 15;
    h *= 2246822519u;
    h ^= h >> 13;
    float scale[4] = {1.0f, 1e-3f, 1e4f, 1e-6f};
    return ((float)(h >> 8) / 8388608.0f - 1.0f) * scale[h & 3];
}

static float tree(int n_ranks, int round, int i)
{
    volatile float sums[MAX_RANKS]; /* one rounding per addition, whatever the compiler would like */
    for (int r = 0; r < n_ranks; r++)
        sums[r] = partial(r, round, i);
    for (int n = n_ranks; n > 1; n /= 2)
        for (int r = 0; r < n / 2; r++)
            sums[r] = sums[2 * r] + sums[2 * r + 1];
    return sums[0];
}

struct job {
    struct reduce *reduce;
    int rounds, first_round;
    bool own_part; /* each thread sums its part only */
    _Atomic int mistakes;
};

static void reduce_rounds(struct worker *w, void *arg)
{
    struct job *job = arg;
    float out[ELEMENTS];
    for (int round = job->first_round; round < job->first_round + job->rounds; round++) {
        float *mine = reduce_buffer(job->reduce, w);
        for (int i = w->thread; i < ELEMENTS; i += w->n_threads)
            mine[i] = partial(w->rank, round, i);
        if (reduce_meet(job->reduce, w, "test"))
            return;
        int begin = job->own_part ? ELEMENTS * w->thread / w->n_threads : 0;
        int end = job->own_part ? ELEMENTS * (w->thread + 1) / w->n_threads : ELEMENTS;
        reduce_sum(job->reduce, w, (size_t)begin, (size_t)(end - begin), out);
        for (int i = begin; i < end; i++) {
            float expected = tree(w->n_ranks, round, i);
            job->mistakes += memcmp(&out[i - begin], &expected, sizeof expected) != 0;
        }
    }
}

static void check(int ranks, int threads, int rounds)
{
    struct topo t;
    struct team *team;
    struct err err = {0};
    struct arena arenas[MAX_RANKS], *pointers[MAX_RANKS];
    assert_int_equal(topo_open(&t, NULL, ranks, threads, &err), 0);
    assert_int_equal(team_open(&team, &t, 30, &err), 0);
    for (int r = 0; r < ranks; r++) {
        bool bound;
        assert_int_equal(arena_open(&arenas[r], &t, r, reduce_arena_bytes(ELEMENTS), &bound, &err), 0);
        pointers[r] = &arenas[r];
    }
    struct job job = {.rounds = rounds};
    assert_int_equal(reduce_open(&job.reduce, ranks, threads, ELEMENTS, pointers, &err), 0);
    for (int step = 0; step < 3; step++) { /* an odd number of rounds: steps begin with either buffer */
        job.first_round = step * rounds;
        job.own_part = step == 1;
        if (team_run(team, reduce_rounds, &job, &err))
            fail_msg("%s", err.message);
    }
    assert_int_equal(job.mistakes, 0);
    for (int r = 0; r < ranks; r++) {
        struct rank_counters c;
        team_counters(team, r, &c);
        assert_int_equal(c.all_reduces, ranks > 1 ? 3 * rounds : 0);
        assert_true(arenas[r].used_bytes <= reduce_arena_bytes(ELEMENTS));
    }
    team_close(team);
    reduce_close(job.reduce);
    for (int r = 0; r < ranks; r++)
        arena_close(&arenas[r]);
    topo_close(&t);
}

static void test_reduce(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 8; ranks *= 2)
        for (int threads = 1; threads <= MAX_THREADS; threads++)
            check(ranks, threads, ranks * threads <= 2 ? 2001 : 301);
}

/* Buffers that each start a huge page after other things in the arena: still within the plan. */
static void test_plan_of_large_buffers(void **state)
{
    (void)state;
    const size_t elements = (3 << 20) / 4 + 5, before = 4096;
    struct topo t;
    struct err err = {0};
    struct arena a, *pointer = &a;
    struct reduce *r;
    bool bound;
    assert_int_equal(topo_open(&t, NULL, 1, 1, &err), 0);
    assert_int_equal(arena_open(&a, &t, 0, before + reduce_arena_bytes(elements), &bound, &err), 0);
    assert_non_null(arena_alloc(&a, before));
    assert_int_equal(reduce_open(&r, 1, 1, elements, &pointer, &err), 0);
    assert_true(a.used_bytes <= before + reduce_arena_bytes(elements));
    reduce_close(r);
    arena_close(&a);
    topo_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reduce),
        cmocka_unit_test(test_plan_of_large_buffers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

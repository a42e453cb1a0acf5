/* test_team.c - ranks run steps together, publish to each other, sleep when idle, and name who hangs.
 *
 * Data shared through barriers is plain memory on purpose: the thread sanitizer then proves the ordering. */
#include "hw/team.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 2 };

static double now_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

static struct team *open_team(int ranks, int threads, double stall_seconds)
{
    struct topo t;
    struct team *team = NULL;
    struct err err = {0};
    if (topo_open(&t, NULL, ranks, threads, &err) || team_open(&team, &t, stall_seconds, &err))
        fail_msg("%s", err.message);
    topo_close(&t); /* a team does not need it any more */
    return team;
}

static void run_ok(struct team *team, team_fn *fn, void *arg)
{
    struct err err = {0};
    if (team_run(team, fn, arg, &err))
        fail_msg("%s", err.message);
}

/* ---- meeting ---- */

struct board {
    int rounds;
    int values[MAX_RANKS][MAX_THREADS];
    _Atomic int mistakes;
};

static void meet_rounds(struct worker *w, void *arg)
{
    struct board *b = arg;
    for (int round = 1; round <= b->rounds; round++) {
        if (round % 20 == 0 && round / 20 % (w->n_ranks * w->n_threads) == w->rank * w->n_threads + w->thread)
            usleep(100); /* each is late now and then: nobody may miss it */
        b->values[w->rank][w->thread] = round;
        if (team_meet(w, "test, written"))
            return;
        for (int r = 0; r < w->n_ranks; r++)
            for (int t = 0; t < w->n_threads; t++)
                b->mistakes += b->values[r][t] != round;
        if (team_meet(w, "test, read"))
            return;
    }
}

static void barrier_rounds(struct worker *w, void *arg)
{
    struct board *b = arg;
    int rounds = b->rounds + w->rank; /* ranks need not agree */
    for (int round = 1; round <= rounds; round++) {
        b->values[w->rank][w->thread] = round;
        if (rank_barrier(w, "test, written"))
            return;
        for (int t = 0; t < w->n_threads; t++)
            b->mistakes += b->values[w->rank][t] != round;
        if (rank_barrier(w, "test, read"))
            return;
    }
}

static void test_meet(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 8; ranks *= 2) {
        for (int threads = 1; threads <= MAX_THREADS; threads++) {
            struct team *team = open_team(ranks, threads, 30);
            struct board b = {.rounds = ranks * threads <= 2 ? 20000 : 400};
            run_ok(team, meet_rounds, &b);
            run_ok(team, barrier_rounds, &b);
            run_ok(team, meet_rounds, &b);
            assert_int_equal(b.mistakes, 0);
            team_close(team);
        }
    }
}

struct tree_board {
    int values[40];
    _Atomic int mistakes;
};

static void tree_rounds(struct worker *w, void *arg)
{
    struct tree_board *b = arg;
    for (int round = 1; round <= w->n_threads; round++) {
        if (round == w->thread + 1)
            usleep(2000); /* each is late once: nobody may miss it */
        b->values[w->thread] = round;
        if (rank_barrier(w, "test, written"))
            return;
        for (int t = 0; t < w->n_threads; t++)
            b->mistakes += b->values[t] != round;
        if (team_meet(w, "test, read"))
            return;
    }
}

/* Enough threads for three levels of the tree. */
static void test_many_threads(void **state)
{
    (void)state;
    struct team *team = open_team(1, 40, 30);
    struct tree_board b = {0};
    run_ok(team, tree_rounds, &b);
    assert_int_equal(b.mistakes, 0);
    team_close(team);
}

static void count_step(struct worker *w, void *arg)
{
    int *ran = arg; /* (n_ranks, n_threads) */
    ran[w->rank * w->n_threads + w->thread]++;
}

static void test_many_steps(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 8; ranks *= 2) {
        struct team *team = open_team(ranks, 2, 30);
        int ran[MAX_RANKS * 2] = {0};
        for (int step = 1; step <= 1000; step++) {
            run_ok(team, count_step, ran);
            for (int i = 0; i < ranks * 2; i++)
                assert_int_equal(ran[i], step);
        }
        team_close(team);
    }
}

/* ---- the account ---- */

static void counting_step(struct worker *w, void *arg)
{
    (void)arg;
    worker_count(w, w->thread == 0, 2, 100u + (unsigned)w->rank);
    if (w->rank == 1)
        usleep(50000);
    if (team_meet(w, "test"))
        return;
    if (w->rank == 1)
        usleep(20000);
}

static void test_counters(void **state)
{
    (void)state;
    struct team *team = open_team(2, 2, 30);
    for (int i = 0; i < 3; i++)
        run_ok(team, counting_step, NULL);
    for (int rank = 0; rank < 2; rank++) {
        struct rank_counters c;
        team_counters(team, rank, &c);
        assert_int_equal(c.steps, 3);
        assert_int_equal(c.all_reduces, 3 * 2 * 2);
        assert_int_equal(c.weight_bytes_read, 3u * 2 * (100u + (unsigned)rank));
        uint64_t cpus = 0;
        for (int i = 0; i < 16; i++)
            cpus |= c.cpus_seen[i];
        assert_true(cpus != 0);
        if (rank == 0)
            assert_true(c.wait_ns > 100000000); /* 3 x 50 ms, less what other processes on the machine cost */
        else
            assert_true(c.busy_ns > 200000000);
    }
    team_counters_reset(team);
    for (int rank = 0; rank < 2; rank++) {
        struct rank_counters c, zero = {0};
        team_counters(team, rank, &c);
        assert_memory_equal(&c, &zero, sizeof c);
    }
    team_close(team);
}

static void test_pinned(void **state)
{
    (void)state;
    struct topo t;
    struct err err = {0};
    struct team *team = NULL;
    assert_int_equal(topo_open(&t, NULL, 2, 1, &err), 0);
    assert_int_equal(team_open(&team, &t, 30, &err), 0);
    struct board b = {.rounds = 100};
    run_ok(team, meet_rounds, &b);
    for (int rank = 0; rank < 2; rank++) {
        struct rank_counters c;
        team_counters(team, rank, &c);
        for (int cpu = 0; cpu < 1024; cpu++)
            assert_int_equal(c.cpus_seen[cpu / 64] >> (cpu % 64) & 1, cpu == t.places[rank].cpus[0]);
    }
    team_close(team);
    topo_close(&t);
}

static void test_idle_uses_no_cpu(void **state)
{
    (void)state;
    struct team *team = open_team(4, 2, 30);
    struct board b = {.rounds = 10};
    run_ok(team, meet_rounds, &b);
    usleep(50000); /* let them fall asleep */
    double before = cpu_seconds();
    usleep(400000);
    assert_true(cpu_seconds() - before < 0.02);
    team_close(team);
}

/* ---- stalls ---- */

static void three_meets(struct worker *w, void *arg)
{
    (void)arg;
    if (team_meet(w, "the first meeting") || team_meet(w, "the second meeting"))
        return;
    if (team_meet(w, "the third meeting"))
        return;
}

/* Runs `fn`, which must fail the team within the limit (and some time for a busy machine). */
static void run_stalled(struct team *team, team_fn *fn, void *arg, const char *who, const char *where)
{
    struct err err = {0};
    double start = now_seconds();
    assert_int_equal(team_run(team, fn, arg, &err), ERR_SYSTEM);
    double took = now_seconds() - start;
    assert_true(took > 0.25 && took < 5);
    if (!strstr(err.message, who) || !strstr(err.message, where))
        fail_msg("expected '%s' and '%s' in: %s", who, where, err.message);
    /* From then on the team gives the same error at once. */
    struct err again = {0};
    start = now_seconds();
    assert_int_equal(team_run(team, fn, arg, &again), ERR_SYSTEM);
    assert_true(now_seconds() - start < 0.2);
    assert_string_equal(again.message, err.message);
}

static void test_injected_stall(void **state)
{
    (void)state;
    for (int ranks = 2; ranks <= 8; ranks *= 4) {
        for (int threads = 1; threads <= 2; threads++) {
            struct team *team = open_team(ranks, threads, 0.3);
            run_ok(team, three_meets, NULL);
            team_inject_stall(team, 1);
            run_stalled(team, three_meets, NULL, "rank 1 made no progress for 0.3 s",
                        "waited for it at: the first meeting");
            double start = now_seconds();
            team_close(team);
            assert_true(now_seconds() - start < 2);
        }
    }
}

struct hang {
    int rank, thread; /* -1: all */
    _Atomic bool over;
    _Atomic int failed_meets;
};

static void hang_in_work(struct worker *w, void *arg)
{
    struct hang *h = arg;
    if (team_meet(w, "the first meeting"))
        return;
    if ((h->rank < 0 || h->rank == w->rank) && (h->thread < 0 || h->thread == w->thread))
        while (!h->over)
            usleep(1000);
    if (team_meet(w, "the second meeting"))
        h->failed_meets++;
}

static void test_hang_in_work(void **state)
{
    (void)state;
    const struct {
        int rank, thread;
        const char *who, *where;
    } cases[] = {
        {2, 0, "rank 2 made no progress", "the second meeting"},
        {0, 1, "rank 0 made no progress",
         "the second meeting"}, /* thread 0 of the rank waits for its thread 1 */
        {-1, -1, "rank 0 made no progress", "within a step"}, /* nobody is left to wait */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct team *team = open_team(4, 2, 0.3);
        struct hang h = {.rank = cases[i].rank, .thread = cases[i].thread};
        run_stalled(team, hang_in_work, &h, cases[i].who, cases[i].where);
        h.over = true; /* comes back after all: then it is joined */
        team_close(team);
        assert_int_equal(h.failed_meets, 8);
    }
}

/* A mistake in a program: rank 1 does not come to a meeting at all. */
static void skip_a_meeting(struct worker *w, void *arg)
{
    (void)arg;
    if (w->rank == 1)
        return;
    if (team_meet(w, "the lonely meeting"))
        return;
}

static void test_skipped_meeting(void **state)
{
    (void)state;
    struct team *team = open_team(2, 2, 0.3);
    run_stalled(team, skip_a_meeting, NULL, "rank 1 made no progress", "the lonely meeting");
    team_close(team);
}

static void long_work(struct worker *w, void *arg)
{
    (void)arg;
    if (w->rank == 0) {
        for (int i = 0; i < 60; i++) {
            usleep(20000);
            worker_progress(w);
        }
    }
    if (team_meet(w, "the end of long work"))
        return;
}

static void test_slow_is_not_stalled(void **state)
{
    (void)state;
    struct team *team = open_team(4, 1, 0.5);
    run_ok(team, long_work, NULL);
    team_close(team);
}

static void short_work(struct worker *w, void *arg)
{
    (void)arg;
    for (int i = 0; w->rank == 0 && i < 25; i++)
        usleep(20000); /* 0.5 s of running without a sign, where 1 s is allowed */
    if (team_meet(w, "the end of short work"))
        return;
}

/* A process that was stopped for longer than the limit must not blame anyone. */
static void test_stopped_process(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        struct topo t;
        struct team *team;
        if (topo_open(&t, NULL, 2, 1, NULL) || team_open(&team, &t, 1, NULL))
            _exit(2);
        _exit(team_run(team, short_work, NULL, NULL) ? 1 : 0);
    }
    assert_true(child > 0);
    usleep(200000);
    kill(child, SIGSTOP);
    usleep(1500000);
    kill(child, SIGCONT);
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_described_machine(void **state)
{
    (void)state;
    struct topo t;
    struct team *team = NULL;
    struct err err = {0};
    assert_int_equal(topo_open(&t, "numa:2 core:2 pu:1", 2, 0, &err), 0);
    assert_int_equal(team_open(&team, &t, 10, &err), ERR_USAGE);
    assert_null(team);
    topo_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stopped_process), /* first: forks, so no thread may be left hanging before it */
        cmocka_unit_test(test_meet),
        cmocka_unit_test(test_many_threads),
        cmocka_unit_test(test_many_steps),
        cmocka_unit_test(test_counters),
        cmocka_unit_test(test_pinned),
        cmocka_unit_test(test_idle_uses_no_cpu),
        cmocka_unit_test(test_injected_stall),
        cmocka_unit_test(test_hang_in_work),
        cmocka_unit_test(test_skipped_meeting),
        cmocka_unit_test(test_slow_is_not_stalled),
        cmocka_unit_test(test_described_machine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

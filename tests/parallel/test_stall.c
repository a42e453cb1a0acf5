/* test_stall.c - a rank that hangs ends the run: the request fails with an error that names the rank, later
 * requests fail at once with the same error, and closing returns. */
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N_PROMPT = 5 };
static const int32_t prompt[N_PROMPT] = {1, 2, 3, 4, 5};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void stall(int tp, int threads, int rank)
{
    struct yoke_options o = {.model = "synth:tiny:q4_0",
                             .tp = tp,
                             .threads = threads,
                             .ctx = 128,
                             .max_requests = 2,
                             .stall_seconds = 0.5,
                             .inject_stall = rank};
    struct yoke *y = open_model(&o);
    struct yoke_request_options request = plain_request(prompt, N_PROMPT, 50);
    double start = now();
    struct yoke_request *second = submit(y, &request); /* in the same step as the first */
    struct answer a = ask(y, &request), b = answer_collect(y, second, -1);
    double waited = now() - start;
    assert_int_equal(a.finish, YOKE_FINISH_ERROR);
    assert_int_equal(a.error.code, YOKE_ESYSTEM);
    assert_true(a.n_tokens < 50);

    char name[32];
    snprintf(name, sizeof name, "rank %d", rank - 1);
    if (!strstr(a.error.message, name) || strchr(a.error.message, '\n'))
        fail_msg("expected one line that names %s, got \"%s\"", name, a.error.message);
    if (tp > 1)
        assert_non_null(strstr(a.error.message, "wait")); /* what the others waited for */
    assert_int_equal(b.finish, YOKE_FINISH_ERROR);
    assert_string_equal(b.error.message, a.error.message);
    assert_true(waited >= 0.4 && waited < 20);

    start = now();
    struct answer later = ask(y, &request);
    assert_int_equal(later.finish, YOKE_FINISH_ERROR);
    assert_string_equal(later.error.message, a.error.message);
    assert_true(now() - start < 5); /* at once, give or take a busy machine */
    yoke_close(y);
    assert_true(now() - start < 10);
    answer_free(&a);
    answer_free(&b);
    answer_free(&later);
}

static void test_two_ranks(void **state)
{
    stall(2, 1, 2);
}
static void test_first_of_four_ranks(void **state)
{
    stall(4, 1, 1);
}
static void test_threads(void **state)
{
    stall(2, 2, 1);
}

/* A slow machine is no stall: the limit counts from the last sign of life, not from the beginning of the
 * step. */
static void test_healthy_run_outlives_limit(void **state)
{
    struct yoke_options o = {
        .model = "synth:tiny:q4_0", .tp = 8, .threads = 1, .ctx = 2048, .stall_seconds = TEST_SLOW ? 5 : 2};
    struct yoke *y = open_model(&o);
    struct yoke_request_options request = plain_request(prompt, N_PROMPT, TEST_SLOW ? 20 : 400);
    struct answer a = ask(y, &request);
    assert_int_equal(a.finish, YOKE_FINISH_LENGTH);
    answer_free(&a);
    yoke_close(y);
}

static void test_unknown_rank_is_refused(void **state)
{
    struct yoke_options o = {.model = "synth:tiny:q4_0", .tp = 2, .ctx = 128, .inject_stall = 3};
    struct yoke *y;
    struct yoke_error error;
    assert_int_equal(yoke_open(&y, &o, &error), YOKE_EUSAGE);
    assert_null(y);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_ranks),
        cmocka_unit_test(test_first_of_four_ranks),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_healthy_run_outlives_limit),
        cmocka_unit_test(test_unknown_rank_is_refused),
    };
    return cmocka_run_group_tests_name("stall", tests, NULL, NULL);
}

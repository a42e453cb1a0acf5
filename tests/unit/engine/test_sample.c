/* test_sample.c - sampling: greedy ties, what each option keeps, frequencies of what is drawn, and that a
 * draw depends on (seed, position) alone. */
#include "support.h"

#include "engine/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = 8, DRAWS = 20000 };

static struct candidate scratch[4096];

static const struct yoke_sampling plain = {.temperature = 1, .top_p = 1, .repeat_penalty = 1};

static int32_t draw(const struct yoke_sampling *s, const float *logits, uint64_t position)
{
    return sample(s, logits, N, NULL, 0, position, scratch);
}

/* counts[i]: how often i was drawn at positions 0 .. DRAWS - 1. */
static void count(const struct yoke_sampling *s, const float *logits, int counts[N])
{
    memset(counts, 0, N * sizeof *counts);
    for (uint64_t p = 0; p < DRAWS; p++) {
        int32_t id = draw(s, logits, p);
        assert_in_range(id, 0, N - 1);
        counts[id]++;
    }
}

static void test_greedy(void **state)
{
    struct yoke_sampling s = plain;
    s.temperature = 0;
    const float rising[N] = {0, 1, 2, 3, 4, 5, 6, 7}, ties[N] = {-1, 3, 2, 3, 3, -5, 3, 0}, flat[N] = {0},
                low[N] = {-1e30f, -3e38f, -1e30f, -2e30f, -INFINITY, -1e30f, -1e31f, -1e32f};
    assert_int_equal(draw(&s, rising, 0), 7);
    assert_int_equal(draw(&s, ties, 0), 1); /* the lowest id of equal logits */
    assert_int_equal(draw(&s, flat, 5), 0);
    assert_int_equal(draw(&s, low, 0), 0);
}

static void test_frequencies(void **state)
{
    const float logits[N] = {0, 1, -1, 2, 0.5f, -2, 1.5f, -30};
    static const double temperatures[] = {0.5, 1, 2};
    for (size_t t = 0; t < 3; t++) {
        struct yoke_sampling s = plain;
        s.temperature = temperatures[t];
        int counts[N];
        double total = 0;
        for (int i = 0; i < N; i++)
            total += exp((double)logits[i] / s.temperature);
        count(&s, logits, counts);
        for (int i = 0; i < N; i++) {
            double p = exp((double)logits[i] / s.temperature) / total;
            double sigma = sqrt(p * (1 - p) / DRAWS);
            assert_true(fabs((double)counts[i] / DRAWS - p) < 5 * sigma + 1e-9);
        }
    }
}

static void test_top_k(void **state)
{
    const float logits[N] = {1, 3, 2, 3, 0, 3, -1, 2};
    struct yoke_sampling s = plain;
    int counts[N];
    s.top_k = 1;
    count(&s, logits, counts);
    assert_int_equal(counts[1], DRAWS);
    s.top_k = 2; /* ties again to the lowest ids */
    count(&s, logits, counts);
    assert_int_equal(counts[1] + counts[3], DRAWS);
    assert_true(counts[1] > DRAWS / 3 && counts[3] > DRAWS / 3);
    s.top_k = 5;
    count(&s, logits, counts);
    assert_int_equal(counts[0] + counts[4] + counts[6], 0);
    assert_true(counts[2] && counts[7]);
    s.top_k = 1000; /* more than there are: all */
    count(&s, logits, counts);
    assert_true(counts[6] > 0);
}

static void test_top_p(void **state)
{
    /* probabilities 0.5, 0.25, 0.125, 0.125 of ids 4, 2, 0, 1 */
    float logits[N];
    for (int i = 0; i < N; i++)
        logits[i] = -1000;
    logits[4] = (float)log(0.5);
    logits[2] = (float)log(0.25);
    logits[0] = logits[1] = (float)log(0.125);
    struct yoke_sampling s = plain;
    int counts[N];
    s.top_p = 0.4;
    count(&s, logits, counts);
    assert_int_equal(counts[4], DRAWS);
    s.top_p = 0.6; /* the least set that reaches it */
    count(&s, logits, counts);
    assert_int_equal(counts[4] + counts[2], DRAWS);
    assert_true(fabs((double)counts[4] / DRAWS - 2.0 / 3) < 0.02);
    s.top_p = 0.8;
    count(&s, logits, counts);
    assert_int_equal(counts[1], 0);
    assert_true(counts[0] > 0);
    s.top_p = 0.95;
    count(&s, logits, counts);
    assert_true(counts[1] > 0);
}

static void test_min_p(void **state)
{
    const float logits[N] = {0, -1, -2, -3, -4, -5, -6, -7};
    struct yoke_sampling s = plain;
    int counts[N];
    s.min_p = 0.1; /* e^-2 = 0.135, e^-3 = 0.0498 */
    count(&s, logits, counts);
    assert_true(counts[2] > 0);
    assert_int_equal(counts[3] + counts[4] + counts[5] + counts[6] + counts[7], 0);
    s.min_p = 1;
    count(&s, logits, counts);
    assert_int_equal(counts[0], DRAWS);
}

static void test_repeat_penalty(void **state)
{
    struct yoke_sampling s = plain;
    s.temperature = 0;
    s.repeat_penalty = 2;
    const float positive[N] = {3, 5, 2, 1, 0, 0, 0, 0}, negative[N] = {-3, -2, -9, -9, -9, -9, -9, -9};
    const int32_t once[] = {1}, twice[] = {1, 1, 1}, both[] = {1, 0};
    assert_int_equal(sample(&s, positive, N, once, 1, 1, scratch), 0);  /* 5 / 2 < 3 */
    assert_int_equal(sample(&s, positive, N, twice, 3, 1, scratch), 0); /* each token once: 2.5 > 2 */
    assert_int_equal(sample(&s, positive, N, both, 2, 1, scratch), 1);
    assert_int_equal(sample(&s, negative, N, once, 1, 1, scratch), 0); /* -2 * 2 < -3 */
    /* Only the last 64 tokens count. */
    int32_t history[65] = {1};
    for (int i = 1; i < 65; i++)
        history[i] = 7;
    assert_int_equal(sample(&s, positive, N, history, 65, 65, scratch), 1);
    assert_int_equal(sample(&s, positive, N, history, 64, 64, scratch), 0);
}

static void test_logits_are_not_changed(void **state)
{
    const float before[N] = {3, 5, 2, 1, 0, -1, 4, 2};
    float logits[N];
    memcpy(logits, before, sizeof logits);
    struct yoke_sampling s;
    yoke_sampling_defaults(&s);
    s.repeat_penalty = 1.5;
    const int32_t history[] = {1, 2, 3};
    sample(&s, logits, N, history, 3, 3, scratch);
    assert_memory_equal(logits, before, sizeof logits);
}

static void test_seed_and_position(void **state)
{
    const float flat[N] = {0};
    struct yoke_sampling a = plain, b = plain;
    b.seed = 1;
    int same = 0, repeated = 0;
    for (uint64_t p = 0; p < 1000; p++) {
        int32_t id = draw(&a, flat, p);
        assert_int_equal(draw(&a, flat, p), id);
        same += draw(&b, flat, p) == id;
        repeated += draw(&a, flat, p + 1) == id;
    }
    /* As often as chance has it: 125 of 1000, sigma 10. */
    assert_in_range(same, 70, 180);
    assert_in_range(repeated, 70, 180);
}

/* Any logits of the float range give a token of the vocabulary. */
static void test_extremes(void **state)
{
    static const float rows[][N] = {
        {3e38f, -3e38f, 3e38f, 0, 0, 0, 0, 0},
        {-3e38f, -3e38f, -3e38f, -3e38f, -3e38f, -3e38f, -3e38f, -3e38f},
        {1e-45f, 0, -1e-45f, 0, 0, 0, 0, 0},
    };
    static const double temperatures[] = {0, 1e-9, 1, 100};
    for (size_t r = 0; r < 3; r++)
        for (size_t t = 0; t < 4; t++) {
            struct yoke_sampling s = {
                .temperature = temperatures[t], .top_p = 1e-9, .min_p = 1, .repeat_penalty = 100};
            const int32_t history[] = {0, 0, 5};
            assert_in_range(sample(&s, rows[r], N, history, 3, 3, scratch), 0, N - 1);
        }
    const float one[1] = {-5};
    assert_int_equal(sample(&plain, one, 1, NULL, 0, 0, scratch), 0);
}

static void test_faults(void **state)
{
    struct yoke_sampling s;
    yoke_sampling_defaults(&s);
    assert_null(sampling_fault(&s));
    assert_null(sampling_fault(&plain));
    static const double bad[] = {-1, NAN, INFINITY, 1000};
    for (size_t i = 0; i < 4; i++) {
        s = plain, s.temperature = bad[i];
        assert_non_null(sampling_fault(&s));
        s = plain, s.top_p = bad[i];
        assert_non_null(sampling_fault(&s));
        s = plain, s.min_p = bad[i];
        assert_non_null(sampling_fault(&s));
        s = plain, s.repeat_penalty = bad[i];
        assert_non_null(sampling_fault(&s));
    }
    s = plain, s.top_p = 0;
    assert_non_null(sampling_fault(&s));
    s = plain, s.repeat_penalty = 0;
    assert_non_null(sampling_fault(&s));
    s = plain, s.top_k = -1;
    assert_non_null(sampling_fault(&s));
}

static void test_hash(void **state)
{
    float a[13], b[13];
    for (int i = 0; i < 13; i++)
        a[i] = b[i] = (float)i;
    assert_true(hash_logits(a, 13) == hash_logits(b, 13));
    for (int i = 0; i < 13; i++) {
        b[i] = nextafterf(b[i], 100);
        assert_true(hash_logits(a, 13) != hash_logits(b, 13));
        b[i] = a[i];
    }
    b[0] = -0.0f; /* bits, not values */
    assert_true(hash_logits(a, 13) != hash_logits(b, 13));
    assert_true(hash_logits(a, 12) != hash_logits(a, 13));
    b[0] = a[4], b[4] = a[0];
    assert_true(hash_logits(a, 13) != hash_logits(b, 13));
    assert_true(hash_combine(1, 2) != hash_combine(2, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_top_k),
        cmocka_unit_test(test_top_p),
        cmocka_unit_test(test_min_p),
        cmocka_unit_test(test_repeat_penalty),
        cmocka_unit_test(test_logits_are_not_changed),
        cmocka_unit_test(test_seed_and_position),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_hash),
    };
    return cmocka_run_group_tests_name("sample", tests, NULL, NULL);
}

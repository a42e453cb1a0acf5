/* test_memory.c - what is predicted before loading is what is used, within 5 %; and what does not fit is
 * refused with the sums and with settings that really fit. */
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t resident_now(void)
{
    unsigned long total = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%lu %lu", &total, &resident), 2);
    fclose(f);
    return (uint64_t)resident * 4096;
}

/* One prompt that fills a whole step: everything that a run can touch was touched. */
static void fill_step(struct yoke *y, int rows)
{
    int32_t *ids = random_prompt((size_t)rows, yoke_get_info(y)->n_vocab, 1);
    struct yoke_request_options o = plain_request(ids, (size_t)rows, 1);
    o.prompt_logits = false;
    struct answer a = ask(y, &o);
    assert_int_equal(a.finish, YOKE_FINISH_LENGTH);
    answer_free(&a);
    free(ids);
}

static void predicted_is_used(struct yoke_options o)
{
    uint64_t before = resident_now(), predicted = 0;
    struct yoke *y = open_model(&o);
    const struct yoke_info *info = yoke_get_info(y);
    fill_step(y, o.chunk);
    struct yoke_rank_stats stats[8];
    int n = yoke_get_rank_stats(y, stats, 8);
    assert_int_equal(n, o.tp);
    for (int rank = 0; rank < n; rank++) {
        double want = (double)info->predicted_bytes[rank], used = (double)stats[rank].resident_bytes;
        predicted += info->predicted_bytes[rank];
        if (fabs(used / want - 1) > 0.05)
            fail_msg("%s --tp %d --ctx %d: rank %d was to use %.1f MB and uses %.1f MB", o.model, o.tp, o.ctx,
                     rank, want / 1e6, used / 1e6);
    }
    /* The whole process, too: nothing large lies beside the ranks' memory, no page of a file stays. */
    double grown = (double)(resident_now() - before);
    if (!TEST_SANITIZED && grown > 1.05 * (double)predicted + 16e6)
        fail_msg("%s --tp %d: %.1f MB predicted, the process grew by %.1f MB", o.model, o.tp,
                 (double)predicted / 1e6, grown / 1e6);
    yoke_close(y);
}

static void test_predicted_is_used(void **state)
{
    predicted_is_used(
        (struct yoke_options){.model = "synth:small:q4_0", .tp = 1, .threads = 1, .ctx = 512, .chunk = 128});
    predicted_is_used(
        (struct yoke_options){.model = "synth:small:q4_0", .tp = 4, .threads = 1, .ctx = 2048, .chunk = 64});
    predicted_is_used((struct yoke_options){
        .model = "synth:small:q6_k", .tp = 2, .threads = 2, .ctx = 1024, .chunk = 256, .kv = "q8"});
    predicted_is_used((struct yoke_options){
        .model = "synth:small:bf16", .tp = 8, .threads = 1, .ctx = 256, .chunk = 32, .kv = "f32"});
}

/* ---- refusal ---- */

/* The value after `option` in the message's suggestions, or NULL. */
static const char *suggestion(const char *message, const char *option)
{
    static char value[32];
    const char *fit = strstr(message, "would fit:"), *at = fit ? strstr(fit, option) : NULL;
    if (!at || sscanf(at + strlen(option), " %31s", value) != 1)
        return NULL;
    return value;
}

static struct yoke_error refused(const struct yoke_options *o)
{
    struct yoke *y;
    struct yoke_error error = {0};
    assert_int_equal(yoke_open(&y, o, &error), YOKE_ESYSTEM);
    assert_null(y);
    static const char *const words[] = {"does not fit", "weights", "KV cache", "activations", "GiB"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strstr(error.message, words[i]))
            fail_msg("no \"%s\" in \"%s\"", words[i], error.message);
    assert_null(strchr(error.message, '\n'));
    return error;
}

static void expect_opens(const struct yoke_options *o)
{
    struct yoke *y = open_model(o);
    fill_step(y, 4);
    yoke_close(y);
}

/* Every suggestion by itself, as the user would try it. */
static void test_suggestions_fit(void **state)
{
    struct yoke_options o = {.model = "synth:tiny:q4_0", .tp = 1, .threads = 1, .ctx = 4096, .chunk = 64};
    struct yoke *y = open_model(&o);
    uint64_t needed = yoke_get_info(y)->predicted_bytes[0];
    yoke_close(y);
    o.memory_per_rank = needed;
    expect_opens(&o); /* the limit itself is allowed */
    o.memory_per_rank = needed / 100 * 85;
    struct yoke_error error = refused(&o);
    struct yoke_options changed = o;
    const char *tp = suggestion(error.message, "--tp"), *value;
    if (!tp)
        fail_msg("no --tp in \"%s\"", error.message);
    changed.tp = atoi(tp);
    assert_true(changed.tp == 2 || changed.tp == 4 || changed.tp == 8);
    expect_opens(&changed);

    changed = o;
    value = suggestion(error.message, "--ctx");
    if (!value)
        fail_msg("no --ctx in \"%s\"", error.message);
    changed.ctx = atoi(value);
    assert_true(changed.ctx > 0 && changed.ctx < o.ctx);
    expect_opens(&changed);

    changed = o;
    value = suggestion(error.message, "--kv");
    if (!value)
        fail_msg("no --kv in \"%s\"", error.message);
    changed.kv = value;
    expect_opens(&changed);
}

/* Where no context is short enough, only more ranks help. */
static void test_weights_need_ranks(void **state)
{
    struct yoke_options o = {.model = "synth:small:q4_0",
                             .tp = 1,
                             .threads = 1,
                             .ctx = 256,
                             .chunk = 16,
                             .memory_per_rank = 100000000};
    struct yoke_error error = refused(&o);
    assert_null(suggestion(error.message, "--ctx"));
    const char *tp = suggestion(error.message, "--tp");
    if (!tp)
        fail_msg("no --tp in \"%s\"", error.message);
    o.tp = atoi(tp);
    expect_opens(&o);
    o.tp /= 2; /* the least that fits was named */
    refused(&o);
}

static void test_nothing_fits(void **state)
{
    struct yoke_options o = {
        .model = "synth:small:q4_0", .tp = 1, .threads = 1, .ctx = 256, .memory_per_rank = 1000000};
    struct yoke_error error = refused(&o);
    assert_null(strstr(error.message, "would fit:"));
    assert_non_null(strstr(error.message, "fewer bits"));
}

/* Refused by the sums alone: at once, and without touching memory. */
static void test_refusal_is_cheap(void **state)
{
    uint64_t before = yoke_peak_rss();
    struct yoke_options o = {
        .model = "synth:llama-3.1-405b:q4_0", .tp = 8, .threads = 1, .memory_per_rank = 1 << 30};
    refused(&o);
    assert_true(yoke_peak_rss() - before < (uint64_t)100 << 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusal_is_cheap), /* first: it looks at the peak */
        cmocka_unit_test(test_predicted_is_used),  cmocka_unit_test(test_suggestions_fit),
        cmocka_unit_test(test_weights_need_ranks), cmocka_unit_test(test_nothing_fits),
    };
    return cmocka_run_group_tests_name("memory", tests, NULL, NULL);
}

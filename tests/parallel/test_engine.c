/* test_engine.c - the engine as its clients see it: cancelling, closing, slow clients, stop texts, limits,
 * sampling, idling, and the account of what every rank did. */
#include "support.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { CONTEXT = 512, GENERATED = TEST_SLOW ? 60 : 120, QUEUED_AT_MOST = 70 };
static const char text[] = "The old man looked at the sea and";

static char *demo;
static struct yoke *y;
static int32_t *prompt;
static size_t n_prompt;

static struct yoke_options demo_options(void)
{
    return (struct yoke_options){.model = demo, .tp = 2, .threads = 1, .ctx = CONTEXT, .max_requests = 2};
}

static int open_demo(void **state)
{
    demo = path_of_source("models/demo");
    struct yoke_options o = demo_options();
    y = open_model(&o);
    struct yoke_error error;
    return yoke_tokenize(y, text, strlen(text), true, false, &prompt, &n_prompt, &error);
}

static int close_demo(void **state)
{
    yoke_close(y);
    free(prompt);
    free(demo);
    return 0;
}

static struct yoke_request_options request_of(int max_tokens)
{
    struct yoke_request_options o = plain_request(prompt, n_prompt, max_tokens);
    o.prompt_logits = false;
    return o;
}

static void sleep_ms(int ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

/* ---- cancelling and closing ---- */

static void test_cancel(void **state)
{
    struct yoke_request_options o = request_of(400);
    struct answer a = answer_collect(y, submit(y, &o), 3);
    assert_int_equal(a.finish, YOKE_FINISH_CANCELED);
    /* What is queued still arrives, but no more than the queue holds. */
    assert_in_range(a.n_tokens, 3, 3 + QUEUED_AT_MOST);
    answer_free(&a);
}

static void test_cancel_before_first_step(void **state)
{
    struct yoke_request_options o = request_of(400);
    struct yoke_request *running[2] = {submit(y, &o), submit(y, &o)}, *waiting = submit(y, &o);
    yoke_cancel(waiting);
    struct answer a = answer_collect(y, waiting, -1);
    assert_int_equal(a.finish, YOKE_FINISH_CANCELED);
    assert_int_equal(a.n_tokens, 0);
    answer_free(&a);
    yoke_request_close(running[0]);
    yoke_request_close(running[1]);
}

static void test_close_during_generation(void **state)
{
    struct yoke_options o = demo_options();
    struct yoke *own = open_model(&o);
    struct yoke_request_options request = request_of(400);
    struct yoke_request *a = submit(own, &request), *b = submit(own, &request), *c = submit(own, &request);
    struct yoke_event e;
    yoke_next(a, &e);
    assert_int_equal(e.kind, YOKE_EVENT_TOKEN);
    yoke_request_close(a); /* in mid-run */
    yoke_request_close(c); /* perhaps still waiting */
    yoke_request_close(b);
    yoke_close(own);
    yoke_request_close(NULL);
    yoke_close(NULL);
}

static void test_close_with_logits_waiting(void **state)
{
    struct yoke_request_options request = plain_request(prompt, n_prompt, 10);
    struct yoke_request *r = submit(y, &request);
    struct yoke_event e;
    yoke_next(r, &e);
    assert_int_equal(e.kind, YOKE_EVENT_LOGITS);
    yoke_request_close(r);
    struct answer a = ask(y, &request); /* the engine goes on */
    assert_int_equal(a.finish, YOKE_FINISH_LENGTH);
    answer_free(&a);
}

/* ---- slow clients ---- */

static void test_slow_client(void **state)
{
    struct yoke_request_options o = request_of(GENERATED);
    struct answer alone = ask(y, &o);
    struct yoke_request *slow = submit(y, &o);
    for (int i = 0; i < 3; i++) {
        struct answer other = ask(y, &o); /* takes its events, goes on */
        assert_same_answer(&other, &alone, "beside a slow client");
        answer_free(&other);
    }
    struct yoke_request_stats stats;
    yoke_request_get_stats(slow, &stats);
    assert_in_range(stats.generated_tokens, 1, QUEUED_AT_MOST);
    struct answer a = answer_collect(y, slow, -1);
    assert_same_answer(&a, &alone, "a slow client");
    answer_free(&a);
    answer_free(&alone);
}

/* ---- stop texts ---- */

/* Bytes of the generated text before the end of token i. */
static size_t text_until(const struct answer *a, int i)
{
    char *part = NULL;
    size_t size = 0;
    assert_int_equal(yoke_detokenize(y, a->tokens, (size_t)i, false, &part, &size, NULL), 0);
    free(part);
    return size;
}

static void expect_stop(const struct answer *whole, const char *stop)
{
    const char *found = strstr(whole->text, stop), *const stops[] = {"never said \x01", stop};
    assert_non_null(found);
    struct yoke_request_options o = request_of(40);
    o.stop = stops;
    o.n_stop = 2;
    struct answer a = ask(y, &o);
    assert_int_equal(a.finish, YOKE_FINISH_STOP);
    assert_int_equal(strlen(a.text), found - whole->text);
    assert_memory_equal(a.text, whole->text, strlen(a.text));
    assert_true(a.n_tokens < 40);
    answer_free(&a);
}

static void test_stop_text_across_tokens(void **state)
{
    struct yoke_request_options o = request_of(40);
    struct answer whole = ask(y, &o);
    assert_int_equal(whole.finish, YOKE_FINISH_LENGTH);
    for (int i = 3; i < 20; i += 5) {
        /* two bytes of one token, two of the next */
        char stop[5] = {0};
        size_t at = text_until(&whole, i);
        assert_true(at > 2 && strlen(whole.text) > at + 2);
        memcpy(stop, whole.text + at - 2, 4);
        expect_stop(&whole, stop);
    }
    /* One that begins and never ends holds text back, but loses none. */
    const char *const unfinished[] = {".\x02", "e\x02", " \x02"};
    o.stop = unfinished;
    o.n_stop = 3;
    struct answer a = ask(y, &o);
    assert_same_answer(&a, &whole, "stop texts that do not occur");
    assert_string_equal(a.text, whole.text);
    answer_free(&a);
    answer_free(&whole);
}

/* ---- limits ---- */

static void expect_refusal(const struct yoke_request_options *o, int code, const char *words)
{
    struct yoke_request *r;
    struct yoke_error error = {0};
    assert_int_equal(yoke_submit(y, o, &r, &error), code);
    assert_null(r);
    assert_int_equal(error.code, code);
    if (!strstr(error.message, words) || strchr(error.message, '\n'))
        fail_msg("expected one line with \"%s\", got \"%s\"", words, error.message);
    assert_int_equal(yoke_submit(y, o, &r, NULL), code);
}

static void test_no_tokens_wanted(void **state)
{
    struct yoke_request_options o = plain_request(prompt, n_prompt, 0);
    struct answer a = ask(y, &o);
    assert_int_equal(a.finish, YOKE_FINISH_LENGTH);
    assert_int_equal(a.n_tokens, 0);
    assert_int_equal(a.n_prompt, n_prompt);
    assert_int_equal(a.stats.prompt_tokens, n_prompt);
    answer_free(&a);
}

static void test_context_is_the_limit(void **state)
{
    int32_t *ids = random_prompt(CONTEXT + 1, yoke_get_info(y)->n_vocab, 1);
    struct yoke_request_options o = plain_request(ids, CONTEXT, 0);
    struct answer a = ask(y, &o);
    assert_int_equal(a.finish, YOKE_FINISH_LENGTH);
    assert_int_equal(a.n_prompt, CONTEXT);
    answer_free(&a);
    o.n_tokens = CONTEXT - 1;
    o.max_tokens = 1;
    a = ask(y, &o);
    assert_int_equal(a.n_tokens, 1);
    answer_free(&a);
    o.max_tokens = 2;
    expect_refusal(&o, YOKE_EINPUT, "context");
    o.max_tokens = INT_MAX;
    expect_refusal(&o, YOKE_EINPUT, "context");
    o.n_tokens = CONTEXT + 1;
    o.max_tokens = 0;
    expect_refusal(&o, YOKE_EINPUT, "context");
    free(ids);
}

static void test_bad_requests(void **state)
{
    int32_t ids[2] = {5, 0}, n_vocab = yoke_get_info(y)->n_vocab;
    const int32_t bad[] = {-1, n_vocab, INT32_MIN, INT32_MAX};
    struct yoke_request_options o = plain_request(ids, 2, 1);
    for (size_t i = 0; i < 4; i++) {
        ids[1] = bad[i];
        expect_refusal(&o, YOKE_EINPUT, "vocabulary");
    }
    o.n_tokens = 0;
    expect_refusal(&o, YOKE_EINPUT, "empty");
    o.n_tokens = 1;
    o.max_tokens = -1;
    expect_refusal(&o, YOKE_EUSAGE, "negative");
    o = plain_request(ids, 1, 1);
    o.sampling.temperature = NAN;
    expect_refusal(&o, YOKE_EUSAGE, "temperature");
    o = plain_request(ids, 1, 1);
    o.sampling.top_p = 0;
    expect_refusal(&o, YOKE_EUSAGE, "top-p");
    o = plain_request(ids, 1, 1);
    o.stop = (const char *const[]){""};
    o.n_stop = 1;
    expect_refusal(&o, YOKE_EUSAGE, "stop");
}

static void test_bad_options(void **state)
{
    static const struct {
        struct yoke_options options;
        int code;
    } bad[] = {
        {{.model = NULL}, YOKE_EUSAGE},
        {{.model = "synth:tiny:q9_9"}, YOKE_EUSAGE},
        {{.model = "synth:giant"}, YOKE_EUSAGE},
        {{.model = "synth:tiny", .tp = 3}, YOKE_EUSAGE},
        {{.model = "synth:tiny", .tp = -1}, YOKE_EUSAGE},
        {{.model = "synth:tiny", .tp = 16}, YOKE_EUSAGE},
        {{.model = "synth:tiny", .threads = -1}, YOKE_EUSAGE},
        {{.model = "synth:tiny", .isa = "sse9"}, YOKE_EUSAGE},
        {{.model = "synth:tiny", .device = "tpu"}, YOKE_EUSAGE},
        {{.model = "synth:tiny", .kv = "f7"}, YOKE_EUSAGE},
        {{.model = "synth:tiny", .ctx = -5}, YOKE_EUSAGE},
        {{.model = "synth:tiny", .ctx = INT_MAX}, YOKE_EUSAGE},
        {{.model = "synth:tiny", .chunk = -5}, YOKE_EUSAGE},
        {{.model = "synth:tiny", .chunk = INT_MAX}, YOKE_EUSAGE},
        {{.model = "synth:tiny", .max_requests = INT_MAX}, YOKE_EUSAGE},
        {{.model = "no/such/model"}, YOKE_EINPUT},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct yoke *none = NULL;
        struct yoke_error error = {0};
        int rc = yoke_open(&none, &bad[i].options, &error);
        if (rc != bad[i].code || none || !*error.message || strchr(error.message, '\n'))
            fail_msg("case %zu: status %d, \"%s\"", i, rc, error.message);
    }
}

/* ---- sampling ---- */

static struct answer sampled(struct yoke *engine, uint64_t seed)
{
    struct yoke_request_options o = request_of(40);
    yoke_sampling_defaults(&o.sampling);
    o.sampling.seed = seed;
    return ask(engine, &o);
}

static void test_seed_decides(void **state)
{
    struct yoke_options options = demo_options();
    options.tp = 4;
    struct yoke *other = open_model(&options);
    struct answer a = sampled(y, 1), again = sampled(y, 1), split = sampled(other, 1), b = sampled(y, 2);
    assert_same_answer(&again, &a, "the same seed");
    assert_same_answer(&split, &a, "the same seed over other ranks");
    assert_string_equal(again.text, a.text);
    assert_string_not_equal(b.text, a.text);
    answer_free(&a);
    answer_free(&again);
    answer_free(&split);
    answer_free(&b);
    yoke_close(other);
}

/* ---- idling ---- */

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

static void test_idle_uses_no_cpu(void **state)
{
    struct yoke_request_options o = request_of(5);
    struct answer a = ask(y, &o);
    answer_free(&a);
    sleep_ms(200); /* bounded spinning ends */
    double before = cpu_seconds();
    sleep_ms(1000);
    assert_true(cpu_seconds() - before < 0.02);

    /* Waiting for a client that takes nothing is idling, too, but for a look at cancellations now and then.
     */
    struct yoke_request_options request = request_of(400);
    struct yoke_request *r = submit(y, &request);
    struct yoke_request_stats stats = {0};
    for (size_t last = SIZE_MAX; stats.generated_tokens != last;) {
        last = stats.generated_tokens;
        sleep_ms(TEST_SANITIZED ? 1000 : 300);
        yoke_request_get_stats(r, &stats);
    }
    before = cpu_seconds();
    sleep_ms(1000);
    assert_true(cpu_seconds() - before < (TEST_SANITIZED ? 0.1 : 0.05));
    yoke_request_close(r);
}

/* ---- participation ---- */

static void participation(const char *model, int tp, int threads)
{
    struct yoke_options o = {.model = model, .tp = tp, .threads = threads, .ctx = 256, .chunk = 16};
    struct yoke *own = open_model(&o);
    const struct yoke_info *info = yoke_get_info(own);
    assert_int_equal(info->tp, tp);
    assert_int_equal(info->threads, threads);
    struct yoke_rank_stats before[8], after[8];
    assert_int_equal(yoke_get_rank_stats(own, before, 8), tp);
    int32_t *ids = random_prompt(1, info->n_vocab, 5);
    struct yoke_request_options request = plain_request(ids, 1, 10);
    request.prompt_logits = false;
    struct answer a = ask(own, &request); /* ten steps of one row */
    assert_int_equal(a.n_tokens, 10);
    assert_int_equal(a.stats.decode_steps, 9);
    assert_int_equal(yoke_get_rank_stats(own, after, 8), tp);
    uint64_t bytes = 0;
    for (int rank = 0; rank < tp; rank++) {
        const struct yoke_rank_stats *s = &after[rank];
        assert_int_equal(s->rank, rank);
        assert_int_equal(s->steps - before[rank].steps, 10);
        /* two in a layer and the embedding's; a rank alone has nothing to reduce */
        assert_int_equal(s->all_reduces - before[rank].all_reduces,
                         tp > 1 ? 10 * (2 * info->n_layers + 1) : 0);
        assert_true(s->weight_bytes_read > before[rank].weight_bytes_read);
        assert_true(s->busy_ms > before[rank].busy_ms);
        assert_true(s->wait_ms >= 0);
        assert_true(s->n_cpus >= 1);
        assert_true(s->resident_bytes > 0 && s->local_bytes <= s->resident_bytes);
        bytes += s->weight_bytes_read - before[rank].weight_bytes_read;
    }
    assert_int_equal(bytes, 10 * info->weight_bytes);
    answer_free(&a);
    free(ids);
    yoke_close(own);
}

static void test_participation(void **state)
{
    char *stories = path_of_source("tests/data/stories260k.gguf");
    participation("synth:tiny:q4_0", 1, 1);
    participation("synth:tiny:q6_k", 2, 2);
    participation("synth:tiny:bf16", 4, 1);
    participation(demo, 8, 1);
    participation(stories, 8, 1);
    free(stories);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_cancel_before_first_step),
        cmocka_unit_test(test_close_during_generation),
        cmocka_unit_test(test_close_with_logits_waiting),
        cmocka_unit_test(test_slow_client),
        cmocka_unit_test(test_stop_text_across_tokens),
        cmocka_unit_test(test_no_tokens_wanted),
        cmocka_unit_test(test_context_is_the_limit),
        cmocka_unit_test(test_bad_requests),
        cmocka_unit_test(test_bad_options),
        cmocka_unit_test(test_seed_decides),
        cmocka_unit_test(test_idle_uses_no_cpu),
        cmocka_unit_test(test_participation),
    };
    return cmocka_run_group_tests_name("engine", tests, open_demo, close_demo);
}

/* test_one_answer.c - "One answer" (ARCHITECTURE.md): the logits of a prompt and of what follows are the same
 * bits for every number of ranks and threads, prefill chunk, instruction set, and company in the batch.
 * Compared with memcmp; a tolerance has no place here. */
#include "support.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct setting {
    int tp, threads, chunk;
    const char *isa, *kv;
};

/* The prompt spans two pages of the KV cache and every chunk size leaves a rest. */
enum { LONG_PROMPT = TEST_SLOW ? 37 : 149, REF_PROMPT = 9, GENERATED = 5, CONTEXT = 256 };

static const int ranks[] = {1, 2, 4, 8};
static const int chunks[] = {512, 1, 7, 64};
#define COUNT(a) (sizeof(a) / sizeof *(a))

static struct answer answer_of(const char *model, struct setting s, size_t n_prompt)
{
    struct yoke_options o = {.model = model,
                             .tp = s.tp,
                             .threads = s.threads,
                             .chunk = s.chunk,
                             .isa = s.isa,
                             .kv = s.kv,
                             .ctx = CONTEXT};
    struct yoke *y = open_model(&o);
    int32_t *prompt = random_prompt(n_prompt, yoke_get_info(y)->n_vocab, 7);
    struct yoke_request_options request = plain_request(prompt, n_prompt, GENERATED);
    struct answer a = ask(y, &request);
    assert_int_equal(a.finish, YOKE_FINISH_LENGTH);
    assert_int_equal(a.n_prompt, n_prompt);
    assert_int_equal(a.n_tokens, GENERATED);
    free(prompt);
    yoke_close(y);
    return a;
}

static void expect(const char *model, struct setting s, size_t n_prompt, const struct answer *expected)
{
    char name[256];
    snprintf(name, sizeof name, "%s --tp %d --threads %d --chunk %d --isa %s --kv %s", model, s.tp, s.threads,
             s.chunk, s.isa ? s.isa : "auto", s.kv ? s.kv : "auto");
    struct answer a = answer_of(model, s, n_prompt);
    assert_same_answer(&a, expected, name);
    answer_free(&a);
}

static const struct setting baseline = {.tp = 1, .threads = 1, .chunk = 512};

/* ---- ranks x threads x chunks ---- */

static void cross_all(const char *model, const char *kv)
{
    struct setting s = baseline;
    s.kv = kv;
    struct answer expected = answer_of(model, s, LONG_PROMPT);
    for (size_t t = 0; t < COUNT(ranks); t++) {
        for (s.threads = 1; s.threads <= 2; s.threads++) {
            for (size_t c = 0; c < COUNT(chunks); c++) {
                s.tp = ranks[t];
                s.chunk = chunks[c];
                bool is_baseline = s.tp == 1 && s.threads == 1 && s.chunk == 512;
                bool shrunk = TEST_SLOW ? s.tp % 4 || s.chunk != 7 || s.threads != 2
                                        : TEST_SANITIZED && (t + c + (size_t)s.threads) % 3;
                if (!is_baseline && !shrunk)
                    expect(model, s, LONG_PROMPT, &expected);
            }
        }
    }
    answer_free(&expected);
}

/* A few settings in which every value of every dimension appears. */
static void cross_some(const char *model, const char *kv)
{
    static const struct setting settings[] = {
        {.tp = 1, .threads = 2, .chunk = 7},   {.tp = 2, .threads = 1, .chunk = 64},
        {.tp = 4, .threads = 2, .chunk = 512}, {.tp = 8, .threads = 1, .chunk = 7},
        {.tp = 1, .threads = 1, .chunk = 1},   {.tp = 8, .threads = 2, .chunk = 1},
    };
    struct setting s = baseline;
    s.kv = kv;
    struct answer expected = answer_of(model, s, LONG_PROMPT);
    for (size_t i = 0; i < (TEST_SLOW ? 2 : COUNT(settings)); i++) {
        s = settings[i];
        s.kv = kv;
        expect(model, s, LONG_PROMPT, &expected);
    }
    answer_free(&expected);
}

/* ---- instruction sets ---- */

struct isa_job {
    const char *model;
    size_t n_prompt;
    const struct answer *expected;
};

static void visit_isa(const char *isa, bool best, void *arg)
{
    const struct isa_job *job = arg;
    /* A rank boundary and a chunk boundary for each, and the plain case. */
    static const struct setting settings[] = {{.tp = 1, .threads = 1, .chunk = 512},
                                              {.tp = 4, .threads = 1, .chunk = 7}};
    for (size_t i = 0; i < COUNT(settings); i++) {
        struct setting s = settings[i];
        s.isa = isa;
        if (!best || i > 0)
            expect(job->model, s, job->n_prompt, job->expected);
    }
}

static void every_isa(const char *model, size_t n_prompt)
{
    struct answer expected = answer_of(model, baseline, n_prompt);
    struct isa_job job = {model, n_prompt, &expected};
    for_each_isa(visit_isa, &job);
    answer_free(&expected);
}

/* ---- the models ---- */

static void test_demo(void **state)
{
    char *model = path_of_source("models/demo");
    cross_all(model, NULL);
    cross_some(model, "f32");
    cross_some(model, "q8");
    every_isa(model, REF_PROMPT);
    free(model);
}

static void test_stories260k(void **state)
{
    char *model = path_of_source("tests/data/stories260k.gguf");
    cross_all(model, NULL);
    cross_some(model, "f16");
    cross_some(model, "q8");
    every_isa(model, LONG_PROMPT);
    free(model);
}

static void test_synthetic(void **state)
{
    static const char *const formats[] = {"q4_0", "q4_k", "q6_k", "q8_0", "mlx4",
                                          "mlx6", "mlx8", "bf16", "f16",  "f32"};
    for (size_t i = 0; i < COUNT(formats); i++) {
        if (TEST_SLOW && i % 3)
            continue;
        char model[64];
        snprintf(model, sizeof model, "synth:tiny:%s", formats[i]);
        cross_some(model, NULL);
        if (!TEST_SLOW)
            every_isa(model, REF_PROMPT);
    }
}

/* Sizes that divide by nothing, heads that no number of ranks shares evenly. */
static const struct checkpoint_shape odd_shapes[] = {
    {2, 72, 6, 3, 20, 100, 301, false, DTYPE_F32, NULL},
    {2, 72, 6, 2, 20, 100, 301, true, DTYPE_BF16, NULL},
    {3, 40, 5, 1, 8, 52, 17, true, DTYPE_F16, NULL},
};

static void test_odd_checkpoints(void **state)
{
    for (size_t i = 0; i < COUNT(odd_shapes); i++) {
        char *model = make_directory();
        checkpoint_write(model, &odd_shapes[i]);
        cross_all(model, NULL);
        every_isa(model, LONG_PROMPT);
        remove_directory(model);
    }
}

/* Head size and group share only part of their factors (48 and 32), 7 groups of FFN channels over 8 slabs,
 * fewer KV heads than ranks; every width and group that a checkpoint may have. */
static void test_mlx_checkpoints(void **state)
{
    static const struct {
        int bits, group;
    } kinds[] = {{3, 64}, {4, 32}, {5, 32}, {6, 64}, {8, 32}, {4, 128}, {6, 128}, {8, 128}};
    char *directory = make_directory(), *source = path_join(directory, "float");
    for (size_t i = 0; i < COUNT(kinds); i++) {
        int unit = kinds[i].group;
        struct checkpoint_shape shape = {2,        3 * unit, 8,     2,          unit == 128 ? 64 : 48,
                                         7 * unit, 301,      i % 2, DTYPE_BF16, NULL};
        char command[4200], *model = path_join(directory, "quantised");
        snprintf(command, sizeof command, "rm -rf '%s' '%s' && mkdir '%s'", source, model, source);
        assert_int_equal(system(command), 0);
        checkpoint_write(source, &shape);
        checkpoint_quantize(source, model, kinds[i].bits, unit);
        if (!TEST_SLOW || i == 0)
            cross_some(model, NULL);
        if (!TEST_SLOW)
            every_isa(model, LONG_PROMPT / 3);
        free(model);
    }
    free(source);
    remove_directory(directory);
}

/* ---- company in the batch ---- */

enum { N_CLIENTS = 6 };

struct client {
    pthread_t thread;
    struct yoke *y;
    int32_t *prompt;
    struct yoke_request_options options;
    int cancel_after;
    struct answer alone, together;
};

/* One client thread, as a server's would be; submits by itself so that requests also arrive in mid-run. */
static void *client_main(void *arg)
{
    struct client *c = arg;
    struct yoke_request *r;
    if (!yoke_submit(c->y, &c->options, &r, NULL))
        c->together = answer_collect(c->y, r, c->cancel_after);
    return NULL;
}

static void batch(const char *model, int tp, int chunk, bool cancel_some)
{
    static const int lengths[N_CLIENTS] = {61, 1, 140, 17, 2, 90},
                     generated[N_CLIENTS] = {30, 40, 8, 0, 50, 12};
    struct client clients[N_CLIENTS] = {0};
    struct yoke_options o = {.model = model,
                             .tp = tp,
                             .threads = 1,
                             .chunk = chunk,
                             .ctx = CONTEXT,
                             .max_requests = N_CLIENTS - 1};
    struct yoke *y = open_model(&o);
    for (int i = 0; i < N_CLIENTS; i++) {
        struct client *c = &clients[i];
        size_t n = (size_t)(TEST_SLOW ? 1 + lengths[i] / 4 : lengths[i]);
        c->y = y;
        c->prompt = random_prompt(n, yoke_get_info(y)->n_vocab, (uint32_t)i);
        c->options = plain_request(c->prompt, n, generated[i]);
        c->options.prompt_logits = i % 2 == 0; /* the others' prompts go through without */
        c->alone = ask(y, &c->options);
        c->cancel_after = cancel_some && i % 3 == 1 ? 2 : -1;
    }
    for (int i = 0; i < N_CLIENTS; i++)
        assert_int_equal(pthread_create(&clients[i].thread, NULL, client_main, &clients[i]), 0);
    for (int i = 0; i < N_CLIENTS; i++)
        pthread_join(clients[i].thread, NULL);
    for (int i = 0; i < N_CLIENTS; i++) {
        struct client *c = &clients[i];
        char name[128];
        snprintf(name, sizeof name, "--tp %d --chunk %d, request %d among %d", tp, chunk, i, N_CLIENTS);
        if (c->cancel_after < 0) {
            assert_same_answer(&c->together, &c->alone, name);
        } else {
            assert_true(c->together.n_tokens >= c->cancel_after);
            assert_memory_equal(c->together.tokens, c->alone.tokens,
                                (size_t)c->together.n_tokens * sizeof(int32_t));
        }
        answer_free(&c->alone);
        answer_free(&c->together);
        free(c->prompt);
    }
    yoke_close(y);
}

static void test_batches(void **state)
{
    char *demo = path_of_source("models/demo"), *stories = path_of_source("tests/data/stories260k.gguf");
    batch(demo, 2, 64, false);
    batch(demo, 4, 7, true);
    batch(stories, 2, 16, true);
    if (!TEST_SLOW) {
        batch(demo, 1, 512, true);
        batch(stories, 8, 512, false);
        batch("synth:tiny:q4_k", 2, 100, false);
        batch("synth:tiny:bf16", 1, 33, false);
    }
    free(demo);
    free(stories);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_demo),
        cmocka_unit_test(test_stories260k),
        cmocka_unit_test(test_odd_checkpoints),
        cmocka_unit_test(test_mlx_checkpoints),
        cmocka_unit_test(test_synthetic),
        cmocka_unit_test(test_batches),
    };
    return cmocka_run_group_tests_name("one answer", tests, NULL, NULL);
}

/* test_golden.c - right by others' numbers: logits, tokens and text of Hugging Face transformers (novella-23m
 * and the small models of golden-hf) and of llama2.c (stories260K). Here, and only here, with tolerances. */
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static float *read_floats(const char *path, size_t n)
{
    size_t size;
    char *bytes = read_file(path, &size);
    assert_int_equal(size, n * sizeof(float));
    return (float *)(void *)bytes;
}

/* max |a - b| / max |b| of every row. */
static void assert_rows_close(const float *a, const float *b, int rows, int cols, double limit)
{
    for (int r = 0; r < rows; r++) {
        double difference = 0, scale = 0;
        for (int i = 0; i < cols; i++) {
            size_t at = (size_t)r * (size_t)cols + (size_t)i;
            difference = fmax(difference, fabs((double)a[at] - (double)b[at]));
            scale = fmax(scale, fabs((double)b[at]));
            assert_true(isfinite(a[at]));
        }
        if (difference > limit * scale)
            fail_msg("position %d: logits differ by %g of the largest, limit %g", r, difference / scale,
                     limit);
    }
}

static void assert_close(double value, double expected, double limit, const char *what, int position)
{
    if (!(fabs(value - expected) <= limit))
        fail_msg("%s of position %d is %.9g, expected %.9g within %g", what, position, value, expected,
                 limit);
}

static double number_at(const json_t *object, const char *key, size_t i)
{
    const json_t *value = json_array_get(json_object_get(object, key), i);
    assert_true(json_is_number(value));
    return json_number_value(value);
}

/* ---- novella-23m ---- */

static int32_t *prompt_ids(struct yoke *y, const json_t *prompt, size_t *n)
{
    const char *text = json_string_value(json_object_get(prompt, "text"));
    int32_t *ids, *expected;
    size_t n_expected = json_ids(json_object_get(prompt, "ids"), &expected);
    assert_int_equal(yoke_tokenize(y, text, strlen(text), true, false, &ids, n, NULL), 0);
    assert_int_equal(*n, n_expected);
    assert_memory_equal(ids, expected, n_expected * sizeof *ids);
    free(expected);
    return ids;
}

static void mean_and_deviation(const float *x, int n, double *mean, double *deviation)
{
    double sum = 0, squares = 0;
    for (int i = 0; i < n; i++)
        sum += (double)x[i];
    *mean = sum / n;
    for (int i = 0; i < n; i++)
        squares += ((double)x[i] - *mean) * ((double)x[i] - *mean);
    *deviation = sqrt(squares / n);
}

/* limit: relative, of the logits' statistics. */
static void check_logits(const struct answer *a, const json_t *prompt, double limit)
{
    for (int i = 0; i < a->n_prompt; i++) {
        double mean, deviation, expected = number_at(prompt, "logit_std", (size_t)i);
        mean_and_deviation(a->logits + (size_t)i * (size_t)a->n_vocab, a->n_vocab, &mean, &deviation);
        assert_close(deviation, expected, limit * expected, "standard deviation", i);
        expected = number_at(prompt, "logit_mean", (size_t)i);
        assert_close(mean, expected, limit * fmax(fabs(expected), 0.1), "mean", i);
    }
    int32_t *top;
    size_t n = json_ids(json_object_get(prompt, "last_top_ids"), &top);
    const float *last = a->logits + (size_t)(a->n_prompt - 1) * (size_t)a->n_vocab;
    for (size_t k = 0; k < n; k++) {
        double expected = number_at(prompt, "last_top_logits", k);
        assert_close((double)last[top[k]], expected, limit * fabs(expected), "one of the largest logits",
                     a->n_prompt - 1);
        for (int i = 0; i < a->n_vocab && limit < 0.01; i++) /* no other token lies among the first */
            if (i != top[k] && last[i] > last[top[k]]) {
                bool before = false;
                for (size_t j = 0; j < k; j++)
                    before = before || top[j] == i;
                assert_true(before);
            }
    }
    free(top);
}

static void check_novella(const char *model, const char *kv)
{
    char *golden = path_of_data("novella-23m/golden.json");
    struct yoke_options o = {.model = model, .kv = kv, .tp = 2, .threads = 1, .ctx = 512};
    struct yoke *y = open_model(&o);
    json_t *root = read_json(golden), *prompts = json_object_get(root, "prompts");
    assert_int_equal(json_array_size(prompts), 4);
    for (size_t p = 0; p < json_array_size(prompts); p++) {
        const json_t *prompt = json_array_get(prompts, p);
        int32_t *expected;
        size_t n, n_greedy = json_ids(json_object_get(prompt, "greedy_ids"), &expected);
        assert_int_equal(n_greedy, 64);
        int32_t *ids = prompt_ids(y, prompt, &n);
        struct yoke_request_options request = plain_request(ids, n, (int)n_greedy);
        struct answer a = ask(y, &request);
        check_logits(&a, prompt, 1e-3);
        assert_int_equal(a.n_tokens, n_greedy);
        assert_memory_equal(a.tokens, expected, n_greedy * sizeof *expected);
        assert_string_equal(a.text, json_string_value(json_object_get(prompt, "greedy_text")));
        answer_free(&a);
        free(ids);
        free(expected);
    }
    json_decref(root);
    yoke_close(y);
    free(golden);
}

static void test_novella_f32_cache(void **state)
{
    char *model = path_of_shared("novella-23m");
    check_novella(model, "f32");
    free(model);
}

static void test_novella_as_users_run_it(void **state)
{
    char *model = path_of_shared("novella-23m");
    check_novella(model, NULL);
    free(model);
}

/* The 4-bit demo is another model than its original, but a near one: same ids, same most likely token of most
 * positions, logits alike. */
static void test_demo_is_near_its_original(void **state)
{
    char *golden = path_of_data("novella-23m/golden.json"), *model = path_of_source("models/demo");
    struct yoke_options o = {.model = model, .tp = 1, .threads = 1, .ctx = 512};
    struct yoke *y = open_model(&o);
    json_t *root = read_json(golden), *prompts = json_object_get(root, "prompts");
    int same_top = 0, n_prompts = (int)json_array_size(prompts);
    for (size_t p = 0; p < json_array_size(prompts); p++) {
        const json_t *prompt = json_array_get(prompts, p);
        size_t n;
        int32_t *ids = prompt_ids(y, prompt, &n);
        struct yoke_request_options request = plain_request(ids, n, 1);
        struct answer a = ask(y, &request);
        int32_t top = (int32_t)number_at(prompt, "greedy_ids", 0);
        same_top += a.tokens[0] == top;
        check_logits(&a, prompt, 0.25);
        answer_free(&a);
        free(ids);
    }
    assert_true(same_top * 2 >= n_prompts);
    json_decref(root);
    yoke_close(y);
    free(model);
    free(golden);
}

/* ---- stories260K ---- */

static struct yoke *open_stories(char **model)
{
    *model = path_of_source("tests/data/stories260k.gguf");
    struct yoke_options o = {.model = *model, .tp = 2, .threads = 1, .ctx = 512};
    return open_model(&o);
}

static void test_stories_text(void **state)
{
    char *expected_path = path_of_data("stories260k/reference/expected_stdout.n200.txt"), *model;
    char *expected = read_file(expected_path, NULL);
    struct yoke *y = open_stories(&model);
    const int32_t begin = 1;
    struct yoke_request_options request = plain_request(&begin, 1, 200);
    request.ignore_eos = false;
    struct answer a = ask(y, &request);
    assert_int_equal(a.n_tokens, 200);
    assert_string_equal(a.text, expected);
    answer_free(&a);
    yoke_close(y);
    free(model);
    free(expected);
    free(expected_path);
}

static void test_stories_logits(void **state)
{
    enum { N = 256, VOCAB = 512 };
    char *tokens_path = path_of_data("stories260k/reference/greedy256.tokens.txt");
    char *logits_path = path_of_data("stories260k/reference/greedy256.logits.f32"), *model;
    char *tokens = read_file(tokens_path, NULL), *at = tokens;
    float *expected = read_floats(logits_path, (size_t)N * VOCAB);
    int32_t ids[N];
    for (int i = 0; i < N; i++)
        ids[i] = (int32_t)strtol(at, &at, 10);
    assert_int_equal(ids[0], 1);
    struct yoke *y = open_stories(&model);
    struct yoke_request_options request = plain_request(ids, N, 0);
    struct answer a = ask(y, &request);
    assert_int_equal(a.n_prompt, N);
    assert_int_equal(a.n_vocab, VOCAB);
    assert_rows_close(a.logits, expected, N, VOCAB, 1e-4);
    answer_free(&a);
    yoke_close(y);
    free(model);
    free(expected);
    free(tokens);
    free(logits_path);
    free(tokens_path);
}

/* ---- golden-hf ---- */

static void check_hf(const char *name)
{
    char folder[128];
    snprintf(folder, sizeof folder, "golden-hf/%s", name);
    char *model = path_of_data(folder), *ids_path = path_join(model, "ids.json");
    char *logits_path = path_join(model, "logits.f32"), *greedy_path = path_join(model, "greedy.json");
    json_t *ids_json = json_load_file(ids_path, JSON_DISABLE_EOF_CHECK, NULL);
    json_t *greedy_json = json_load_file(greedy_path, JSON_DISABLE_EOF_CHECK, NULL);
    int32_t *ids, *greedy;
    size_t n = json_ids(ids_json, &ids), n_greedy = json_ids(greedy_json, &greedy);
    assert_int_equal(n_greedy, 24);
    struct yoke_options o = {.model = model, .tp = 2, .threads = 1};
    struct yoke *y = open_model(&o);
    assert_false(yoke_get_info(y)->has_tokenizer);
    struct yoke_request_options request = plain_request(ids, n, (int)n_greedy);
    struct answer a = ask(y, &request);
    float *expected = read_floats(logits_path, n * (size_t)a.n_vocab);
    assert_int_equal(a.n_prompt, n);
    assert_rows_close(a.logits, expected, a.n_prompt, a.n_vocab, 1e-4);
    assert_int_equal(a.n_tokens, n_greedy);
    assert_memory_equal(a.tokens, greedy, n_greedy * sizeof *greedy);
    answer_free(&a);
    yoke_close(y);
    json_decref(ids_json);
    json_decref(greedy_json);
    free(expected);
    free(ids);
    free(greedy);
    free(greedy_path);
    free(logits_path);
    free(ids_path);
    free(model);
}

static void test_hf_llama(void **state)
{
    check_hf("llama-a");
}
static void test_hf_llama31(void **state)
{
    check_hf("llama31-a");
}
static void test_hf_linear(void **state)
{
    check_hf("llama-linear-a");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_novella_f32_cache),
        cmocka_unit_test(test_novella_as_users_run_it),
        cmocka_unit_test(test_demo_is_near_its_original),
        cmocka_unit_test(test_stories_text),
        cmocka_unit_test(test_stories_logits),
        cmocka_unit_test(test_hf_llama),
        cmocka_unit_test(test_hf_llama31),
        cmocka_unit_test(test_hf_linear),
    };
    return cmocka_run_group_tests_name("golden", tests, NULL, NULL);
}

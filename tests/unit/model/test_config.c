/* test_config.c - config.json as it comes: the spellings of several writers, what is missing, what is absurd,
 * what is not supported. Wrong ones give one line that names the file and the key. */
#include "support.h"

#include "model/source.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *directory;

static int make_checkpoint(void **state)
{
    static const struct checkpoint_shape shape = {1, 32, 4, 2, 8, 64, 40, true, DTYPE_F32, NULL};
    directory = make_directory();
    checkpoint_write(directory, &shape);
    return 0;
}

static int drop_checkpoint(void **state)
{
    remove_directory(directory);
    return 0;
}

/* The members that fit the checkpoint above; each test overrides or removes some. */
static json_t *base_config(void)
{
    return json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:b}", "model_type", "llama",
                     "num_hidden_layers", 1, "hidden_size", 32, "num_attention_heads", 4,
                     "num_key_value_heads", 2, "head_dim", 8, "intermediate_size", 64, "vocab_size", 40,
                     "max_position_embeddings", 512, "rms_norm_eps", 1e-5, "tie_word_embeddings", 1);
}

/* overrides: a JSON object; a member that is "REMOVE" is taken away. */
static int open_with(const char *overrides, struct source *s, struct err *err)
{
    json_t *config = base_config(), *change = json_loads(overrides, 0, NULL), *value;
    const char *key;
    assert_non_null(change);
    json_object_update(config, change);
    json_object_foreach(change, key, value)
    {
        if (json_is_string(value) && !strcmp(json_string_value(value), "REMOVE"))
            json_object_del(config, key);
    }
    char *text = json_dumps(config, 0);
    write_text(directory, "config.json", text);
    free(text);
    json_decref(config);
    json_decref(change);
    return source_open(s, directory, err);
}

static void expect_config(const char *overrides, struct config *out)
{
    struct source s;
    struct err err = {0};
    if (open_with(overrides, &s, &err))
        fail_msg("%s: %s", overrides, err.message);
    *out = s.config;
    source_close(&s);
}

static void expect_fault(const char *overrides, const char *words)
{
    struct source s;
    struct err err = {0};
    int rc = open_with(overrides, &s, &err);
    if (!rc) {
        source_close(&s);
        fail_msg("%s was accepted", overrides);
    }
    assert_int_equal(rc, ERR_INPUT);
    if (!strstr(err.message, "config.json") || !strstr(err.message, words) || strchr(err.message, '\n'))
        fail_msg("%s: expected one line with config.json and \"%s\", got \"%s\"", overrides, words,
                 err.message);
}

static void test_plain(void **state)
{
    struct config c;
    expect_config("{}", &c);
    assert_string_equal(c.family->name, "llama");
    assert_int_equal(c.n_layers, 1);
    assert_int_equal(c.dim, 32);
    assert_int_equal(c.n_heads, 4);
    assert_int_equal(c.n_kv_heads, 2);
    assert_int_equal(c.head_dim, 8);
    assert_int_equal(c.ffn_dim, 64);
    assert_int_equal(c.n_vocab, 40);
    assert_int_equal(c.max_ctx, 512);
    assert_true(c.norm_eps == 1e-5f);
    assert_true(c.tied_embeddings);
    assert_int_equal(c.rope_scaling, ROPE_PLAIN);
    assert_true(c.rope_theta == 10000);
    assert_false(c.rope_rows_interleaved);
    assert_int_equal(c.quant_bits, 0);
}

static void test_defaults_and_nulls(void **state)
{
    struct config c;
    expect_config(
        "{\"head_dim\": null, \"rms_norm_eps\": null, \"rope_scaling\": null, \"rope_parameters\": null}",
        &c);
    assert_int_equal(c.head_dim, 8); /* hidden_size / num_attention_heads */
    expect_config("{\"head_dim\": \"REMOVE\"}", &c);
    assert_int_equal(c.head_dim, 8);
    expect_config("{\"tie_word_embeddings\": false}", &c); /* the file has no head: the table serves */
    assert_true(c.tied_embeddings);
}

static void test_rope_spellings(void **state)
{
    struct config c;
    expect_config("{\"rope_theta\": 500000}", &c);
    assert_true(c.rope_theta == 500000);
    expect_config("{\"rope_parameters\": {\"rope_theta\": 250000.0, \"rope_type\": \"default\"}}", &c);
    assert_true(c.rope_theta == 250000);
    assert_int_equal(c.rope_scaling, ROPE_PLAIN);
    expect_config("{\"rope_theta\": 10000, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 4}}", &c);
    assert_int_equal(c.rope_scaling, ROPE_LINEAR);
    assert_true(c.rope_factor == 4);
    expect_config(
        "{\"rope_parameters\": {\"rope_theta\": 500000.0, \"rope_type\": \"llama3\", \"factor\": 8.0, "
        "\"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}}",
        &c);
    assert_int_equal(c.rope_scaling, ROPE_LLAMA3);
    assert_true(c.rope_factor == 8 && c.rope_original_ctx == 8192);
    expect_config(
        "{\"rope_theta\": 500000, \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 32, "
        "\"low_freq_factor\": 1, \"high_freq_factor\": 4, \"original_max_position_embeddings\": 8192}}",
        &c);
    assert_true(c.rope_theta == 500000 && c.rope_factor == 32);
}

static void test_missing(void **state)
{
    static const char *const keys[] = {"model_type",          "num_hidden_layers", "hidden_size",
                                       "num_attention_heads", "intermediate_size", "vocab_size"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        char change[128];
        snprintf(change, sizeof change, "{\"%s\": \"REMOVE\"}", keys[i]);
        expect_fault(change, keys[i]);
    }
}

static void test_absurd_numbers(void **state)
{
    static const char *const keys[] = {
        "num_hidden_layers",   "hidden_size", "num_attention_heads",     "intermediate_size",
        "num_key_value_heads", "head_dim",    "max_position_embeddings", "vocab_size"};
    static const char *const values[] = {
        "0", "-1", "9223372036854775807", "2147483648", "1e30", "\"12\"", "[1]", "{}", "true", "1.5"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        for (size_t k = 0; k < sizeof values / sizeof *values; k++) {
            char change[128];
            snprintf(change, sizeof change, "{\"%s\": %s}", keys[i], values[k]);
            expect_fault(change, keys[i]);
        }
}

static void test_impossible_relations(void **state)
{
    expect_fault("{\"num_key_value_heads\": 3}", "KV heads");
    expect_fault("{\"num_key_value_heads\": 8}", "KV heads");
    expect_fault("{\"head_dim\": 7}", "odd");
    expect_fault("{\"rms_norm_eps\": -1}", "epsilon");
    expect_fault("{\"rms_norm_eps\": \"small\"}", "rms_norm_eps");
    expect_fault("{\"rope_theta\": 0}", "theta");
    expect_fault("{\"rope_theta\": -10000}", "theta");
    expect_fault("{\"rope_theta\": \"big\"}", "rope_theta");
    expect_fault("{\"rope_parameters\": [1, 2]}", "rope");
    expect_fault("{\"rope_parameters\": {\"rope_type\": 3}}", "rope_type");
    expect_fault("{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0}}", "factor");
    expect_fault("{\"rope_scaling\": {\"type\": \"linear\", \"factor\": -2}}", "factor");
    expect_fault("{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, "
                 "\"high_freq_factor\": 1}}",
                 "low_freq_factor");
    expect_fault("{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, "
                 "\"original_max_position_embeddings\": 0}}",
                 "original_max_position_embeddings");
    expect_fault("{\"tie_word_embeddings\": \"yes\"}", "tie_word_embeddings");
}

/* What would change the arithmetic is refused by name, never ignored. */
static void test_unsupported(void **state)
{
    expect_fault("{\"model_type\": \"gpt_neox\"}", "gpt_neox");
    expect_fault("{\"model_type\": 3}", "model_type");
    expect_fault("{\"attention_bias\": true}", "attention_bias");
    expect_fault("{\"mlp_bias\": true}", "mlp_bias");
    expect_fault("{\"hidden_act\": \"gelu\"}", "hidden_act");
    expect_fault("{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4}}", "yarn");
    expect_fault("{\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 4}}", "dynamic");
    expect_fault("{\"rope_parameters\": {\"rope_type\": \"default\", \"partial_rotary_factor\": 0.5}}",
                 "partial_rotary_factor");
    expect_fault("{\"partial_rotary_factor\": 0.5}", "partial_rotary_factor");
    expect_fault("{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4}}", "gptq");
    expect_fault("{\"quantization\": {\"bits\": 4, \"group_size\": 32, \"mode\": \"mxfp4\"}}", "mxfp4");
    expect_fault("{\"quantization\": {\"bits\": 99, \"group_size\": 64}}", "bits");
    expect_fault("{\"quantization\": {\"bits\": 4, \"group_size\": 0}}", "group_size");
    expect_fault("{\"quantization\": \"4bit\"}", "quantization");
}

static void test_not_a_config(void **state)
{
    static const char *const texts[] = {
        "", "{", "[]", "3", "null", "{\"a\": \"\xff\"}", "{\"model_type\": \"llama\""};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct source s;
        struct err err = {0};
        write_text(directory, "config.json", texts[i]);
        assert_int_equal(source_open(&s, directory, &err), ERR_INPUT);
        if (!strstr(err.message, "config.json") || strchr(err.message, '\n'))
            fail_msg("\"%s\": %s", texts[i], err.message);
    }
}

/* Weights that are not as config.json says: refused before anything is computed. */
static void test_weights_contradict(void **state)
{
    struct yoke_options o = {.model = directory};
    static const char *const changes[] = {"{\"hidden_size\": 64}",        "{\"num_attention_heads\": 8}",
                                          "{\"intermediate_size\": 128}", "{\"vocab_size\": 41}",
                                          "{\"num_hidden_layers\": 2}",   "{\"num_key_value_heads\": 1}"};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        struct source s = {0};
        struct err err = {0};
        if (!open_with(changes[i], &s, &err))
            source_close(&s); /* found when the weights are looked up */
        struct yoke *y;
        struct yoke_error error = {0};
        assert_int_equal(yoke_open(&y, &o, &error), YOKE_EINPUT);
        if (!strstr(error.message, "model.layers") && !strstr(error.message, "model."))
            fail_msg("%s: no weight named in \"%s\"", changes[i], error.message);
    }
}

/* The published rule of Llama 3.1 (transformers, rope_type "llama3"), in plain double arithmetic. */
static void test_llama3_frequencies(void **state)
{
    struct config c = {.head_dim = 128,
                       .rope_theta = 500000,
                       .rope_scaling = ROPE_LLAMA3,
                       .rope_factor = 8,
                       .rope_low_freq_factor = 1,
                       .rope_high_freq_factor = 4,
                       .rope_original_ctx = 8192};
    float got[64];
    config_rope_frequencies(&c, NULL, got);
    for (int i = 0; i < 64; i++) {
        double f = pow(500000, -2.0 * i / 128), wave = 2 * acos(-1) / f, expected;
        if (wave < 8192.0 / 4) {
            expected = f;
        } else if (wave > 8192) {
            expected = f / 8;
        } else {
            double smooth = (8192 / wave - 1) / 3;
            expected = (1 - smooth) * f / 8 + smooth * f;
        }
        assert_true(fabs((double)got[i] - expected) < 1e-6 * expected);
    }
}

static void test_synthetic(void **state)
{
    struct config c;
    enum weight_format format;
    int bits, group;
    struct err err = {0};
    assert_int_equal(config_synthetic(&c, "llama-3.2-1b:q4_0", &format, &bits, &group, &err), 0);
    assert_int_equal(c.dim, 2048);
    assert_int_equal(format, WEIGHT_Q4_0);
    assert_int_equal(config_synthetic(&c, "tiny", &format, &bits, &group, &err), 0);
    static const char *const bad[] = {"", ":", "tin", "tinyy", "tiny:", "tiny:q4", "tiny:q4_0:x", ":q4_0"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(config_synthetic(&c, bad[i], &format, &bits, &group, &err), ERR_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_defaults_and_nulls),
        cmocka_unit_test(test_rope_spellings),
        cmocka_unit_test(test_missing),
        cmocka_unit_test(test_absurd_numbers),
        cmocka_unit_test(test_impossible_relations),
        cmocka_unit_test(test_unsupported),
        cmocka_unit_test(test_not_a_config),
        cmocka_unit_test(test_weights_contradict),
        cmocka_unit_test(test_llama3_frequencies),
        cmocka_unit_test(test_synthetic),
    };
    return cmocka_run_group_tests_name("config", tests, make_checkpoint, drop_checkpoint);
}

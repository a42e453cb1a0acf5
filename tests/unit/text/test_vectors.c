/* test_vectors.c - tokenizers of real models against ids that other implementations published for them:
 * llama.cpp's vocabulary tests, test suites of the JavaScript and Swift tokenizers, this project's demo
 * model. Needs the project's test data. */
#include "../file/support.h"

#include "base/json.h"
#include "text/tokenizer.h"

/* ---- opening ---- */

/* A path below the test data that stays valid, unlike shared_data()'s. */
static char *data_path(const char *name)
{
    char *path = strdup(shared_data(name));
    assert_non_null(path);
    return path;
}

static char *read_data(const char *name, size_t *n)
{
    return read_file(shared_data(name), n);
}

static json_t *read_json(const char *name)
{
    struct err err = {0};
    json_t *v;
    char *path = data_path(name);
    json_error_t where;
    v = json_load_file(path, 0, &where);
    free(path);
    if (!v)
        fail_msg("%s: %s %s", name, where.text, err.message);
    return v;
}

static struct tokenizer *open_text(const char *json, size_t size, const char *config, size_t config_size)
{
    struct err err = {0};
    struct tokenizer *t;
    if (tokenizer_open_json(&t, json, size, config, config_size, "tokenizer.json", &err))
        fail_msg("%s", err.message);
    return t;
}

/* folder: holds tokenizer.json and tokenizer_config.json. */
static struct tokenizer *open_folder(const char *folder)
{
    char name[256];
    size_t n, config_n;
    snprintf(name, sizeof name, "%s/tokenizer.json", folder);
    char *json = read_data(name, &n);
    snprintf(name, sizeof name, "%s/tokenizer_config.json", folder);
    char *config = read_data(name, &config_n);
    struct tokenizer *t = open_text(json, n, config, config_n);
    free(json);
    free(config);
    return t;
}

static struct tokenizer *open_gguf(const char *name)
{
    struct err err = {0};
    struct file *f;
    struct tokenizer *t = NULL;
    if (file_open(&f, shared_data(name), &err) || tokenizer_open(&t, f, &err))
        fail_msg("%s", err.message);
    file_close(f); /* the tokenizer must not need it any more */
    assert_non_null(t);
    return t;
}

/* A tokenizer.json from vocab.json and merges.txt, for the models that are kept in that form. */
static struct tokenizer *assemble(const char *vocab, const char *merges, const char *digits,
                                  const char *normalizer, bool ignore_merges, int first_special,
                                  const char *const *specials)
{
    size_t n;
    char *text = read_data(merges, &n), *line, *rest = text;
    json_t *list = json_array(), *added = json_array();
    while ((line = strsep(&rest, "\n")))
        if (*line && strncmp(line, "#version", 8))
            json_array_append_new(list, json_string(line));
    free(text);
    json_t *table = read_json(vocab);
    for (int i = 0; specials[i]; i++) {
        json_object_del(table, specials[i]);
        json_array_append_new(added, json_pack("{s:i, s:s, s:b, s:b}", "id", first_special + i, "content",
                                               specials[i], "special", 1, "normalized", 0));
    }
    char regex[512];
    snprintf(
        regex, sizeof regex,
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}%s| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
        "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
        digits);
    json_t *root = json_pack(
        "{s:o, s:o*, s:{s:s, s:[{s:s, s:{s:s}, s:s}, {s:s, s:b, s:b}]}, s:{s:s}, s:{s:s, s:b, s:o, s:o}}",
        "added_tokens", added, "normalizer", normalizer ? json_pack("{s:s}", "type", normalizer) : NULL,
        "pre_tokenizer", "type", "Sequence", "pretokenizers", "type", "Split", "pattern", "Regex", regex,
        "behavior", "Isolated", "type", "ByteLevel", "add_prefix_space", 0, "use_regex", 0, "decoder", "type",
        "ByteLevel", "model", "type", "BPE", "ignore_merges", ignore_merges, "vocab", table, "merges", list);
    assert_non_null(root);
    char *json = json_dumps(root, 0);
    struct tokenizer *t = open_text(json, strlen(json), NULL, 0);
    json_decref(root);
    free(json);
    return t;
}

static struct tokenizer *open_qwen2(void)
{
    static const char *const specials[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>", NULL};
    return assemble("tokenizers/qwen2/vocab.json", "tokenizers/qwen2/merges.txt", "", "NFC", false, 151643,
                    specials);
}

/* Special tokens 128000 to 128255: named ones, and reserved ones numbered through the gaps. */
static struct tokenizer *open_llama3(void)
{
    static const char *const named[] = {
        [0] = "<|begin_of_text|>",   [1] = "<|end_of_text|>",   [4] = "<|finetune_right_pad_id|>",
        [6] = "<|start_header_id|>", [7] = "<|end_header_id|>", [8] = "<|eom_id|>",
        [9] = "<|eot_id|>",          [10] = "<|python_tag|>",
    };
    static char reserved[256][40];
    const char *specials[257] = {0};
    for (int i = 0, n = 0; i < 256; i++) {
        specials[i] = i < 11 ? named[i] : NULL;
        if (!specials[i]) {
            snprintf(reserved[i], sizeof reserved[i], "<|reserved_special_token_%d|>", n++);
            specials[i] = reserved[i];
        }
    }
    return assemble("tokenizers/llama3/encoder.json", "tokenizers/llama3/vocab.bpe", "{1,3}", NULL, true,
                    128000, specials);
}

/* ---- comparing ---- */

static void check_encode(const struct tokenizer *t, const char *text, size_t size, int flags,
                         const int32_t *expected, size_t n)
{
    struct err err = {0};
    struct ids ids = {0};
    if (tokenizer_encode(t, text, size, flags, &ids, &err))
        fail_msg("%s", err.message);
    for (size_t i = 0; i < n || i < ids.n; i++)
        if (i >= n || i >= ids.n || ids.data[i] != expected[i])
            fail_msg("\"%.*s\": token %zu of %zu is %d, expected %d (of %zu)", (int)size, text, i, ids.n,
                     i < ids.n ? ids.data[i] : -1, i < n ? expected[i] : -1, n);
    ids_free(&ids);
}

static void check_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool special,
                         const char *expected, size_t size)
{
    struct buf out = {0};
    tokenizer_decode(t, ids, n, special, &out);
    if (out.size != size || (size && memcmp(out.data, expected, size)))
        fail_msg("decoded \"%s\", expected \"%s\"", out.data, expected);
    buf_free(&out);
}

static int32_t *ids_of(const json_t *list, size_t *n)
{
    *n = json_array_size(list);
    int32_t *ids = calloc(*n + 1, sizeof *ids);
    for (size_t i = 0; i < *n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return ids;
}

/* llama.cpp's pairs: texts between lines "__ggml_vocab_test__", and one line of ids for each. */
static void check_llama_cpp(struct tokenizer *t, const char *name)
{
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char path[256];
    size_t n, n_out;
    snprintf(path, sizeof path, "tokenizers/gguf-vocab/%s.inp", name);
    char *texts = read_data(path, &n);
    snprintf(path, sizeof path, "tokenizers/gguf-vocab/%s.out", name);
    char *lines = read_data(path, &n_out), *rest = lines, *text = texts;
    int count = 0;
    for (;; count++) {
        char *end = strstr(text, separator), *line = strsep(&rest, "\n"), *word;
        if (!end) /* what follows the last separator is no test */
            break;
        assert_non_null(line);
        int32_t ids[512];
        size_t n_ids = 0;
        while ((word = strsep(&line, " ")))
            if (*word)
                ids[n_ids++] = (int32_t)strtol(word, NULL, 10);
        check_encode(t, text, (size_t)(end - text), 0, ids, n_ids);
        check_decode(t, ids, n_ids, false, text, (size_t)(end - text));
        text = end + strlen(separator);
    }
    assert_in_range(count, 40, 100);
    free(texts);
    free(lines);
    tokenizer_close(t);
}

static void test_llama_cpp_spm(void **state)
{
    check_llama_cpp(open_gguf("tokenizers/gguf-vocab/ggml-vocab-llama-spm.gguf"),
                    "ggml-vocab-llama-spm.gguf");
}

static void test_llama_cpp_phi3(void **state)
{
    check_llama_cpp(open_gguf("tokenizers/gguf-vocab/ggml-vocab-phi-3.gguf"), "ggml-vocab-phi-3.gguf");
}

static void test_phi3_json_on_llama_cpp_texts(void **state)
{
    check_llama_cpp(open_folder("tokenizers/phi3"), "ggml-vocab-phi-3.gguf");
}

static void test_llama_cpp_gpt2(void **state)
{
    check_llama_cpp(open_gguf("tokenizers/gguf-vocab/ggml-vocab-gpt-2.gguf"), "ggml-vocab-gpt-2.gguf");
}

static void test_llama_cpp_qwen2(void **state)
{
    check_llama_cpp(open_qwen2(), "ggml-vocab-qwen2.gguf");
}

static void test_llama_cpp_llama3(void **state)
{
    check_llama_cpp(open_llama3(), "ggml-vocab-llama-bpe.gguf");
}

/* {"kind": "encode_and_decode", "text", "ids"}; llama_tokenizer_js's ids begin with <s>. */
static void check_js(struct tokenizer *t, const char *name, int flags)
{
    json_t *list = read_json(name);
    size_t i, count = 0;
    json_t *v;
    json_array_foreach(list, i, v)
    {
        if (strcmp(json_string_value(json_object_get(v, "kind")), "encode_and_decode"))
            continue;
        const json_t *text = json_object_get(v, "text");
        size_t n;
        int32_t *ids = ids_of(json_object_get(v, "ids"), &n);
        check_encode(t, json_string_value(text), json_string_length(text), flags, ids, n);
        check_decode(t, ids, n, flags & TOKENIZE_SPECIAL, json_string_value(text), json_string_length(text));
        free(ids);
        count++;
    }
    assert_in_range(count, 10, 100);
    json_decref(list);
    tokenizer_close(t);
}

static void test_js_llama2(void **state)
{
    check_js(open_gguf("tokenizers/gguf-vocab/ggml-vocab-llama-spm.gguf"),
             "tokenizers/vectors/llama_tokenizer_js.json", TOKENIZE_BOS);
}

static void test_js_llama3(void **state)
{
    check_js(open_llama3(), "tokenizers/vectors/llama3_tokenizer_js.json", TOKENIZE_SPECIAL);
}

/* skip: ids at the front that this tokenizer does not add. decode: the library's text is the plain one (for
 * gpt2 it is "cleaned up" afterwards). */
static void check_swift(struct tokenizer *t, const char *model, int flags, size_t skip_ids, bool decode)
{
    json_t *root = read_json("tokenizers/vectors/swift_transformers_tokenizer_tests.json"), *v;
    const json_t *list = json_object_get(root, model);
    assert_in_range(json_array_size(list), 10, 100);
    size_t i;
    json_array_foreach(list, i, v)
    {
        const json_t *text = json_object_get(v, "input"),
                     *plain = json_object_get(v, "decoded_without_special");
        size_t n;
        int32_t *ids = ids_of(json_object_get(json_object_get(v, "encoded"), "input_ids"), &n);
        check_encode(t, json_string_value(text), json_string_length(text), flags, ids + skip_ids,
                     n - skip_ids);
        /* "!!" after a space: the library's clean-up takes the space away, in the model's own files it is
         * off. */
        if (decode && !strstr(json_string_value(text), " !!"))
            check_decode(t, ids, n, false, json_string_value(plain), json_string_length(plain));
        free(ids);
    }
    json_decref(root);
    tokenizer_close(t);
}

static void test_swift_llama2(void **state)
{
    check_swift(open_gguf("tokenizers/gguf-vocab/ggml-vocab-llama-spm.gguf"),
                "coreml-projects/Llama-2-7b-chat-coreml", TOKENIZE_BOS, 0, true);
}

static void test_swift_llama3(void **state)
{
    check_swift(open_llama3(), "pcuenq/Llama-3.2-1B-Instruct-tokenizer", 0, 1, true);
}

static void test_swift_gpt2(void **state)
{
    check_swift(open_gguf("tokenizers/gguf-vocab/ggml-vocab-gpt-2.gguf"), "distilgpt2", 0, 0, false);
}

static void check_swift_long(struct tokenizer *t, const char *name, size_t skip_ids)
{
    json_t *v = read_json(name);
    const json_t *text = json_object_get(v, "text");
    size_t n;
    int32_t *ids = ids_of(json_object_get(v, "token_ids"), &n);
    check_encode(t, json_string_value(text), json_string_length(text), 0, ids + skip_ids, n - skip_ids);
    free(ids);
    json_decref(v);
    tokenizer_close(t);
}

static void test_swift_long_texts(void **state)
{
    check_swift_long(open_gguf("tokenizers/gguf-vocab/ggml-vocab-llama-spm.gguf"),
                     "tokenizers/vectors/swift_transformers_llama2_encoded.json", 1);
    check_swift_long(open_llama3(), "tokenizers/vectors/swift_transformers_llama_3.2_encoded.json", 1);
}

static void test_demo_prompts(void **state)
{
    struct tokenizer *t = open_folder("novella-23m");
    json_t *golden = read_json("novella-23m/golden.json"), *v;
    size_t i, n;
    json_array_foreach(json_object_get(golden, "prompts"), i, v)
    {
        const json_t *text = json_object_get(v, "text");
        int32_t *ids = ids_of(json_object_get(v, "ids"), &n);
        check_encode(t, json_string_value(text), json_string_length(text), TOKENIZE_BOS, ids, n);
        free(ids);
    }
    assert_in_range(i, 1, 100);
    const int32_t *eos;
    assert_int_equal(tokenizer_bos(t), 0);
    assert_int_equal(tokenizer_eos(t, &eos), 1);
    assert_int_equal(eos[0], 1);
    json_decref(golden);
    tokenizer_close(t);
}

/* Opened the way a program does it, from a folder with weights. */
static void test_demo_folder(void **state)
{
    struct err err = {0};
    struct file *f;
    struct tokenizer *t = NULL;
    if (file_open(&f, shared_data("novella-23m"), &err) || tokenizer_open(&t, f, &err))
        fail_msg("%s", err.message);
    file_close(f);
    assert_non_null(t);
    assert_int_equal(tokenizer_n_tokens(t), 8192);
    assert_int_equal(tokenizer_bos(t), 0);
    tokenizer_close(t);
}

static void test_stories(void **state)
{
    struct tokenizer *t = open_gguf("stories260k/stories260K.gguf");
    size_t n, n_text, n_ids = 0;
    char *lines = read_data("stories260k/reference/greedy256.tokens.txt", &n), *rest = lines, *line;
    char *text = read_data("stories260k/reference/greedy512.text.txt", &n_text);
    int32_t ids[256];
    while ((line = strsep(&rest, "\n")) && *line && n_ids < 200)
        ids[n_ids++] = (int32_t)strtol(line, NULL, 10);
    struct buf out = {0};
    tokenizer_decode(t, ids, n_ids, false, &out);
    assert_in_range(out.size, 100, n_text);
    assert_memory_equal(out.data, text, out.size);
    buf_free(&out);
    free(lines);
    free(text);
    tokenizer_close(t);
}

static void check_round_trip(const struct tokenizer *t, const char *name)
{
    size_t n;
    char *text = read_data(name, &n);
    struct err err = {0};
    struct ids ids = {0};
    if (tokenizer_encode(t, text, n, 0, &ids, &err))
        fail_msg("%s", err.message);
    assert_in_range(ids.n, n / 8, n);
    check_decode(t, ids.data, ids.n, false, text, n);
    ids_free(&ids);
    free(text);
}

static void test_round_trips(void **state)
{
    struct tokenizer *ts[] = {open_folder("novella-23m"), open_llama3(),
                              open_gguf("tokenizers/gguf-vocab/ggml-vocab-llama-spm.gguf")};
    static const char *const texts[] = {"text/frankenstein.txt", "text/promessi_sposi.txt",
                                        "text/war-and-peace.txt", "text/wiki.test.raw"};
    for (size_t i = 0; i < sizeof ts / sizeof *ts; i++) {
        for (size_t k = 0; k < sizeof texts / sizeof *texts; k++)
            check_round_trip(ts[i], texts[k]);
        tokenizer_close(ts[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama_cpp_spm),    cmocka_unit_test(test_llama_cpp_phi3),
        cmocka_unit_test(test_llama_cpp_gpt2),   cmocka_unit_test(test_llama_cpp_qwen2),
        cmocka_unit_test(test_llama_cpp_llama3), cmocka_unit_test(test_phi3_json_on_llama_cpp_texts),
        cmocka_unit_test(test_js_llama2),        cmocka_unit_test(test_js_llama3),
        cmocka_unit_test(test_swift_llama2),     cmocka_unit_test(test_swift_llama3),
        cmocka_unit_test(test_swift_gpt2),       cmocka_unit_test(test_swift_long_texts),
        cmocka_unit_test(test_demo_prompts),     cmocka_unit_test(test_demo_folder),
        cmocka_unit_test(test_stories),          cmocka_unit_test(test_round_trips),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_safetensors.c - the reader of safetensors files and model directories: real ones, and wrong ones. */
#include "support.h"

#include "base/buf.h"
#include "file/file.h"

#include <sys/stat.h>

/* A file with this header and n bytes of data. */
static void put_file(struct buf *b, const char *header, size_t n)
{
    uint64_t size = strlen(header);
    buf_append(b, &size, 8);
    buf_puts(b, header);
    for (size_t i = 0; i < n; i++)
        buf_append(b, "", 1);
}

static int open_copy(struct file **f, const void *bytes, size_t n, void **copy, struct err *err)
{
    *copy = exact_copy(bytes, n);
    return file_open_safetensors_memory(f, *copy, n, "{}", 2, err);
}

static void assert_refused(struct buf *b, const char *expected)
{
    struct err err = {0};
    struct file *f;
    void *copy;
    assert_fault(open_copy(&f, b->data, b->size, &copy, &err), &err, expected);
    assert_null(f);
    free(copy);
    buf_free(b);
}

static const char sample[] = "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3]"
                             ",\"data_offsets\":[8,20]},"
                             "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[4,8]}}";

static void test_sample(void **state)
{
    struct buf b = {0};
    struct err err = {0};
    struct file *f;
    put_file(&b, sample, 20);
    assert_int_equal(file_open_safetensors_memory(&f, b.data, b.size, "{\"model_type\":\"llama\"}", 22, &err),
                     0);
    assert_int_equal(file_kind(f), FILE_SAFETENSORS);
    assert_int_equal(file_n_tensors(f), 2);
    assert_string_equal(file_tensor_at(f, 0)->name, "a");
    const struct tensor *t = file_tensor(f, "b");
    assert_int_equal(t->dtype, DTYPE_BF16);
    assert_int_equal(t->n_dims, 2);
    assert_int_equal(t->shape[0], 2);
    assert_int_equal(t->shape[1], 3);
    assert_int_equal(t->bytes, 12);
    assert_ptr_equal(t->data, b.data + b.size - 12);
    assert_int_equal(file_tensor(f, "a")->n_dims, 0);
    assert_string_equal(json_string_value(json_object_get(file_config(f), "model_type")), "llama");
    assert_null(file_gguf_value(f, "general.architecture"));
    assert_null(file_sibling(f, "tokenizer.json"));
    file_close(f);
    buf_free(&b);
}

static void test_truncated(void **state)
{
    struct buf b = {0};
    struct err err;
    struct file *f;
    void *copy;
    put_file(&b, sample, 20);
    for (size_t n = 0; n < b.size; n++) {
        assert_int_equal(open_copy(&f, b.data, n, &copy, &err), ERR_INPUT);
        assert_true(err.message[0]);
        free(copy);
    }
    buf_free(&b);
}

static void test_bit_flips(void **state)
{
    struct buf b = {0};
    struct err err;
    struct file *f;
    size_t n_opened = 0, header = 8 + strlen(sample);
    put_file(&b, sample, 20);
    for (size_t i = 0; i < header * 8; i++) {
        void *copy;
        b.data[i / 8] ^= (char)(1 << i % 8);
        if (open_copy(&f, b.data, b.size, &copy, &err) == 0) {
            touch(f);
            file_close(f);
            n_opened++;
        }
        free(copy);
        b.data[i / 8] ^= (char)(1 << i % 8);
    }
    assert_in_range(n_opened, 1, header * 8 - 1);
    buf_free(&b);
}

static void test_bad_entries(void **state)
{
    static const struct {
        const char *header, *expected;
    } cases[] = {
        {"[]", "must be a JSON object"},
        {"{", "bad header: line 1"},
        {"{\"t\":3}", "entry \"t\" must be a JSON object"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2]}}", "\"t\": needs"},
        {"{\"t\":{\"dtype\":5,\"shape\":[2],\"data_offsets\":[0,8]}}", "\"t\": needs"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":2,\"data_offsets\":[0,8]}}", "\"t\": needs"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", "\"t\": needs"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", "\"t\": needs"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,16]}}", "\"t\": needs"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0.0,8.0]}}", "\"t\": needs"},
        {"{\"t\":{\"dtype\":\"F8_E4M3\",\"shape\":[2],\"data_offsets\":[0,2]}}",
         "\"t\": type F8_E4M3 is not served"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}", "\"t\": a dimension is zero"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}",
         "\"t\": a dimension is zero or negative"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[\"2\"],\"data_offsets\":[0,8]}}", "\"t\": a dimension"},
        {"{\"t\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,8],\"data_offsets\":[0,8]}}", "\"t\": 5 dimensions"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", "overflows"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,12]}}",
         "span 12 bytes, its shape and type need 8"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[12,20]}}", "past the end"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[9223372036854775800,9223372036854775807]}"
         "}",
         "past the end"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,99999999999999999999]}}", "bad header"},
        {"{\"\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "empty"},
        {"{\"t\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"t\":{}}", "bad header"},
        {"{\"\xff\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", "bad header"},
        {"{\"t\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"u\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[3,7]}}",
         "tensors \"t\" and \"u\" overlap"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct buf b = {0};
        put_file(&b, cases[i].header, 16);
        assert_refused(&b, cases[i].expected);
    }
}

static void test_bad_sizes(void **state)
{
    struct buf b = {0};
    buf_append(&b, "1234567", 7);
    assert_refused(&b, "only 7 bytes");
    buf_append(&b, &(uint64_t){UINT64_MAX}, 8);
    buf_puts(&b, "{}");
    assert_refused(&b, "a header of 18446744073709551615 bytes in a file of 10");
    buf_append(&b, &(uint64_t){3}, 8);
    buf_puts(&b, "{}");
    assert_refused(&b, "a header of 3 bytes");
    struct err err = {0};
    struct file *f;
    put_file(&b, sample, 20);
    assert_fault(file_open_safetensors_memory(&f, b.data, b.size, "[]", 2, &err), &err,
                 "JSON object was expected");
    buf_free(&b);
}

/* ---- directories ---- */

static void test_fixtures(void **state)
{
    static const struct {
        const char *name;
        enum dtype dtype;
        int n_dims;
        int64_t shape[4];
    } cases[] = {
        {"tensor-1d-int32", DTYPE_I32, 1, {3}},
        {"tensor-2d-float64", DTYPE_F64, 2, {2, 3}},
        {"tensor-3d-float32", DTYPE_F32, 3, {2, 2, 3}},
        {"tensor-4d-float32", DTYPE_F32, 4, {2, 3, 1, 3}},
    };
    for (size_t i = 0; i < 4; i++) {
        char name[100];
        struct err err = {0};
        struct file *f;
        size_t n;
        snprintf(name, sizeof name, "fixtures/safetensors/%s.safetensors", cases[i].name);
        char *bytes = read_file(shared_data(name), &n);
        assert_int_equal(file_open_safetensors_memory(&f, bytes, n, "{}", 2, &err), 0);
        const struct tensor *t = file_tensor(f, "embedding");
        assert_non_null(t);
        assert_int_equal(t->dtype, cases[i].dtype);
        assert_int_equal(t->n_dims, cases[i].n_dims);
        assert_memory_equal(t->shape, cases[i].shape, sizeof t->shape);
        touch(f);
        file_close(f);
        free(bytes);
    }
}

static void test_models(void **state)
{
    static const char *const names[] = {"llama-a", "llama-linear-a", "llama31-a", "mistral-swa-a", "phi3-a"};
    for (size_t i = 0; i < 5; i++) {
        char name[100];
        struct err err = {0};
        struct file *f;
        snprintf(name, sizeof name, "golden-hf/%s", names[i]);
        const char *path = shared_data(name);
        if (file_open(&f, path, &err))
            fail_msg("%s", err.message);
        assert_string_equal(file_path(f), path);
        assert_true(json_is_string(json_object_get(file_config(f), "model_type")));
        const struct tensor *t = file_tensor(f, "model.embed_tokens.weight");
        assert_non_null(t);
        assert_int_equal(t->dtype, DTYPE_F32);
        assert_int_equal(t->shape[1], json_integer_value(json_object_get(file_config(f), "hidden_size")));
        char *sibling = file_sibling(f, "greedy.json");
        assert_non_null(sibling);
        assert_int_equal(access(sibling, R_OK), 0);
        free(sibling);
        assert_null(file_sibling(f, "tokenizer.json"));
        unsigned before = touch(f);
        file_release_pages(f);
        assert_int_equal(touch(f), before);
        file_close(f);
    }
}

static void write_text(const char *directory, const char *name, const char *text)
{
    write_file(in_directory(directory, name), text, strlen(text));
}

/* A shard with one tensor of four bytes. */
static void write_shard(const char *directory, const char *name, const char *tensor)
{
    struct buf b = {0};
    char header[200];
    snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
             tensor);
    put_file(&b, header, 4);
    write_file(in_directory(directory, name), b.data, b.size);
    buf_free(&b);
}

static void assert_directory_refused(const char *directory, const char *expected)
{
    struct err err = {0};
    struct file *f;
    assert_fault(file_open(&f, directory, &err), &err, expected);
    assert_null(f);
}

static void test_shards(void **state)
{
    static const struct {
        const char *map, *expected;
    } cases[] = {
        {"{\"a\":\"one.safetensors\",\"b\":\"../two.safetensors\"}", "\"b\": its file must be a plain name"},
        {"{\"a\":\"/etc/passwd\"}", "plain name in the same directory, not /etc/passwd"},
        {"{\"a\":\"..\"}", "plain name"},
        {"{\"a\":\"\"}", "plain name"},
        {"{\"a\":\"one\\u0000\"}", "plain name"},
        {"{\"a\":7}", "plain name"},
        {"{}", "needs a \"weight_map\""},
        {"[]", "needs a \"weight_map\""},
        {"{\"a\":\"one.safetensors\",\"b\":\"three.safetensors\"}", "shard of tensor \"b\""},
        {"{\"a\":\"one.safetensors\",\"c\":\"two.safetensors\"}", "\"c\" is not in"},
        {"{\"b\":\"one.safetensors\",\"a\":\"two.safetensors\"}", "\"b\" is not in"},
        {"{\"a\":\"one.safetensors\",\"b\":\"same.safetensors\"}", "\"a\": there are two"},
        {"{\"a\":\"index\"}", "index: "},
    };
    const char *dir = make_directory();
    struct err err = {0};
    struct file *f;
    char text[300];
    assert_directory_refused(dir, "no config.json here: not a model directory");
    write_text(dir, "config.json", "{}");
    assert_directory_refused(dir, "neither model.safetensors nor");
    write_shard(dir, "one.safetensors", "a");
    write_shard(dir, "two.safetensors", "b");
    write_shard(dir, "same.safetensors", "a");
    assert_int_equal(mkdir(in_directory(dir, "index"), 0700), 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        snprintf(text, sizeof text, "{\"weight_map\":%s}", cases[i].map);
        write_text(dir, "model.safetensors.index.json", text);
        assert_directory_refused(dir, cases[i].expected);
    }
    write_text(dir, "model.safetensors.index.json",
               "{\"weight_map\":{\"b\":\"two.safetensors\",\"a\":\"one.safetensors\"}}");
    assert_int_equal(file_open(&f, dir, &err), 0);
    assert_int_equal(file_n_tensors(f), 2);
    assert_non_null(file_tensor(f, "a"));
    touch(f);
    file_close(f);
    write_text(dir, "config.json", "nonsense");
    assert_directory_refused(dir, "config.json: not valid JSON");
    remove_directory(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sample),    cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_bit_flips), cmocka_unit_test(test_bad_entries),
        cmocka_unit_test(test_bad_sizes), cmocka_unit_test(test_fixtures),
        cmocka_unit_test(test_models),    cmocka_unit_test(test_shards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

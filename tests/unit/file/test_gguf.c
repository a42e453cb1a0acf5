/* test_gguf.c - the GGUF reader: real files, split sets, and every way we know of to be wrong. */
#include "support.h"

#include "base/buf.h"
#include "file/file.h"

#include <sys/stat.h>

/* ---- writing GGUF ---- */

static void put_u32(struct buf *b, uint32_t x)
{
    buf_append(b, &x, 4);
}

static void put_u64(struct buf *b, uint64_t x)
{
    buf_append(b, &x, 8);
}

static void put_bytes(struct buf *b, const char *s, size_t n)
{
    put_u64(b, n);
    buf_append(b, s, n);
}

static void put_string(struct buf *b, const char *s)
{
    put_bytes(b, s, strlen(s));
}

static void put_header(struct buf *b, uint32_t version, uint64_t n_tensors, uint64_t n_pairs)
{
    buf_puts(b, "GGUF");
    put_u32(b, version);
    put_u64(b, n_tensors);
    put_u64(b, n_pairs);
}

static void put_key(struct buf *b, const char *key, uint32_t type)
{
    put_string(b, key);
    put_u32(b, type);
}

static void put_scalar(struct buf *b, const char *key, uint32_t type, const void *value, size_t n)
{
    put_key(b, key, type);
    buf_append(b, value, n);
}

static void put_int(struct buf *b, const char *key, uint32_t value)
{
    put_scalar(b, key, GGUF_U32, &value, 4);
}

static void put_info(struct buf *b, const char *name, uint32_t n_dims, const uint64_t *dims, uint32_t type,
                     uint64_t offset)
{
    put_string(b, name);
    put_u32(b, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        put_u64(b, dims[i]);
    put_u32(b, type);
    put_u64(b, offset);
}

static void pad(struct buf *b, size_t alignment)
{
    while (b->size % alignment)
        buf_append(b, "", 1);
}

static void put_zeros(struct buf *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        buf_append(b, "", 1);
}

/* Parses an exact copy and checks that it fails as it should. */
static void assert_refused(struct buf *b, const char *expected)
{
    struct err err = {0};
    struct file *f;
    void *copy = exact_copy(b->data, b->size);
    int rc = file_open_gguf_memory(&f, copy, b->size, &err);
    assert_fault(rc, &err, expected);
    assert_null(f);
    free(copy);
    buf_free(b);
}

/* Every value type, three tensors of which one is scalar; *header gets the size of all before the data. */
static void put_sample(struct buf *b, size_t *header)
{
    put_header(b, 3, 3, 16);
    put_scalar(b, "u8", GGUF_U8, &(uint8_t){200}, 1);
    put_scalar(b, "i8", GGUF_I8, &(int8_t){-100}, 1);
    put_scalar(b, "u16", GGUF_U16, &(uint16_t){60000}, 2);
    put_scalar(b, "i16", GGUF_I16, &(int16_t){-30000}, 2);
    put_scalar(b, "u32", GGUF_U32, &(uint32_t){4000000000u}, 4);
    put_scalar(b, "i32", GGUF_I32, &(int32_t){-2000000000}, 4);
    put_scalar(b, "f32", GGUF_F32, &(float){1.5f}, 4);
    put_scalar(b, "bool", GGUF_BOOL, &(uint8_t){1}, 1);
    put_scalar(b, "u64", GGUF_U64, &(uint64_t){1ull << 40}, 8);
    put_scalar(b, "i64", GGUF_I64, &(int64_t){-(1ll << 40)}, 8);
    put_scalar(b, "f64", GGUF_F64, &(double){0.1}, 8);
    put_key(b, "text", GGUF_STRING);
    put_bytes(b, "a\0\xc3\xa9", 4);
    put_key(b, "numbers", GGUF_ARRAY);
    put_u32(b, GGUF_I16);
    put_u64(b, 3);
    buf_append(b, (int16_t[]){1, -2, 3}, 6);
    put_key(b, "words", GGUF_ARRAY);
    put_u32(b, GGUF_STRING);
    put_u64(b, 3);
    put_string(b, "alpha");
    put_string(b, "");
    put_string(b, "\xe2\x96\x81of");
    put_key(b, "nothing", GGUF_ARRAY);
    put_u32(b, GGUF_F32);
    put_u64(b, 0);
    put_int(b, "general.alignment", 16);
    put_info(b, "second", 3, (uint64_t[]){4, 3, 2}, 1, 48);
    put_info(b, "first", 2, (uint64_t[]){32, 2}, 2, 0);
    put_info(b, "scalar", 0, NULL, 0, 96);
    pad(b, 16);
    *header = b->size;
    put_zeros(b, 100);
}

static int64_t get_int(const struct file *f, const char *key)
{
    const struct gguf_value *v = file_gguf_value(f, key);
    assert_non_null(v);
    assert_string_equal(v->key, key);
    return v->i;
}

static void check_sample_values(const struct file *f)
{
    assert_int_equal(get_int(f, "u8"), 200);
    assert_int_equal(get_int(f, "i8"), -100);
    assert_int_equal(get_int(f, "u16"), 60000);
    assert_int_equal(get_int(f, "i16"), -30000);
    assert_int_equal(get_int(f, "u32"), 4000000000);
    assert_int_equal(get_int(f, "i32"), -2000000000);
    assert_int_equal(get_int(f, "bool"), 1);
    assert_int_equal(get_int(f, "u64"), 1ll << 40);
    assert_int_equal(get_int(f, "i64"), -(1ll << 40));
    assert_true(file_gguf_value(f, "f32")->f == 1.5);
    assert_true(file_gguf_value(f, "f64")->f == 0.1);
    const struct gguf_value *v = file_gguf_value(f, "text");
    assert_int_equal(v->string_bytes, 4);
    assert_memory_equal(v->string, "a\0\xc3\xa9", 5);
    v = file_gguf_value(f, "numbers");
    assert_int_equal(v->n_items, 3);
    assert_int_equal(v->item_type, GGUF_I16);
    assert_memory_equal(v->items, ((int16_t[]){1, -2, 3}), 6);
    v = file_gguf_value(f, "words");
    assert_int_equal(v->n_items, 3);
    assert_string_equal(v->strings[0], "alpha");
    assert_string_equal(v->strings[1], "");
    assert_string_equal(v->strings[2], "\xe2\x96\x81of");
    assert_int_equal(v->string_lengths[2], 5);
    assert_int_equal(file_gguf_value(f, "nothing")->n_items, 0);
    assert_null(file_gguf_value(f, "absent"));
}

static void test_sample(void **state)
{
    struct buf b = {0};
    struct err err = {0};
    struct file *f;
    size_t header;
    put_sample(&b, &header);
    assert_int_equal(file_open_gguf_memory(&f, b.data, b.size, &err), 0);
    assert_int_equal(file_kind(f), FILE_GGUF);
    assert_int_equal(file_bytes(f), b.size);
    assert_null(file_config(f));
    check_sample_values(f);
    assert_int_equal(file_n_tensors(f), 3);
    const struct tensor *t = file_tensor_at(f, 0);
    assert_string_equal(t->name, "first"); /* in the order of the data */
    assert_int_equal(t->dtype, DTYPE_Q4_0);
    assert_int_equal(t->bytes, 36);
    assert_ptr_equal(t->data, b.data + header);
    t = file_tensor(f, "second");
    assert_ptr_equal(t, file_tensor_at(f, 1));
    assert_int_equal(t->n_dims, 3);
    assert_int_equal(t->shape[0], 2);
    assert_int_equal(t->shape[1], 3);
    assert_int_equal(t->shape[2], 4);
    assert_int_equal(t->bytes, 48);
    assert_ptr_equal(t->data, b.data + header + 48);
    assert_int_equal(file_tensor(f, "scalar")->bytes, 4);
    assert_null(file_tensor(f, "third"));
    file_close(f);
    buf_free(&b);
}

static void test_lookups(void **state)
{
    struct buf b = {0};
    struct err err = {0};
    struct file *f;
    size_t header;
    int64_t i;
    double d;
    const char *s;
    put_sample(&b, &header);
    assert_int_equal(file_open_gguf_memory(&f, b.data, b.size, &err), 0);
    assert_int_equal(file_gguf_int(f, "u16", 7, 0, 60000, &i, &err), 0);
    assert_int_equal(i, 60000);
    assert_int_equal(file_gguf_int(f, "absent", 7, 0, 1, &i, &err), 0);
    assert_int_equal(i, 7);
    assert_fault(file_gguf_int(f, "u16", 7, 0, 59999, &i, &err), &err,
                 "\"u16\" is 60000, outside [0, 59999]");
    assert_fault(file_gguf_int(f, "f32", 7, 0, 9, &i, &err), &err, "\"f32\" must be an integer");
    assert_fault(file_gguf_int(f, "numbers", 7, 0, 9, &i, &err), &err, "\"numbers\" must be an integer");
    assert_int_equal(file_gguf_double(f, "f32", 7, &d, &err), 0);
    assert_true(d == 1.5);
    assert_int_equal(file_gguf_double(f, "i8", 7, &d, &err), 0);
    assert_true(d == -100);
    assert_fault(file_gguf_double(f, "bool", 7, &d, &err), &err, "must be a number");
    assert_int_equal(file_gguf_string(f, "absent", "fallback", &s, &err), 0);
    assert_string_equal(s, "fallback");
    assert_fault(file_gguf_string(f, "u8", NULL, &s, &err), &err, "must be a string");
    file_close(f);
    buf_free(&b);
}

static void test_truncated(void **state)
{
    struct buf b = {0};
    struct err err;
    struct file *f;
    size_t header;
    put_sample(&b, &header);
    for (size_t n = 0; n < b.size; n++) {
        void *copy = exact_copy(b.data, n);
        assert_int_equal(file_open_gguf_memory(&f, copy, n, &err), ERR_INPUT);
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
    size_t header, n_opened = 0;
    put_sample(&b, &header);
    for (size_t i = 0; i < header * 8; i++) {
        char *copy = exact_copy(b.data, b.size);
        copy[i / 8] ^= (char)(1 << i % 8);
        if (file_open_gguf_memory(&f, copy, b.size, &err) == 0) {
            touch(f);
            file_close(f);
            n_opened++;
        }
        free(copy);
    }
    assert_in_range(n_opened, 1, header * 8 - 1); /* some flips only change a value or a name */
    buf_free(&b);
}

static void test_bad_header(void **state)
{
    struct buf b = {0};
    buf_puts(&b, "GGML");
    put_zeros(&b, 100);
    assert_refused(&b, "not a GGUF file");
    put_header(&b, 1, 0, 0);
    assert_refused(&b, "version 1 is not served");
    put_header(&b, 4, 0, 0);
    assert_refused(&b, "version 4 is not served");
    put_header(&b, 3u << 24, 0, 0);
    assert_refused(&b, "big-endian");
    put_header(&b, 3, 0, UINT64_MAX);
    assert_refused(&b, "more than its");
    put_header(&b, 3, 1ull << 60, 0);
    assert_refused(&b, "more than its");
}

static void test_bad_metadata(void **state)
{
    struct buf b = {0};
    put_header(&b, 3, 0, 2);
    put_int(&b, "twice", 1);
    put_int(&b, "twice", 2);
    assert_refused(&b, "\"twice\": there are two");
    put_header(&b, 3, 0, 1);
    put_int(&b, "", 1);
    put_zeros(&b, 20);
    assert_refused(&b, "key 0 is empty");
    put_header(&b, 3, 0, 1);
    put_int(&b, "\xff", 1);
    assert_refused(&b, "not UTF-8");
    put_header(&b, 3, 0, 1);
    put_key(&b, "k", 13);
    put_zeros(&b, 20);
    assert_refused(&b, "\"k\": unknown type 13");
    static const char *const bad_utf8[] = {
        "\x80", "\xc0\xaf", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "ab\xc3"};
    for (size_t i = 0; i < sizeof bad_utf8 / sizeof bad_utf8[0]; i++) {
        put_header(&b, 3, 0, 1);
        put_key(&b, "s", GGUF_STRING);
        put_string(&b, bad_utf8[i]);
        assert_refused(&b, "\"s\": a string is not valid UTF-8");
    }
    put_header(&b, 3, 0, 1);
    put_key(&b, "s", GGUF_STRING);
    put_u64(&b, UINT64_MAX);
    assert_refused(&b, "\"s\": a string longer than the file");
    put_header(&b, 3, 0, 1);
    put_scalar(&b, "b", GGUF_BOOL, &(uint8_t){2}, 1);
    assert_refused(&b, "\"b\": a boolean");
    put_header(&b, 3, 0, 1);
    put_scalar(&b, "u", GGUF_U64, &(uint64_t){1ull << 63}, 8);
    assert_refused(&b, "\"u\": an integer above");
}

static void test_bad_arrays(void **state)
{
    static const struct {
        uint32_t item_type;
        uint64_t n;
        const char *expected;
    } cases[] = {
        {GGUF_ARRAY, 1, "arrays of arrays"},
        {13, 1, "unknown array type 13"},
        {GGUF_F32, 1ull << 62, "an array longer than the file"}, /* times 4 is 0 */
        {GGUF_F32, 7, "an array longer than the file"},
        {GGUF_STRING, UINT64_MAX, "an array longer than the file"},
        {GGUF_STRING, 3, "a string is not valid"},
    };
    struct buf b = {0};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        put_header(&b, 3, 0, 1);
        put_key(&b, "a", GGUF_ARRAY);
        put_u32(&b, cases[i].item_type);
        put_u64(&b, cases[i].n);
        put_string(&b, "");
        put_string(&b, "\xff\xff\xff\xff");
        put_u32(&b, 0);
        assert_refused(&b, cases[i].expected);
    }
}

static void test_bad_tensors(void **state)
{
    static const struct {
        const char *name;
        uint32_t n_dims;
        uint64_t dims[5];
        uint32_t type;
        uint64_t offset;
        const char *expected;
    } cases[] = {
        {"t", 2, {32, 0}, 0, 0, "tensor \"t\": a dimension is zero or negative"},
        {"t", 2, {32, UINT64_MAX}, 0, 0, "a dimension is zero or negative"},
        {"t", 5, {2, 2, 2, 2, 2}, 0, 0, "5 dimensions"},
        {"t", 2, {1ull << 32, 1ull << 31}, 0, 0, "overflows"},
        {"t", 4, {1 << 16, 1 << 16, 1 << 16, 1 << 16}, 0, 0, "overflows"},
        {"t", 2, {1ull << 31, 1ull << 27}, 0, 0, "past the end"},
        {"t", 1, {32}, 99, 0, "\"t\": unknown type 99"},
        {"t", 1, {32}, 4, 0, "unknown type 4"},
        {"t", 1, {256}, 16, 0, "\"t\": type IQ2_XXS is not served"},
        {"t", 1, {32}, 0, 1, "offset 1 is not aligned to 32"},
        {"t", 1, {33}, 0, 0, "past the end"},
        {"t", 1, {32}, 0, UINT64_MAX - 31, "past the end"},
        {"t", 1, {8}, 0, 128, "past the end"},
        {"t", 2, {48, 2}, 2, 0, "rows of 48 are no multiple of q4_0's block of 32"},
        {"t", 0, {0}, 2, 0, "rows of 1"},
        {"\xff", 1, {8}, 0, 0, "not UTF-8"},
        {"", 1, {8}, 0, 0, "empty"},
        {"other", 1, {8}, 0, 32, "\"other\": there are two"},
        {"t", 1, {16}, 0, 32, "overlap"},
    };
    struct buf b = {0};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        put_header(&b, 3, 2, 0);
        put_info(&b, "other", 1, (uint64_t[]){8}, 0, 64);
        put_info(&b, cases[i].name, cases[i].n_dims, cases[i].dims, cases[i].type, cases[i].offset);
        pad(&b, 32);
        put_zeros(&b, 128);
        assert_refused(&b, cases[i].expected);
    }
    put_header(&b, 3, 1, 0);
    put_bytes(&b, "a\0b", 3);
    put_zeros(&b, 16);
    assert_refused(&b, "contains a NUL");
}

static void test_alignment(void **state)
{
    static const uint32_t bad[] = {0, 3, 131072};
    struct buf b = {0};
    for (size_t i = 0; i < 3; i++) {
        put_header(&b, 3, 0, 1);
        put_int(&b, "general.alignment", bad[i]);
        assert_refused(&b, "\"general.alignment\"");
    }
}

/* ---- files ---- */

static void test_stories(void **state)
{
    struct err err = {0};
    struct file *f;
    const char *architecture;
    int64_t n;
    double epsilon;
    assert_int_equal(file_open(&f, shared_data("stories260k/stories260K.gguf"), &err), 0);
    assert_int_equal(file_n_tensors(f), 48);
    assert_int_equal(file_bytes(f), 1185376);
    assert_int_equal(file_gguf_string(f, "general.architecture", NULL, &architecture, &err), 0);
    assert_string_equal(architecture, "llama");
    assert_int_equal(file_gguf_int(f, "llama.feed_forward_length", 0, 1, 1 << 20, &n, &err), 0);
    assert_int_equal(n, 172);
    assert_int_equal(file_gguf_double(f, "llama.attention.layer_norm_rms_epsilon", 0, &epsilon, &err), 0);
    assert_true(epsilon == (double)1e-5f);
    const struct gguf_value *tokens = file_gguf_value(f, "tokenizer.ggml.tokens");
    assert_int_equal(tokens->n_items, 512);
    assert_string_equal(tokens->strings[1], "<s>");
    const struct tensor *t = file_tensor(f, "blk.0.attn_k.weight");
    assert_int_equal(t->shape[0], 32);
    assert_int_equal(t->shape[1], 64);
    unsigned before = touch(f);
    file_release_pages(f);
    assert_int_equal(touch(f), before);
    file_close(f);
    assert_int_equal(file_open(&f, shared_data("fixtures/gguf/llama-2-tiny-random.gguf"), &err), 0);
    assert_int_equal(file_gguf_value(f, "tokenizer.ggml.tokens")->n_items, 32000);
    assert_int_equal(file_tensor(f, "token_embd.weight")->dtype, DTYPE_F16);
    file_close(f);
}

static void test_split(void **state)
{
    static const char *const parts[] = {"fixtures/gguf/dummy-00001-of-00002.gguf",
                                        "fixtures/gguf/dummy-00002-of-00002.gguf"};
    for (int i = 0; i < 2; i++) {
        struct err err = {0};
        struct file *f;
        assert_int_equal(file_open(&f, shared_data(parts[i]), &err), 0);
        assert_int_equal(file_n_tensors(f), 10);
        assert_int_equal(file_bytes(f), 768 + 1440);
        assert_int_equal(get_int(f, "some.parameter.uint32"), 0x12345678);
        assert_int_equal(file_tensor(f, "tensor_3")->shape[0], 4);
        touch(f);
        file_close(f);
    }
}

/* One part of a split set with one tensor each. */
static void write_part(const char *path, uint32_t number, uint32_t count, uint32_t n_tensors,
                       const char *tensor)
{
    struct buf b = {0};
    put_header(&b, 3, 1, 3);
    put_int(&b, "split.no", number);
    put_int(&b, "split.count", count);
    put_int(&b, "split.tensors.count", n_tensors);
    put_info(&b, tensor, 1, (uint64_t[]){8}, 0, 0);
    pad(&b, 32);
    put_zeros(&b, 32);
    write_file(path, b.data, b.size);
    buf_free(&b);
}

static void assert_file_refused(const char *path, const char *expected)
{
    struct err err = {0};
    struct file *f;
    assert_fault(file_open(&f, path, &err), &err, expected);
    assert_null(f);
}

static void test_bad_split(void **state)
{
    const char *dir = make_directory();
    char first[4200], second[4200];
    struct file *f;
    struct err err;
    snprintf(first, sizeof first, "%s/m-00001-of-00002.gguf", dir);
    snprintf(second, sizeof second, "%s/m-00002-of-00002.gguf", dir);
    write_part(first, 0, 2, 2, "a");
    assert_file_refused(first, "part 2 of 2 of a split model");
    write_part(second, 1, 2, 2, "b");
    assert_int_equal(file_open(&f, second, &err), 0);
    assert_ptr_equal(file_tensor(f, "a"), file_tensor_at(f, 0));
    assert_ptr_equal(file_tensor(f, "b"), file_tensor_at(f, 1));
    file_close(f);
    write_part(second, 1, 3, 2, "b");
    assert_file_refused(first, "say part 2 of 3, the name says part 2 of 2");
    write_part(second, 0, 2, 2, "b");
    assert_file_refused(first, "say part 1 of 2, the name says part 2 of 2");
    write_part(second, 1, 2, 2, "a");
    assert_file_refused(first, "m-00002-of-00002.gguf: tensor \"a\": there are two");
    write_part(second, 1, 2, 2, "b");
    write_part(first, 0, 2, 3, "a");
    assert_file_refused(first, "says 3 tensors, the 2 parts hold 2");
    const char *renamed = in_directory(dir, "renamed.gguf");
    assert_int_equal(rename(first, renamed), 0);
    assert_file_refused(renamed, "one of 2 parts");
    remove_directory(dir);
}

static void test_bad_paths(void **state)
{
    const char *dir = make_directory();
    assert_file_refused(in_directory(dir, "absent.gguf"), "cannot open: No such file");
    assert_file_refused(dir, "no config.json here: not a model directory");
    write_file(in_directory(dir, "empty.gguf"), "", 0);
    assert_file_refused(in_directory(dir, "empty.gguf"), "is empty");
    assert_int_equal(mkfifo(in_directory(dir, "pipe"), 0600), 0);
    assert_file_refused(in_directory(dir, "pipe"), "not a regular file");
    write_file(in_directory(dir, "m.safetensors"), "12345678{}", 10);
    assert_file_refused(in_directory(dir, "m.safetensors"), "give the directory");
    if (geteuid() != 0) { /* root may read everything */
        assert_int_equal(chmod(in_directory(dir, "empty.gguf"), 0), 0);
        assert_file_refused(in_directory(dir, "empty.gguf"), "Permission denied");
    }
    remove_directory(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sample),     cmocka_unit_test(test_lookups),
        cmocka_unit_test(test_truncated),  cmocka_unit_test(test_bit_flips),
        cmocka_unit_test(test_bad_header), cmocka_unit_test(test_bad_metadata),
        cmocka_unit_test(test_bad_arrays), cmocka_unit_test(test_bad_tensors),
        cmocka_unit_test(test_alignment),  cmocka_unit_test(test_stories),
        cmocka_unit_test(test_split),      cmocka_unit_test(test_bad_split),
        cmocka_unit_test(test_bad_paths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

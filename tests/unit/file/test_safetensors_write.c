/* test_safetensors_write.c - what is written can be read, and a write that fails leaves the old file alone.
 */
#include "support.h"

#include "file/file.h"
#include "file/safetensors_write.h"

#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

static const struct tensor_spec specs[] = {
    {"weight", DTYPE_BF16, 2, {3, 5}},
    {"scalar", DTYPE_F32, 0, {0}},
    {"codes \"\xc3\xa9\"", DTYPE_U32, 1, {4}},
};

enum { N_SPECS = 3, DATA_BYTES = 30 + 4 + 16 };

static int n_entries(const char *directory)
{
    DIR *d = opendir(directory);
    int n = 0;
    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n - 2; /* . and .. */
}

static void test_round_trip(void **state)
{
    const char *dir = make_directory(), *path = in_directory(dir, "model.safetensors");
    struct safetensors_writer *w;
    struct err err = {0};
    struct file *f;
    uint8_t data[DATA_BYTES];
    for (size_t i = 0; i < DATA_BYTES; i++)
        data[i] = (uint8_t)(i * 7);
    json_t *metadata = json_pack("{s:s}", "format", "pt");
    mode_t old = umask(022);
    assert_int_equal(safetensors_create(&w, path, specs, N_SPECS, metadata, &err), 0);
    assert_int_equal(access(path, F_OK), -1); /* not before it is complete */
    assert_int_equal(safetensors_write(w, data, 1, &err), 0);
    assert_int_equal(safetensors_write(w, data + 1, 40, &err), 0);
    assert_int_equal(safetensors_write(w, data + 41, DATA_BYTES - 41, &err), 0);
    assert_int_equal(safetensors_finish(w, true, &err), 0);
    umask(old);
    json_decref(metadata);
    assert_int_equal(n_entries(dir), 1);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0644);
    size_t n;
    char *bytes = read_file(path, &n);
    uint64_t header;
    memcpy(&header, bytes, 8);
    assert_int_equal(header % 8, 0);
    assert_int_equal(n, 8 + header + DATA_BYTES);
    assert_non_null(strstr(bytes + 8, "\"__metadata__\":{\"format\":\"pt\"}"));
    assert_int_equal(file_open_safetensors_memory(&f, bytes, n, NULL, 0, &err), 0);
    assert_int_equal(file_n_tensors(f), N_SPECS);
    size_t at = 0;
    for (size_t i = 0; i < N_SPECS; i++) {
        const struct tensor *t = file_tensor_at(f, i);
        assert_string_equal(t->name, specs[i].name);
        assert_int_equal(t->dtype, specs[i].dtype);
        assert_int_equal(t->n_dims, specs[i].n_dims);
        assert_memory_equal(t->shape, specs[i].shape, (size_t)t->n_dims * sizeof t->shape[0]);
        assert_memory_equal(t->data, data + at, t->bytes);
        at += t->bytes;
    }
    file_close(f);
    free(bytes);
    remove_directory(dir);
}

static void assert_content(const char *path, const char *expected)
{
    size_t n;
    char *bytes = read_file(path, &n);
    assert_string_equal(bytes, expected);
    free(bytes);
}

static void test_abandoned(void **state)
{
    const char *dir = make_directory(), *path = in_directory(dir, "m");
    struct safetensors_writer *w;
    struct err err = {0};
    write_file(path, "old", 3);
    assert_int_equal(safetensors_create(&w, path, specs, N_SPECS, NULL, &err), 0);
    assert_int_equal(n_entries(dir), 2);
    assert_int_equal(safetensors_finish(w, false, &err), 0);
    assert_int_equal(n_entries(dir), 1);
    assert_content(path, "old");
    remove_directory(dir);
}

/* The stand-in for a full disk: no file may grow beyond `bytes`. */
static void limit_file_size(rlim_t bytes)
{
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static void test_full_disk(void **state)
{
    const char *dir = make_directory(), *path = in_directory(dir, "m");
    const struct tensor_spec large = {"large", DTYPE_F32, 1, {25000}};
    static const uint8_t data[100000];
    struct safetensors_writer *w;
    struct err err = {0};
    write_file(path, "old", 3);
    signal(SIGXFSZ, SIG_IGN);
    limit_file_size(20000);
    int rc = safetensors_create(&w, path, &large, 1, NULL, &err);
    int wrote = rc ? 0 : safetensors_write(w, data, sizeof data, &err);
    struct err late = {0};
    int finished = rc ? 0 : safetensors_finish(w, true, &late);
    struct err whole = {0};
    int small = file_write_atomically(path, data, sizeof data, &whole);
    limit_file_size(RLIM_INFINITY); /* before anything is asserted: cmocka writes too */
    assert_int_equal(rc, 0);
    assert_fault(wrote, &err, "cannot write: File too large");
    assert_fault(finished, &late, "an earlier write failed");
    assert_fault(small, &whole, "cannot write: File too large");
    assert_int_equal(n_entries(dir), 1);
    assert_content(path, "old");
    remove_directory(dir);
}

/* The same, but seen only when the last buffer is flushed. */
static void test_full_at_the_end(void **state)
{
    const char *dir = make_directory(), *path = in_directory(dir, "m");
    struct err err = {0};
    write_file(path, "old", 3);
    signal(SIGXFSZ, SIG_IGN);
    limit_file_size(10);
    int rc = file_write_atomically(path, "twelve bytes", 12, &err);
    limit_file_size(RLIM_INFINITY);
    assert_fault(rc, &err, "cannot write: File too large");
    assert_int_equal(n_entries(dir), 1);
    assert_content(path, "old");
    remove_directory(dir);
}

static void test_bad_requests(void **state)
{
    const char *dir = make_directory();
    const struct tensor_spec twins[] = {{"t", DTYPE_U8, 1, {1}}, {"t", DTYPE_U8, 1, {1}}};
    const struct tensor_spec not_utf8 = {"\xff", DTYPE_U8, 1, {1}};
    struct safetensors_writer *w;
    struct err err = {0};
    assert_fault(safetensors_create(&w, in_directory(dir, "m"), twins, 2, NULL, &err), &err,
                 "two of this name");
    assert_null(w);
    assert_fault(safetensors_create(&w, in_directory(dir, "m"), &not_utf8, 1, NULL, &err), &err, "UTF-8");
    assert_fault(safetensors_create(&w, in_directory(dir, "absent/m"), specs, N_SPECS, NULL, &err), &err,
                 "absent/m: cannot write: No such file");
    assert_int_equal(n_entries(dir), 0);
    assert_fault(file_write_atomically(dir, "x", 1, &err), &err, "cannot write: Is a directory");
    assert_int_equal(n_entries(dir), 0);
    remove_directory(dir);
}

static void test_small_file(void **state)
{
    const char *dir = make_directory(), *path = in_directory(dir, "config.json");
    struct err err = {0};
    write_file(path, "a longer old file", 17);
    assert_int_equal(file_write_atomically(path, "{}\n", 3, &err), 0);
    assert_content(path, "{}\n");
    assert_int_equal(n_entries(dir), 1);
    remove_directory(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),   cmocka_unit_test(test_abandoned),
        cmocka_unit_test(test_full_disk),    cmocka_unit_test(test_full_at_the_end),
        cmocka_unit_test(test_bad_requests), cmocka_unit_test(test_small_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

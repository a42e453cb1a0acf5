/* support.h - what the tests of src/file share: where data lie, temporary directories, memory that the
 * sanitizer guards to the byte. One thread. */
#ifndef UNIT_FILE_SUPPORT_H
#define UNIT_FILE_SUPPORT_H

/* cmocka.h wants these before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/err.h"
#include "file/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A path below the project's shared test data, in a static buffer; the test is skipped when it is not there.
 */
static inline const char *shared_data(const char *name)
{
    static char path[4096];
    const char *root = getenv("YOKE_DATA");
    snprintf(path, sizeof path, "%s/%s", root ? root : SOURCE_ROOT "/../shared/data", name);
    if (access(path, F_OK)) {
        print_message("skipped: %s is not there (set YOKE_DATA to the folder with the test data)\n", path);
        skip();
    }
    return path;
}

/* An empty directory, in a static buffer; remove_directory() ends it. */
static inline const char *make_directory(void)
{
    static char path[4096];
    const char *root = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/yoke-test-XXXXXX", root ? root : P_tmpdir);
    assert_non_null(mkdtemp(path));
    return path;
}

static inline void remove_directory(const char *path)
{
    char command[4200];
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    assert_int_equal(system(command), 0);
}

/* "directory/name" in a static buffer. */
static inline const char *in_directory(const char *directory, const char *name)
{
    static char path[8192];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static inline void write_file(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* Freed by the caller. */
static inline char *read_file(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    *n = (size_t)ftell(f);
    rewind(f);
    char *bytes = malloc(*n + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *n, f), *n);
    bytes[*n] = 0;
    fclose(f);
    return bytes;
}

/* A copy of exactly n bytes, so that one byte too far is seen. */
static inline void *exact_copy(const void *bytes, size_t n)
{
    void *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    if (n)
        memcpy(copy, bytes, n);
    return copy;
}

static inline void assert_fault(int rc, const struct err *err, const char *expected)
{
    assert_int_not_equal(rc, 0);
    assert_int_equal(rc, err->code);
    if (!strstr(err->message, expected) || strchr(err->message, '\n'))
        fail_msg("expected one line with \"%s\", got \"%s\"", expected, err->message);
}

/* Reads every byte that an opened file promises. */
static inline unsigned touch(const struct file *f)
{
    volatile unsigned sum = 0; /* volatile: the reading is the point */
    for (size_t i = 0; i < file_n_tensors(f); i++) {
        const struct tensor *t = file_tensor_at(f, i);
        for (size_t k = 0; k < t->bytes; k++)
            sum += t->data[k];
    }
    return sum;
}

#endif

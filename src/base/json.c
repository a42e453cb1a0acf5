/* json.c - see json.h. */
#include "base/json.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int json_parse(json_t **out, const char *text, size_t size, const char *name, struct err *err)
{
    json_error_t where;
    *out = json_loadb(text, size, JSON_ALLOW_NUL, &where);
    if (!*out)
        return err_set(err, ERR_INPUT, "%s: not valid JSON: line %d, column %d: %s", name, where.line,
                       where.column, where.text);
    if (!json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        return err_set(err, ERR_INPUT, "%s: a JSON object was expected at the top level", name);
    }
    return 0;
}

int json_read_file(json_t **out, const char *path, size_t max_bytes, struct err *err)
{
    *out = NULL;
    FILE *f = fopen(path, "rb");
    if (!f)
        return err_set(err, ERR_SYSTEM, "%s: cannot open: %s", path, strerror(errno));
    int rc;
    char *text = NULL;
    struct stat st;
    if (fstat(fileno(f), &st) || !S_ISREG(st.st_mode)) {
        rc = err_set(err, ERR_SYSTEM, "%s: not a regular file", path);
        goto out;
    }
    if ((uint64_t)st.st_size > max_bytes) {
        rc = err_set(err, ERR_INPUT, "%s: %lld bytes, more than the %zu allowed for this kind of file", path,
                     (long long)st.st_size, max_bytes);
        goto out;
    }
    size_t size = (size_t)st.st_size;
    text = malloc(size + 1);
    if (!text) {
        rc = err_set(err, ERR_SYSTEM, "%s: out of memory (%zu bytes)", path, size);
        goto out;
    }
    if (fread(text, 1, size, f) != size) {
        rc = err_set(err, ERR_SYSTEM, "%s: cannot read: %s", path, ferror(f) ? strerror(errno) : "it shrank");
        goto out;
    }
    rc = json_parse(out, text, size, path, err);
out:
    free(text);
    fclose(f);
    return rc;
}

int json_get_int(const json_t *object, const char *key, int64_t fallback, int64_t min, int64_t max,
                 int64_t *out, struct err *err)
{
    const json_t *v = json_object_get(object, key);
    *out = fallback;
    if (!v || json_is_null(v))
        return 0;
    if (!json_is_integer(v))
        return err_set(err, ERR_INPUT, "\"%s\" must be an integer", key);
    int64_t n = json_integer_value(v);
    if (n < min || n > max)
        return err_set(err, ERR_INPUT, "\"%s\" is %lld, outside [%lld, %lld]", key, (long long)n,
                       (long long)min, (long long)max);
    *out = n;
    return 0;
}

int json_get_double(const json_t *object, const char *key, double fallback, double *out, struct err *err)
{
    const json_t *v = json_object_get(object, key);
    *out = fallback;
    if (!v || json_is_null(v))
        return 0;
    if (!json_is_number(v))
        return err_set(err, ERR_INPUT, "\"%s\" must be a number", key);
    *out = json_number_value(v);
    if (!isfinite(*out))
        return err_set(err, ERR_INPUT, "\"%s\" is not a finite number", key);
    return 0;
}

int json_get_bool(const json_t *object, const char *key, int fallback, int *out, struct err *err)
{
    const json_t *v = json_object_get(object, key);
    *out = fallback;
    if (!v || json_is_null(v))
        return 0;
    if (!json_is_boolean(v))
        return err_set(err, ERR_INPUT, "\"%s\" must be true or false", key);
    *out = json_is_true(v);
    return 0;
}

int json_get_string(const json_t *object, const char *key, const char *fallback, const char **out,
                    struct err *err)
{
    const json_t *v = json_object_get(object, key);
    *out = fallback;
    if (!v || json_is_null(v))
        return 0;
    if (!json_is_string(v))
        return err_set(err, ERR_INPUT, "\"%s\" must be a string", key);
    *out = json_string_value(v);
    return 0;
}

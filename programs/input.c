/* input.c - see input.h. */
#include "input.h"
#include "command.h"
#include "report.h"

#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A text longer than this is no prompt and no evaluation text but a mistake (a device, a model file). */
enum { INPUT_MAX = 1 << 30 };

static int read_stream(FILE *f, const char *name, char **data, size_t *size)
{
    size_t capacity = 1 << 16, used = 0;
    char *bytes = malloc(capacity);

    for (;;) {
        if (!bytes)
            return report_error("%s: out of memory after %zu bytes", name, used);
        used += fread(bytes + used, 1, capacity - used - 1, f);
        if (ferror(f)) {
            free(bytes);
            return report_error("%s: %s", name, strerror(errno));
        }
        if (feof(f))
            break;
        if (used + 1 < capacity)
            continue;
        if (capacity >= INPUT_MAX) {
            free(bytes);
            return report_error("%s: longer than the %d MiB a text may have", name, INPUT_MAX >> 20);
        }
        capacity *= 2;
        char *more = realloc(bytes, capacity);
        if (!more)
            free(bytes);
        bytes = more;
    }
    bytes[used] = '\0';
    *data = bytes;
    *size = used;
    return EXIT_DONE;
}

int input_read(const char *path, char **data, size_t *size)
{
    if (strcmp(path, "-") == 0)
        return read_stream(stdin, "standard input", data, size);
    FILE *f = fopen(path, "rb");
    if (!f)
        return report_error("%s: %s", path, strerror(errno));
    int status = read_stream(f, path, data, size);
    fclose(f);
    return status;
}

static int ids_from_json(const char *name, const json_t *array, int32_t **ids, size_t *n)
{
    size_t count = json_array_size(array);

    if (!json_is_array(array))
        return report_error("%s: neither a list of token ids nor an object with a list named \"ids\"", name);
    *ids = malloc((count ? count : 1) * sizeof **ids);
    if (!*ids)
        return report_error("%s: out of memory for %zu ids", name, count);
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(array, i);
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id > INT32_MAX) {
            free(*ids);
            *ids = NULL;
            return report_error("%s: item %zu of the list is not a token id", name, i);
        }
        (*ids)[i] = (int32_t)id;
    }
    *n = count;
    return EXIT_DONE;
}

static int ids_from_file(const char *path, int32_t **ids, size_t *n)
{
    json_error_t error;
    char *data;
    size_t size;
    int status = input_read(path, &data, &size);

    if (status != EXIT_DONE)
        return status;
    json_t *root = json_loadb(data, size, 0, &error);
    free(data);
    if (!root)
        return report_error("%s: not JSON: %s (line %d)", path, error.text, error.line);
    status = ids_from_json(path, json_is_object(root) ? json_object_get(root, "ids") : root, ids, n);
    json_decref(root);
    return status;
}

int input_ids(const char *text, int32_t **ids, size_t *n)
{
    bool is_list = *text && text[strspn(text, "0123456789, ")] == '\0';

    if (!is_list)
        return ids_from_file(text, ids, n);

    /* the list is the inside of a JSON array */
    json_error_t error;
    size_t size = strlen(text) + 3;
    char *array = malloc(size);
    if (!array)
        return report_error("--ids: out of memory");
    snprintf(array, size, "[%s]", text);
    json_t *root = json_loads(array, 0, &error);
    free(array);
    if (!root) {
        report_error("--ids: '%s' is not a list such as 1,2,3", text);
        return EXIT_USAGE;
    }
    int status = ids_from_json("--ids", root, ids, n);
    json_decref(root);
    return status == EXIT_DONE ? EXIT_DONE : EXIT_USAGE;
}

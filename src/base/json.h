/* json.h - reading JSON that strangers wrote, through jansson. Any thread.
 *
 * Nesting is limited by jansson (2048), NUL inside strings is allowed (tokenizers have it), invalid UTF-8 is
 * refused. The caller owns the returned value (json_decref). */
#ifndef BASE_JSON_H
#define BASE_JSON_H

#include "base/err.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

/* Parses `size` bytes; `name` is what errors call the text (a path). The top level must be an object. */
MUST_CHECK int json_parse(json_t **out, const char *text, size_t size, const char *name, struct err *err);

/* Reads and parses a whole file; refuses files over max_bytes. */
MUST_CHECK int json_read_file(json_t **out, const char *path, size_t max_bytes, struct err *err);

/* Members with a default. A member that is absent or null gives `fallback`; one of another type, or an
 * integer outside [min, max], is an error that names it. */
MUST_CHECK int json_get_int(const json_t *object, const char *key, int64_t fallback, int64_t min, int64_t max,
                            int64_t *out, struct err *err);
MUST_CHECK int json_get_double(const json_t *object, const char *key, double fallback, double *out,
                               struct err *err);
MUST_CHECK int json_get_bool(const json_t *object, const char *key, int fallback, int *out, struct err *err);
/* *out points into the object. */
MUST_CHECK int json_get_string(const json_t *object, const char *key, const char *fallback, const char **out,
                               struct err *err);

#endif

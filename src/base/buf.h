/* buf.h - a growing byte buffer. The owner calls buf_free(). Out of memory sets `failed` and drops further
 * bytes, so that callers check once at the end. Not shared between threads. */
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>

struct buf {
    char *data; /* NUL-terminated whenever non-NULL */
    size_t size, capacity;
    bool failed;
};

void buf_append(struct buf *b, const void *bytes, size_t n);
void buf_puts(struct buf *b, const char *text);
void buf_printf(struct buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
void buf_free(struct buf *b);

#endif

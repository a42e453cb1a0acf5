/* normalize.c - rewriting text before it is cut up: Unicode normal forms (utf8proc), prefixes, replacements;
 * see tokenizer_impl.h. Any thread. */
#include "text/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* Putting a run of combining marks in order costs its length squared in utf8proc. No text has more than a
 * few. */
enum { MAX_MARKS = 1024 };

void replace_all(struct buf *out, const char *text, size_t size, struct bytes from, struct bytes to)
{
    const char *end = text + size;
    while (text < end) {
        const char *hit = memmem(text, (size_t)(end - text), from.data, from.size);
        buf_append(out, text, (size_t)((hit ? hit : end) - text));
        if (!hit)
            return;
        buf_append(out, to.data, to.size);
        text = hit + from.size;
    }
}

static int normalize_span(utf8proc_option_t options, const char *text, size_t size, struct buf *out,
                          struct err *err)
{
    int marks = 0;
    for (size_t i = 0; i < size; i += utf8_length(text[i])) {
        marks = utf8proc_get_property((utf8proc_int32_t)utf8_read(text + i))->combining_class ? marks + 1 : 0;
        if (marks > MAX_MARKS)
            return err_set(err, ERR_INPUT, "the text has more than %d combining marks in a row", MAX_MARKS);
    }
    utf8proc_uint8_t *normal = NULL;
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)size, &normal,
                                      options | UTF8PROC_STABLE);
    if (n < 0)
        return err_set(err, n == UTF8PROC_ERROR_NOMEM ? ERR_SYSTEM : ERR_INPUT, "Unicode normalization: %s",
                       utf8proc_errmsg(n));
    buf_append(out, normal, (size_t)n);
    free(normal);
    return 0;
}

/* ASCII is its own normal form, and an ASCII character only ever combines with what follows it: everything
 * else is normalized in spans that begin with the ASCII character before them. */
static int normalize_unicode(utf8proc_option_t options, const char *text, size_t size, struct buf *out,
                             struct err *err)
{
    size_t done = 0;
    for (size_t i = 0; i < size;) {
        if (!((unsigned char)text[i] & 0x80)) {
            i++;
            continue;
        }
        size_t begin = i > done ? i - 1 : i;
        while (i < size && (unsigned char)text[i] & 0x80)
            i++;
        buf_append(out, text + done, begin - done);
        int rc = normalize_span(options, text + begin, i - begin, out, err);
        if (rc)
            return rc;
        done = i;
    }
    buf_append(out, text + done, size - done);
    return 0;
}

static int replace_matches(const struct normalize_step *s, struct matcher *m, const char *text, size_t size,
                           struct buf *out, struct err *err)
{
    struct search at = {0};
    size_t done = 0, begin, end;
    int found;
    while ((found = pattern_next(s->pattern, m, text, size, &at, &begin, &end, err)) > 0) {
        buf_append(out, text + done, begin - done);
        buf_append(out, s->to.data, s->to.size);
        done = end;
    }
    buf_append(out, text + done, size - done);
    return found;
}

static int run_step(const struct normalize_step *s, struct matcher *m, const char *text, size_t size,
                    struct buf *out, struct err *err)
{
    switch (s->kind) {
    case NORMALIZE_NFC:
        return normalize_unicode(UTF8PROC_COMPOSE, text, size, out, err);
    case NORMALIZE_NFD:
        return normalize_unicode(UTF8PROC_DECOMPOSE, text, size, out, err);
    case NORMALIZE_NFKC:
        return normalize_unicode(UTF8PROC_COMPOSE | UTF8PROC_COMPAT, text, size, out, err);
    case NORMALIZE_NFKD:
        return normalize_unicode(UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT, text, size, out, err);
    case NORMALIZE_PREPEND:
        if (size)
            buf_append(out, s->to.data, s->to.size);
        buf_append(out, text, size);
        return 0;
    case NORMALIZE_REPLACE:
        if (s->pattern)
            return replace_matches(s, m, text, size, out, err);
        replace_all(out, text, size, s->from, s->to);
        return 0;
    }
    return 0;
}

int normalize(const struct normalizer *n, struct matcher *m, const char *text, size_t size, struct buf *out,
              struct err *err)
{
    struct buf a = {0}, b = {0};
    int rc = 0;
    buf_append(&a, text, size);
    for (size_t i = 0; i < n->n && !rc; i++) {
        b.size = 0;
        rc = run_step(&n->steps[i], m, a.data, a.size, &b, err);
        if (!rc && (a.failed || b.failed))
            rc = err_set(err, ERR_SYSTEM, "out of memory while normalizing text");
        if (!rc && b.size > 64 * size + (1 << 20)) /* replacements that grow what others made */
            rc = err_set(err, ERR_INPUT, "the tokenizer's normalizer makes the text far too long");
        struct buf swap = a;
        a = b;
        b = swap;
    }
    if (!rc)
        buf_append(out, a.data, a.size);
    buf_free(&a);
    buf_free(&b);
    return rc ? rc : out->failed ? err_set(err, ERR_SYSTEM, "out of memory while normalizing text") : 0;
}

struct normalize_step *normalizer_grow(struct normalizer *n)
{
    struct normalize_step *steps = realloc(n->steps, (n->n + 1) * sizeof *steps);
    if (!steps)
        return NULL;
    n->steps = steps;
    steps[n->n] = (struct normalize_step){0};
    return &steps[n->n++];
}

int bytes_copy(struct bytes *out, const char *data, size_t size, struct err *err)
{
    out->data = malloc(size + 1);
    if (!out->data)
        return err_set(err, ERR_SYSTEM, "out of memory");
    if (size)
        memcpy(out->data, data, size);
    out->data[size] = 0;
    out->size = size;
    return 0;
}

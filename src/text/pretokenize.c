/* pretokenize.c - cutting normalized text into the pieces that are merged separately; see tokenizer_impl.h.
 * Any thread, each with its own pieces and matcher. */
#include "text/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

void pieces_free(struct pieces *p)
{
    buf_free(&p->text);
    free(p->ends);
    *p = (struct pieces){0};
}

/* Ends a piece at the end of the text written so far. An empty piece is none. */
static int end_piece(struct pieces *p, struct err *err)
{
    if (p->text.failed)
        return err_set(err, ERR_SYSTEM, "out of memory while tokenizing");
    if (p->text.size == (p->n ? p->ends[p->n - 1] : 0))
        return 0;
    if (p->n == p->capacity) {
        size_t capacity = p->capacity ? p->capacity * 2 : 64;
        size_t *ends = realloc(p->ends, capacity * sizeof *ends);
        if (!ends)
            return err_set(err, ERR_SYSTEM, "out of memory while tokenizing");
        p->ends = ends;
        p->capacity = capacity;
    }
    p->ends[p->n++] = p->text.size;
    return 0;
}

int pieces_set(struct pieces *p, const char *text, size_t size, struct err *err)
{
    p->n = 0;
    p->text.size = 0;
    buf_append(&p->text, text, size);
    return end_piece(p, err);
}

struct span {
    size_t begin, end;
    bool match;
};

/* A cut in progress: spans come in order, the last one waits for what may be joined to it. */
struct cutter {
    const struct pretokenize_step *step;
    const char *text;
    struct pieces *out;
    struct err *err;
    struct span pending;
    bool last_match, any;
};

static int put_span(struct cutter *c, struct span s)
{
    if (c->step->behavior == SPLIT_REMOVED && s.match)
        return 0;
    buf_append(&c->out->text, c->text + s.begin, s.end - s.begin);
    return end_piece(c->out, c->err);
}

static int add_span(struct cutter *c, size_t begin, size_t end, bool match)
{
    match ^= c->step->invert;
    bool join = false;
    switch (c->step->behavior) {
    case SPLIT_CONTIGUOUS:
        join = match == c->last_match;
        break;
    case SPLIT_WITH_PREVIOUS:
        join = match && !c->last_match;
        break;
    case SPLIT_WITH_NEXT:
        join = !match && c->last_match;
        break;
    case SPLIT_ISOLATED:
    case SPLIT_REMOVED:
        break;
    }
    int rc = 0;
    if (c->any && join) {
        c->pending.end = end;
    } else {
        if (c->any)
            rc = put_span(c, c->pending);
        c->pending = (struct span){begin, end, match};
    }
    c->any = true;
    c->last_match = match;
    return rc;
}

static int find_next(const struct pretokenize_step *s, struct matcher *m, const char *text, size_t size,
                     struct search *at, size_t *begin, size_t *end, struct err *err)
{
    if (s->pattern)
        return pattern_next(s->pattern, m, text, size, at, begin, end, err);
    const char *hit = memmem(text + at->from, size - at->from, s->from.data, s->from.size);
    if (!hit)
        return 0;
    *begin = (size_t)(hit - text);
    *end = at->from = *begin + s->from.size;
    return 1;
}

static int split(const struct pretokenize_step *s, struct matcher *m, const char *text, size_t size,
                 struct pieces *out, struct err *err)
{
    struct cutter c = {.step = s, .text = text, .out = out, .err = err};
    struct search at = {0};
    size_t done = 0, begin, end;
    int rc = 0, found;
    while ((found = find_next(s, m, text, size, &at, &begin, &end, err)) > 0) {
        if (begin > done)
            rc = add_span(&c, done, begin, false);
        if (!rc)
            rc = add_span(&c, begin, end, true);
        if (rc)
            return rc;
        done = end;
    }
    if (found < 0)
        return found;
    if (done < size)
        rc = add_span(&c, done, size, false);
    if (!rc && c.any)
        rc = put_span(&c, c.pending);
    return rc;
}

static int run_on_piece(const struct pretokenize_step *s, struct matcher *m, const char *text, size_t size,
                        bool start, struct pieces *out, struct err *err)
{
    switch (s->kind) {
    case PRETOKENIZE_SPLIT:
        return split(s, m, text, size, out, err);
    case PRETOKENIZE_PREFIX:
        if ((start || !s->first_only) && (size < s->to.size || memcmp(text, s->to.data, s->to.size)))
            buf_append(&out->text, s->to.data, s->to.size);
        buf_append(&out->text, text, size);
        break;
    case PRETOKENIZE_REPLACE:
        replace_all(&out->text, text, size, s->from, s->to);
        break;
    case PRETOKENIZE_BYTES:
        for (size_t i = 0; i < size; i++)
            utf8_append(&out->text, byte_level_character((uint8_t)text[i]));
        break;
    }
    return end_piece(out, err);
}

int pretokenize(const struct pretokenizer *p, struct matcher *m, struct pieces *in, struct pieces *spare,
                bool start, struct err *err)
{
    for (size_t k = 0; k < p->n; k++) {
        spare->n = 0;
        spare->text.size = 0;
        size_t begin = 0;
        for (size_t i = 0; i < in->n; i++) {
            int rc = run_on_piece(&p->steps[k], m, in->text.data + begin, in->ends[i] - begin,
                                  start && i == 0, spare, err);
            if (rc)
                return rc;
            begin = in->ends[i];
        }
        struct pieces swap = *in;
        *in = *spare;
        *spare = swap;
    }
    return 0;
}

struct pretokenize_step *pretokenizer_grow(struct pretokenizer *p)
{
    struct pretokenize_step *steps = realloc(p->steps, (p->n + 1) * sizeof *steps);
    if (!steps)
        return NULL;
    p->steps = steps;
    steps[p->n] = (struct pretokenize_step){0};
    return &steps[p->n++];
}

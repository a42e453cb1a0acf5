/* decode.c - the bytes of one token; see tokenizer_impl.h. Any thread. */
#include "text/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

static void byte_fallback(const char *text, size_t size, struct buf *out)
{
    if (size == 6 && memcmp(text, "<0x", 3) == 0 && text[5] == '>' && hex_digit(text[3]) >= 0 &&
        hex_digit(text[4]) >= 0) {
        char byte = (char)(hex_digit(text[3]) * 16 + hex_digit(text[4]));
        buf_append(out, &byte, 1);
    } else {
        buf_append(out, text, size);
    }
}

/* A token with any character outside the byte-level alphabet (added tokens may have some) is its own text. */
static void byte_level(const char *text, size_t size, struct buf *out)
{
    size_t start = out->size;
    if (utf8_valid_bytes(text, size) != size) { /* an earlier step made bytes of it already */
        buf_append(out, text, size);
        return;
    }
    for (size_t i = 0; i < size; i += utf8_length(text[i])) {
        int byte = byte_level_byte(utf8_read(text + i));
        if (byte < 0) {
            out->size = start;
            buf_append(out, text, size);
            return;
        }
        char c = (char)byte;
        buf_append(out, &c, 1);
    }
}

static void run_step(const struct decode_step *s, const char *text, size_t size, bool first, struct buf *out)
{
    switch (s->kind) {
    case DECODE_REPLACE:
        replace_all(out, text, size, s->from, s->to);
        break;
    case DECODE_BYTE_FALLBACK:
        byte_fallback(text, size, out);
        break;
    case DECODE_BYTE_LEVEL:
        byte_level(text, size, out);
        break;
    case DECODE_STRIP:
        for (int64_t i = 0; (first || !s->first_only) && i < s->count && size >= s->from.size &&
                            memcmp(text, s->from.data, s->from.size) == 0;
             i++) {
            text += s->from.size;
            size -= s->from.size;
        }
        buf_append(out, text, size);
        break;
    case DECODE_DROP_FIRST:
        if (first)
            replace_all(out, text, size, s->from, (struct bytes){0});
        else
            buf_append(out, text, size);
        break;
    case DECODE_SPACE_BETWEEN:
        if (!first)
            buf_puts(out, " ");
        buf_append(out, text, size);
        break;
    }
}

void decode_token(const struct decoder *d, const struct token *token, bool first, struct buf *out)
{
    if (token->flags & TOKEN_LITERAL || !d->n) {
        buf_append(out, token->text, token->size);
        return;
    }
    struct buf a = {0}, b = {0};
    const char *text = token->text;
    size_t size = token->size;
    for (size_t i = 0; i < d->n; i++) {
        struct buf *to = i + 1 == d->n ? out : i % 2 ? &b : &a;
        if (to != out)
            to->size = 0;
        run_step(&d->steps[i], text, size, first, to);
        text = to->data;
        size = to->size;
    }
    out->failed |= a.failed | b.failed;
    buf_free(&a);
    buf_free(&b);
}

struct decode_step *decoder_grow(struct decoder *d)
{
    struct decode_step *steps = realloc(d->steps, (d->n + 1) * sizeof *steps);
    if (!steps)
        return NULL;
    d->steps = steps;
    steps[d->n] = (struct decode_step){0};
    return &steps[d->n++];
}

/* stream.c - see stream.h. */
#include "engine/stream.h"

#include <string.h>

/* Length of the UTF-8 character that begins at s; 0 when more bytes are needed; -1 when it is not UTF-8. */
static int character_length(const unsigned char *s, size_t n)
{
    if (s[0] < 0x80)
        return 1;
    int length = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return -1;
    for (int i = 1; i < length; i++) {
        if ((size_t)i >= n)
            return 0;
        /* the second byte rules out overlong forms, surrogates and values beyond U+10FFFF */
        unsigned char low = 0x80, high = 0xbf;
        if (i == 1) {
            low = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
            high = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
        }
        if (s[i] < low || s[i] > high)
            return -1;
    }
    return length;
}

static void drop_front(struct buf *b, size_t n)
{
    memmove(b->data, b->data + n, b->size - n);
    b->size -= n;
    b->data[b->size] = 0;
}

/* Moves whole characters from s->bytes to s->held; what is no UTF-8 becomes U+FFFD. */
static void assemble(struct stream *s, bool final)
{
    size_t at = 0;
    while (at < s->bytes.size) {
        int length = character_length((const unsigned char *)s->bytes.data + at, s->bytes.size - at);
        if (length == 0 && !final)
            break;
        if (length > 0)
            buf_append(&s->held, s->bytes.data + at, (size_t)length);
        else
            buf_puts(&s->held, "\xef\xbf\xbd");
        at += length > 0 ? (size_t)length : 1;
    }
    if (at)
        drop_front(&s->bytes, at);
}

static void release(struct stream *s, size_t n, struct buf *out)
{
    if (!n)
        return;
    buf_append(out, s->held.data, n);
    drop_front(&s->held, n);
}

/* Where the first stop text begins in held; held.size when none does. */
static size_t find_stop(const struct stream *s)
{
    size_t first = s->held.size;
    for (size_t i = 0; i < s->n_stop; i++) {
        size_t length = strlen(s->stop[i]);
        const char *hit = memmem(s->held.data, s->held.size, s->stop[i], length);
        if (hit && (size_t)(hit - s->held.data) < first)
            first = (size_t)(hit - s->held.data);
    }
    return first;
}

/* Bytes at the end of held that are the beginning of a stop text. */
static size_t possible_stop(const struct stream *s)
{
    size_t most = 0;
    for (size_t i = 0; i < s->n_stop; i++) {
        size_t length = strlen(s->stop[i]);
        for (size_t n = length - 1 < s->held.size ? length - 1 : s->held.size; n > most; n--)
            if (!memcmp(s->held.data + s->held.size - n, s->stop[i], n))
                most = n;
    }
    return most;
}

bool stream_push(struct stream *s, int32_t token, struct buf *out)
{
    if (!s->tokenizer)
        return false;
    tokenizer_piece(s->tokenizer, token, s->first, false, &s->bytes);
    if (!tokenizer_is_special(s->tokenizer, token))
        s->first = false;
    assemble(s, false);
    if (!s->held.size)
        return false;
    size_t stop = find_stop(s);
    if (stop < s->held.size) {
        release(s, stop, out);
        return true;
    }
    release(s, s->held.size - possible_stop(s), out);
    return false;
}

void stream_finish(struct stream *s, struct buf *out)
{
    assemble(s, true);
    release(s, s->held.size, out);
}

void stream_free(struct stream *s)
{
    buf_free(&s->bytes);
    buf_free(&s->held);
}

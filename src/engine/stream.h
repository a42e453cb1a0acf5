/* stream.h - tokens of one generation to text: whole UTF-8 characters only, and nothing that may turn out to
 * be the beginning of a stop text. Engine thread only. */
#ifndef ENGINE_STREAM_H
#define ENGINE_STREAM_H

#include "text/tokenizer.h"

struct stream {
    const struct tokenizer *tokenizer; /* may be NULL: no text */
    bool first;                        /* nothing but special tokens came before */
    char *const *stop;                 /* borrowed */
    size_t n_stop;
    struct buf bytes; /* of an unfinished character */
    struct buf held;  /* whole characters that may begin a stop text */
};

/* Adds one token. Appends to *out the text that is now certain. Returns true when a stop text was completed:
 * the text before it has been appended, nothing more will come. */
bool stream_push(struct stream *s, int32_t token, struct buf *out);
/* The end without a stop text: appends what was held back. */
void stream_finish(struct stream *s, struct buf *out);
void stream_free(struct stream *s);

#endif

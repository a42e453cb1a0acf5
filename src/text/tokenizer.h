/* tokenizer.h - text to token ids and back: byte-level BPE (GPT-2, Llama 3, Qwen, this project's demo) and
 * SentencePiece BPE with scores and byte fallback (Llama 2, Mistral v1, Phi-3, stories260K), read from a
 * Hugging Face tokenizer.json or from GGUF metadata. Equal, id for id, to the `tokenizers` library and to
 * llama.cpp on the vectors in tests. Immutable after open: any thread. */
#ifndef TEXT_TOKENIZER_H
#define TEXT_TOKENIZER_H

#include "base/buf.h"
#include "base/err.h"
#include "file/file.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer;

/* From the model's own files: GGUF metadata, or tokenizer.json (+ tokenizer_config.json) beside the weights.
 * A directory without a tokenizer.json, or a GGUF file without tokenizer.ggml.model, gives *out = NULL and
 * success: such a model takes ids only. */
MUST_CHECK int tokenizer_open(struct tokenizer **out, const struct file *f, struct err *err);
/* From a tokenizer.json in memory (tests, fuzzing). config: tokenizer_config.json or NULL. */
MUST_CHECK int tokenizer_open_json(struct tokenizer **out, const char *json, size_t size, const char *config,
                                   size_t config_size, const char *name, struct err *err);
void tokenizer_close(struct tokenizer *t);

struct ids {
    int32_t *data;
    size_t n, capacity;
};
void ids_free(struct ids *ids);

enum tokenize_flags {
    TOKENIZE_BOS = 1, /* put the begin token(s) first (and the end token last) if the model's files say so */
    TOKENIZE_SPECIAL = 2, /* text that spells a special token becomes that token */
};
/* Appends the ids of text (size bytes; must be valid UTF-8, else ERR_INPUT with the byte's position). */
MUST_CHECK int tokenizer_encode(const struct tokenizer *t, const char *text, size_t size, int flags,
                                struct ids *out, struct err *err);

/* Bytes of one token as they continue a text (may be part of a UTF-8 character; special tokens give no bytes
 * unless `special`; an id out of range gives none). first: nothing was decoded before it (SentencePiece then
 * drops its leading space, where the model's files say so). */
void tokenizer_piece(const struct tokenizer *t, int32_t id, bool first, bool special, struct buf *out);
/* All ids at once. Invalid UTF-8 in the result stays as it is. */
void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool special, struct buf *out);

int32_t tokenizer_n_tokens(const struct tokenizer *t);
int32_t tokenizer_bos(const struct tokenizer *t); /* -1 when the model has none */
/* Ids that end a generation: eos, and end-of-turn tokens the files name. */
size_t tokenizer_eos(const struct tokenizer *t, const int32_t **ids);
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);
/* Id of an exact token text, -1 when there is none. */
int32_t tokenizer_id(const struct tokenizer *t, const char *text, size_t size);

#endif

/* tokenizer.c - see tokenizer.h: opening, closing, and the chain from text to ids and back. Owns the parts
 * declared in tokenizer_impl.h. */
#include "text/tokenizer.h"

#include "text/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_JSON_BYTES = 256 << 20 };

void tokenizer_close(struct tokenizer *t)
{
    if (!t)
        return;
    vocab_free(&t->vocab);
    added_free(&t->added);
    added_free(&t->added_normalized);
    for (size_t i = 0; i < t->normalizer.n; i++) {
        free(t->normalizer.steps[i].from.data);
        free(t->normalizer.steps[i].to.data);
        pattern_free(t->normalizer.steps[i].pattern);
    }
    free(t->normalizer.steps);
    for (size_t i = 0; i < t->pretokenizer.n; i++) {
        free(t->pretokenizer.steps[i].from.data);
        free(t->pretokenizer.steps[i].to.data);
        pattern_free(t->pretokenizer.steps[i].pattern);
    }
    free(t->pretokenizer.steps);
    pair_map_free(&t->bpe.merges);
    free(t->bpe.ranks);
    for (size_t i = 0; i < t->decoder.n; i++) {
        free(t->decoder.steps[i].from.data);
        free(t->decoder.steps[i].to.data);
    }
    free(t->decoder.steps);
    free(t);
}

static struct tokenizer *new_tokenizer(struct err *err)
{
    struct tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        err_set(err, ERR_SYSTEM, "out of memory for a tokenizer");
        return NULL;
    }
    t->bos = t->bpe.unk = -1;
    return t;
}

int tokenizer_open_json(struct tokenizer **out, const char *json, size_t size, const char *config,
                        size_t config_size, const char *name, struct err *err)
{
    *out = NULL;
    json_t *root = NULL, *config_root = NULL;
    struct tokenizer *t = new_tokenizer(err);
    int rc = t ? json_parse(&root, json, size, name, err) : ERR_SYSTEM;
    if (!rc && config)
        rc = json_parse(&config_root, config, config_size, "tokenizer_config.json", err);
    if (!rc) {
        rc = tokenizer_read_json(t, root, config_root, err);
        if (rc)
            err_prefix(err, "%s", name);
    }
    json_decref(root);
    json_decref(config_root);
    if (rc)
        tokenizer_close(t);
    else
        *out = t;
    return rc;
}

/* Parses a file beside the weights; *out is NULL when there is none. */
static int read_sibling(json_t **out, const struct file *f, const char *name, struct err *err)
{
    *out = NULL;
    char *path = file_sibling(f, name);
    int rc = path ? json_read_file(out, path, MAX_JSON_BYTES, err) : 0;
    free(path);
    return rc;
}

/* "eos_token_id" of config.json and generation_config.json: a number or a list of them. */
static void add_eos_from(struct tokenizer *t, const json_t *object)
{
    const json_t *v = json_object_get(object, "eos_token_id");
    if (json_is_integer(v))
        tokenizer_add_eos(t, json_integer_value(v));
    for (size_t i = 0; i < json_array_size(v); i++)
        if (json_is_integer(json_array_get(v, i)))
            tokenizer_add_eos(t, json_integer_value(json_array_get(v, i)));
}

static int open_directory(struct tokenizer *t, const struct file *f, const json_t *root, struct err *err)
{
    json_t *config = NULL, *generation = NULL;
    int rc = read_sibling(&config, f, "tokenizer_config.json", err);
    if (!rc)
        rc = read_sibling(&generation, f, "generation_config.json", err);
    if (!rc) {
        rc = tokenizer_read_json(t, root, config, err);
        if (rc)
            err_prefix(err, "%s/tokenizer.json", file_path(f));
    }
    if (!rc) {
        add_eos_from(t, generation);
        add_eos_from(t, file_config(f));
    }
    json_decref(config);
    json_decref(generation);
    return rc;
}

int tokenizer_open(struct tokenizer **out, const struct file *f, struct err *err)
{
    *out = NULL;
    json_t *root = NULL;
    bool gguf = file_kind(f) == FILE_GGUF;
    if (!gguf) {
        int rc = read_sibling(&root, f, "tokenizer.json", err);
        if (rc || !root)
            return rc;
    } else if (!file_gguf_value(f, "tokenizer.ggml.model")) {
        return 0;
    }
    struct tokenizer *t = new_tokenizer(err);
    int rc = ERR_SYSTEM;
    if (t && gguf) {
        rc = tokenizer_read_gguf(t, f, err);
        if (rc)
            err_prefix(err, "%s", file_path(f));
    } else if (t) {
        rc = open_directory(t, f, root, err);
    }
    json_decref(root);
    if (rc)
        tokenizer_close(t);
    else
        *out = t;
    return rc;
}

void tokenizer_add_eos(struct tokenizer *t, int64_t id)
{
    if (id < 0 || id >= t->vocab.n || !t->vocab.tokens[id].flags || t->n_eos == TOKENIZER_MAX_EOS)
        return;
    for (size_t i = 0; i < t->n_eos; i++)
        if (t->eos[i] == id)
            return;
    t->eos[t->n_eos++] = (int32_t)id;
}

void tokenizer_add_known_eos(struct tokenizer *t)
{
    static const char *const names[] = {
        "<|eot_id|>", "<|eom_id|>",    "<|eot|>",       "<|im_end|>",      "<|end|>",
        "<|return|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|end_of_turn|>",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int32_t id = vocab_find(&t->vocab, names[i], strlen(names[i]));
        if (id >= 0 && t->vocab.tokens[id].flags & TOKEN_SPECIAL)
            tokenizer_add_eos(t, id);
    }
}

/* ---- text to ids ---- */

/* What one encoding writes. */
struct encoding {
    const struct tokenizer *t;
    struct matcher *matcher;
    struct bpe_work work;
    struct pieces pieces, spare;
    struct ids *out;
    struct err *err;
    bool special;
};

/* Normalized text without added tokens. start: it begins the whole text. */
static int encode_plain(struct encoding *e, const char *text, size_t size, bool start)
{
    const struct tokenizer *t = e->t;
    int rc = pieces_set(&e->pieces, text, size, e->err);
    if (!rc)
        rc = pretokenize(&t->pretokenizer, e->matcher, &e->pieces, &e->spare, start, e->err);
    size_t begin = 0;
    for (size_t i = 0; i < e->pieces.n && !rc; i++) {
        rc = bpe_encode(&t->bpe, &t->vocab, &e->work, e->pieces.text.data + begin, e->pieces.ends[i] - begin,
                        e->out, e->err);
        begin = e->pieces.ends[i];
    }
    return rc;
}

typedef int encode_fn(struct encoding *e, const char *text, size_t size, bool start);

/* Cuts text at the tokens in `added` and hands what lies between to `between`. */
static int encode_around(struct encoding *e, const struct added *added, const char *text, size_t size,
                         bool start, encode_fn *between)
{
    size_t from = 0;
    struct added_match m;
    int rc = 0;
    while (!rc && added_next(added, &e->t->vocab, text, size, from, e->special, &m)) {
        if (m.begin > from)
            rc = between(e, text + from, m.begin - from, start && from == 0);
        if (!rc)
            rc = ids_push(e->out, m.id, e->err);
        from = m.end;
    }
    if (!rc && from < size)
        rc = between(e, text + from, size - from, start && from == 0);
    return rc;
}

static int encode_raw(struct encoding *e, const char *text, size_t size, bool start)
{
    if (!e->t->normalizer.n)
        return encode_around(e, &e->t->added_normalized, text, size, start, encode_plain);
    struct buf normal = {0};
    int rc = normalize(&e->t->normalizer, e->matcher, text, size, &normal, e->err);
    if (!rc)
        rc = encode_around(e, &e->t->added_normalized, normal.data, normal.size, start, encode_plain);
    buf_free(&normal);
    return rc;
}

static int push_affix(const struct affix *a, struct ids *out, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; i < a->n && !rc; i++)
        rc = ids_push(out, a->ids[i], err);
    return rc;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t size, int flags, struct ids *out,
                     struct err *err)
{
    if (size >= 1 << 28) /* symbols and their positions are 32-bit, and normalizing may lengthen the text */
        return err_set(err, ERR_INPUT,
                       "the text has %zu bytes, more than the %d that can be tokenized at once", size,
                       1 << 28);
    size_t valid = utf8_valid_bytes(text, size);
    if (valid != size)
        return err_set(err, ERR_INPUT, "the text is not valid UTF-8 at byte %zu", valid);
    struct encoding e = {.t = t, .out = out, .err = err, .special = flags & TOKENIZE_SPECIAL};
    size_t n_before = out->n;
    int rc = matcher_open(&e.matcher, size, err);
    if (!rc && flags & TOKENIZE_BOS)
        rc = push_affix(&t->prefix, out, err);
    if (!rc)
        rc = encode_around(&e, &t->added, text, size, true, encode_raw);
    if (!rc && flags & TOKENIZE_BOS)
        rc = push_affix(&t->suffix, out, err);
    if (rc)
        out->n = n_before;
    matcher_close(e.matcher);
    bpe_work_free(&e.work);
    pieces_free(&e.pieces);
    pieces_free(&e.spare);
    return rc;
}

/* ---- ids to text ---- */

/* Whether a token is part of a text: it exists, and it is plain or specials are wanted. */
static bool is_shown(const struct tokenizer *t, int32_t id, bool special)
{
    return id >= 0 && id < t->vocab.n && t->vocab.tokens[id].flags &&
           (special || !tokenizer_is_special(t, id));
}

void tokenizer_piece(const struct tokenizer *t, int32_t id, bool first, bool special, struct buf *out)
{
    if (is_shown(t, id, special))
        decode_token(&t->decoder, &t->vocab.tokens[id], first, out);
}

void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool special, struct buf *out)
{
    bool first = true;
    for (size_t i = 0; i < n; i++) {
        tokenizer_piece(t, ids[i], first, special, out);
        first = first && !is_shown(t, ids[i], special);
    }
}

/* ---- facts ---- */

int32_t tokenizer_n_tokens(const struct tokenizer *t)
{
    return t->vocab.n;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

size_t tokenizer_eos(const struct tokenizer *t, const int32_t **ids)
{
    *ids = t->eos;
    return t->n_eos;
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->vocab.n && t->vocab.tokens[id].flags & TOKEN_SPECIAL;
}

int32_t tokenizer_id(const struct tokenizer *t, const char *text, size_t size)
{
    return vocab_find(&t->vocab, text, size);
}

/* tokenizer_json.c - reading a Hugging Face tokenizer.json (format: the `tokenizers` library) into the parts
 * of tokenizer_impl.h. A component, option or value that is not implemented is refused by its name: a
 * tokenizer that is almost right gives wrong answers quietly. Called at open, by one thread. */
#include "text/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_STEPS = 64, MAX_DEPTH = 8 };

static const char BYTE_LEVEL_PATTERN[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static int out_of_memory(struct err *err)
{
    return err_set(err, ERR_SYSTEM, "out of memory");
}

/* "type" of a component: *type, or an error that names `what`. */
static int get_type(const json_t *object, const char *what, const char **type, struct err *err)
{
    *type = json_string_value(json_object_get(object, "type"));
    return *type ? 0 : err_set(err, ERR_INPUT, "%s: an object with a \"type\" was expected", what);
}

static int get_bool(const json_t *object, const char *key, bool fallback, bool *out, struct err *err)
{
    int value;
    int rc = json_get_bool(object, key, fallback, &value, err);
    *out = value;
    return rc;
}

/* A string member; required when fallback is NULL. */
static int get_text(const json_t *object, const char *key, const char *fallback, struct bytes *out,
                    struct err *err)
{
    const json_t *v = json_object_get(object, key);
    if (!v && fallback)
        return bytes_copy(out, fallback, strlen(fallback), err);
    if (!json_is_string(v))
        return err_set(err, ERR_INPUT, "\"%s\" must be a string", key);
    return bytes_copy(out, json_string_value(v), json_string_length(v), err);
}

/* {"String": s} gives *literal, {"Regex": s} gives *pattern. */
static int get_pattern(const json_t *object, struct bytes *literal, struct pattern **pattern, struct err *err)
{
    const json_t *v = json_object_get(object, "pattern");
    const json_t *regex = json_object_get(v, "Regex"), *text = json_object_get(v, "String");
    if (json_is_string(regex) && !text)
        return pattern_compile(pattern, json_string_value(regex), json_string_length(regex), err);
    if (json_is_string(v))
        text = v;
    if (!json_is_string(text) || regex || json_string_length(text) == 0)
        return err_set(err, ERR_INPUT, "\"pattern\" must be {\"String\": …} (not empty) or {\"Regex\": …}");
    return bytes_copy(literal, json_string_value(text), json_string_length(text), err);
}

/* ---- normalizer ---- */

static int read_normalizer(struct normalizer *n, const json_t *v, int depth, struct err *err)
{
    if (!v || json_is_null(v))
        return 0;
    const char *type;
    int rc = get_type(v, "normalizer", &type, err);
    if (rc)
        return rc;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(v, "normalizers");
        if (!json_is_array(list) || depth == MAX_DEPTH)
            return err_set(err, ERR_INPUT, "\"normalizers\" must be a list, nested at most %d deep",
                           MAX_DEPTH);
        for (size_t i = 0; i < json_array_size(list) && !rc; i++)
            rc = read_normalizer(n, json_array_get(list, i), depth + 1, err);
        return rc;
    }
    static const struct {
        const char *name;
        enum normalize_kind kind;
    } kinds[] = {{"NFC", NORMALIZE_NFC},   {"NFD", NORMALIZE_NFD},         {"NFKC", NORMALIZE_NFKC},
                 {"NFKD", NORMALIZE_NFKD}, {"Prepend", NORMALIZE_PREPEND}, {"Replace", NORMALIZE_REPLACE}};
    size_t k = 0, n_kinds = sizeof kinds / sizeof *kinds;
    while (k < n_kinds && strcmp(type, kinds[k].name))
        k++;
    if (k == n_kinds)
        return err_set(err, ERR_INPUT, "normalizer \"%s\" is not supported", type);
    struct normalize_step *s = n->n < MAX_STEPS ? normalizer_grow(n) : NULL;
    if (!s)
        return err_set(err, ERR_INPUT, "more than %d normalizers", MAX_STEPS);
    s->kind = kinds[k].kind;
    if (s->kind == NORMALIZE_PREPEND)
        return get_text(v, "prepend", NULL, &s->to, err);
    if (s->kind == NORMALIZE_REPLACE) {
        rc = get_pattern(v, &s->from, &s->pattern, err);
        return rc ? rc : get_text(v, "content", NULL, &s->to, err);
    }
    return 0;
}

/* ---- pre-tokenizer ---- */

static int add_step(struct pretokenizer *p, enum pretokenize_kind kind, struct pretokenize_step **out,
                    struct err *err)
{
    *out = p->n < MAX_STEPS ? pretokenizer_grow(p) : NULL;
    if (!*out)
        return err_set(err, ERR_INPUT, "more than %d pre-tokenizers", MAX_STEPS);
    (*out)->kind = kind;
    return 0;
}

static int add_split(struct pretokenizer *p, const char *regex, enum split_behavior behavior, bool invert,
                     struct err *err)
{
    struct pretokenize_step *s;
    int rc = add_step(p, PRETOKENIZE_SPLIT, &s, err);
    if (rc)
        return rc;
    s->behavior = behavior;
    s->invert = invert;
    return pattern_compile(&s->pattern, regex, strlen(regex), err);
}

static int get_behavior(const json_t *v, const char *fallback, enum split_behavior *out, struct err *err)
{
    static const char *const names[] = {
        [SPLIT_ISOLATED] = "Isolated",        [SPLIT_REMOVED] = "Removed",
        [SPLIT_CONTIGUOUS] = "Contiguous",    [SPLIT_WITH_PREVIOUS] = "MergedWithPrevious",
        [SPLIT_WITH_NEXT] = "MergedWithNext",
    };
    const char *name;
    int rc = json_get_string(v, "behavior", fallback, &name, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = (enum split_behavior)i;
            return 0;
        }
    }
    return err_set(err, ERR_INPUT, "split behavior \"%s\" is not supported", name);
}

static int read_split(struct pretokenizer *p, const json_t *v, struct err *err)
{
    struct pretokenize_step *s;
    int rc = add_step(p, PRETOKENIZE_SPLIT, &s, err);
    if (!rc)
        rc = get_behavior(v, "", &s->behavior, err);
    if (!rc)
        rc = get_bool(v, "invert", false, &s->invert, err);
    return rc ? rc : get_pattern(v, &s->from, &s->pattern, err);
}

static int read_byte_level(struct pretokenizer *p, const json_t *v, struct err *err)
{
    bool prefix, regex;
    struct pretokenize_step *s;
    int rc = get_bool(v, "add_prefix_space", true, &prefix, err);
    if (!rc)
        rc = get_bool(v, "use_regex", true, &regex, err);
    if (!rc && prefix) {
        rc = add_step(p, PRETOKENIZE_PREFIX, &s, err);
        if (!rc)
            rc = bytes_copy(&s->to, " ", 1, err);
    }
    if (!rc && regex)
        rc = add_split(p, BYTE_LEVEL_PATTERN, SPLIT_ISOLATED, false, err);
    return rc ? rc : add_step(p, PRETOKENIZE_BYTES, &s, err);
}

/* The replacement character and the prefix rule, which the pre-tokenizer and the decoder share. */
static int get_metaspace(const json_t *v, struct bytes *replacement, const char **scheme, struct err *err)
{
    bool old_prefix;
    int rc = get_text(v, "replacement", "\xe2\x96\x81", replacement, err);
    if (!rc && (replacement->size == 0 || utf8_length(replacement->data[0]) != replacement->size))
        rc = err_set(err, ERR_INPUT, "Metaspace: \"replacement\" must be one character");
    if (!rc) /* files older than prepend_scheme */
        rc = get_bool(v, "add_prefix_space", true, &old_prefix, err);
    if (!rc)
        rc = json_get_string(v, "prepend_scheme", old_prefix ? "always" : "never", scheme, err);
    if (!rc && strcmp(*scheme, "always") && strcmp(*scheme, "first") && strcmp(*scheme, "never"))
        rc = err_set(err, ERR_INPUT, "Metaspace: prepend_scheme \"%s\" is not supported", *scheme);
    return rc;
}

static int read_metaspace(struct pretokenizer *p, const json_t *v, struct err *err)
{
    struct pretokenize_step *s;
    struct bytes mark = {0};
    const char *scheme;
    bool cut;
    int rc = get_metaspace(v, &mark, &scheme, err);
    if (!rc)
        rc = get_bool(v, "split", true, &cut, err);
    if (!rc)
        rc = add_step(p, PRETOKENIZE_REPLACE, &s, err);
    if (!rc)
        rc = bytes_copy(&s->from, " ", 1, err);
    if (!rc)
        rc = bytes_copy(&s->to, mark.data, mark.size, err);
    if (!rc && strcmp(scheme, "never")) {
        rc = add_step(p, PRETOKENIZE_PREFIX, &s, err);
        if (!rc) {
            s->first_only = strcmp(scheme, "first") == 0;
            rc = bytes_copy(&s->to, mark.data, mark.size, err);
        }
    }
    if (!rc && cut) {
        rc = add_step(p, PRETOKENIZE_SPLIT, &s, err);
        if (!rc) {
            s->behavior = SPLIT_WITH_NEXT;
            rc = bytes_copy(&s->from, mark.data, mark.size, err);
        }
    }
    free(mark.data);
    return rc;
}

static int read_pretokenizer(struct pretokenizer *p, const json_t *v, int depth, struct err *err)
{
    if (!v || json_is_null(v))
        return 0;
    const char *type;
    int rc = get_type(v, "pre_tokenizer", &type, err);
    if (rc)
        return rc;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(v, "pretokenizers");
        if (!json_is_array(list) || depth == MAX_DEPTH)
            return err_set(err, ERR_INPUT, "\"pretokenizers\" must be a list, nested at most %d deep",
                           MAX_DEPTH);
        for (size_t i = 0; i < json_array_size(list) && !rc; i++)
            rc = read_pretokenizer(p, json_array_get(list, i), depth + 1, err);
        return rc;
    }
    if (strcmp(type, "Split") == 0)
        return read_split(p, v, err);
    if (strcmp(type, "ByteLevel") == 0)
        return read_byte_level(p, v, err);
    if (strcmp(type, "Metaspace") == 0)
        return read_metaspace(p, v, err);
    if (strcmp(type, "Whitespace") == 0)
        return add_split(p, "\\w+|[^\\p{L}\\p{M}\\p{Nd}\\p{Pc}\\s]+", SPLIT_REMOVED, true, err);
    if (strcmp(type, "WhitespaceSplit") == 0)
        return add_split(p, "\\s+", SPLIT_REMOVED, false, err);
    if (strcmp(type, "Digits") == 0) {
        bool single;
        rc = get_bool(v, "individual_digits", false, &single, err);
        return rc ? rc : add_split(p, "\\p{N}", single ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, false, err);
    }
    if (strcmp(type, "Punctuation") == 0) {
        enum split_behavior behavior = SPLIT_ISOLATED;
        rc = get_behavior(v, "Isolated", &behavior, err);
        return rc ? rc : add_split(p, "[\\p{P}$+<=>^`|~]", behavior, false, err);
    }
    return err_set(err, ERR_INPUT, "pre_tokenizer \"%s\" is not supported", type);
}

/* ---- decoder ---- */

static int add_decode(struct decoder *d, enum decode_kind kind, struct decode_step **out, struct err *err)
{
    *out = d->n < MAX_STEPS ? decoder_grow(d) : NULL;
    if (!*out)
        return err_set(err, ERR_INPUT, "more than %d decoders", MAX_STEPS);
    (*out)->kind = kind;
    return 0;
}

static int read_decode_replace(struct decoder *d, const json_t *v, struct err *err)
{
    struct decode_step *s;
    struct pattern *regex = NULL;
    int rc = add_decode(d, DECODE_REPLACE, &s, err);
    if (!rc)
        rc = get_pattern(v, &s->from, &regex, err);
    if (regex)
        rc = err_set(err, ERR_INPUT, "a decoder \"Replace\" with a regular expression is not supported");
    pattern_free(regex);
    return rc ? rc : get_text(v, "content", NULL, &s->to, err);
}

static int read_decode_strip(struct decoder *d, const json_t *v, bool fused, struct err *err)
{
    struct decode_step *s;
    int64_t stop;
    int rc = json_get_int(v, "stop", 0, 0, INT32_MAX, &stop, err);
    if (!rc && stop)
        return err_set(err, ERR_INPUT, "a decoder \"Strip\" with a \"stop\" other than 0 is not supported");
    if (!rc)
        rc = add_decode(d, DECODE_STRIP, &s, err);
    if (!rc)
        rc = json_get_int(v, "start", 0, 0, INT32_MAX, &s->count, err);
    if (!rc)
        rc = get_text(v, "content", NULL, &s->from, err);
    if (!rc && s->from.size == 0)
        rc = err_set(err, ERR_INPUT, "a decoder \"Strip\" of nothing");
    if (!rc)
        s->first_only = fused;
    return rc;
}

static int read_decode_metaspace(struct decoder *d, const json_t *v, struct err *err)
{
    struct bytes mark = {0};
    const char *scheme;
    struct decode_step *s;
    int rc = get_metaspace(v, &mark, &scheme, err);
    if (!rc && strcmp(scheme, "never")) {
        rc = add_decode(d, DECODE_DROP_FIRST, &s, err);
        if (!rc)
            rc = bytes_copy(&s->from, mark.data, mark.size, err);
    }
    if (!rc)
        rc = add_decode(d, DECODE_REPLACE, &s, err);
    if (!rc)
        rc = bytes_copy(&s->from, mark.data, mark.size, err);
    if (!rc)
        rc = bytes_copy(&s->to, " ", 1, err);
    free(mark.data);
    return rc;
}

/* fused: a Fuse came before, so that steps no longer see single tokens. */
static int read_decoder(struct decoder *d, const json_t *v, int depth, bool *fused, struct err *err)
{
    const char *type;
    struct decode_step *s;
    int rc = get_type(v, "decoder", &type, err);
    if (rc)
        return rc;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(v, "decoders");
        if (!json_is_array(list) || depth == MAX_DEPTH)
            return err_set(err, ERR_INPUT, "\"decoders\" must be a list, nested at most %d deep", MAX_DEPTH);
        for (size_t i = 0; i < json_array_size(list) && !rc; i++)
            rc = read_decoder(d, json_array_get(list, i), depth + 1, fused, err);
        return rc;
    }
    if (strcmp(type, "Fuse") == 0) {
        *fused = true;
        return 0;
    }
    if (strcmp(type, "Strip") == 0)
        return read_decode_strip(d, v, *fused, err);
    if (*fused)
        return err_set(err, ERR_INPUT, "decoder \"%s\" after \"Fuse\" is not supported", type);
    if (strcmp(type, "Replace") == 0)
        return read_decode_replace(d, v, err);
    if (strcmp(type, "ByteFallback") == 0)
        return add_decode(d, DECODE_BYTE_FALLBACK, &s, err);
    if (strcmp(type, "ByteLevel") == 0)
        return add_decode(d, DECODE_BYTE_LEVEL, &s, err);
    if (strcmp(type, "Metaspace") == 0)
        return read_decode_metaspace(d, v, err);
    return err_set(err, ERR_INPUT, "decoder \"%s\" is not supported", type);
}

/* ---- vocabulary ---- */

struct added_token {
    const char *text;
    size_t size;
    int64_t id;
    bool special, normalized, in_vocab;
    int flags;
};

static int read_added_token(const json_t *v, size_t i, struct added_token *out, struct err *err)
{
    bool lstrip, rstrip, word;
    const json_t *content = json_object_get(v, "content");
    int rc =
        json_is_string(content) && json_string_length(content) <= TOKEN_MAX_BYTES
            ? json_get_int(v, "id", -1, 0, VOCAB_MAX_TOKENS - 1, &out->id, err)
            : err_set(err, ERR_INPUT, "\"content\" must be a string of at most %d bytes", TOKEN_MAX_BYTES);
    if (!rc && out->id < 0)
        rc = err_set(err, ERR_INPUT, "there is no \"id\"");
    if (!rc)
        rc = get_bool(v, "special", false, &out->special, err);
    if (!rc)
        rc = get_bool(v, "normalized", !out->special, &out->normalized, err);
    if (!rc)
        rc = get_bool(v, "lstrip", false, &lstrip, err);
    if (!rc)
        rc = get_bool(v, "rstrip", false, &rstrip, err);
    if (!rc)
        rc = get_bool(v, "single_word", false, &word, err);
    if (rc)
        return err_prefix(err, "added_tokens, entry %zu", i);
    out->text = json_string_value(content);
    out->size = json_string_length(content);
    out->flags = (lstrip ? ADDED_LSTRIP : 0) | (rstrip ? ADDED_RSTRIP : 0) | (word ? ADDED_SINGLE_WORD : 0);
    return 0;
}

/* Sizes the vocabulary. Ids may have gaps, but a few entries must not ask for a huge table. */
static int size_vocab(struct vocab *v, const json_t *table, const struct added_token *added, size_t n_added,
                      struct err *err)
{
    size_t count = json_object_size(table) + n_added, bytes = 0;
    int64_t max = -1;
    const char *text;
    json_t *id;
    json_object_foreach((json_t *)table, text, id)
    {
        size_t size = strlen(text);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= VOCAB_MAX_TOKENS)
            return err_set(err, ERR_INPUT, "vocab: the id of \"%s\" is not an integer from 0 to %d", text,
                           VOCAB_MAX_TOKENS - 1);
        if (size > TOKEN_MAX_BYTES)
            return err_set(err, ERR_INPUT, "vocab: a token of %zu bytes is too long", size);
        bytes += size;
        max = json_integer_value(id) > max ? json_integer_value(id) : max;
    }
    for (size_t i = 0; i < n_added; i++) {
        bytes += added[i].size;
        max = added[i].id > max ? added[i].id : max;
    }
    if (json_object_size(table) == 0)
        return err_set(err, ERR_INPUT, "vocab: it is empty");
    if (max >= (int64_t)count * 4 + 1024)
        return err_set(err, ERR_INPUT, "vocab: id %lld is far too large for %zu tokens", (long long)max,
                       count);
    return vocab_init(v, max + 1, bytes, err);
}

static int fill_vocab(struct vocab *v, const json_t *table, struct added_token *added, size_t n_added,
                      struct err *err)
{
    const char *text;
    json_t *value;
    json_object_foreach((json_t *)table, text, value)
    {
        int32_t id = (int32_t)json_integer_value(value);
        if (v->tokens[id].flags)
            return err_set(err, ERR_INPUT, "vocab: id %d is both \"%.*s\" and \"%s\"", id,
                           (int)v->tokens[id].size, v->tokens[id].text, text);
        vocab_set(v, id, text, strlen(text), TOKEN_MODEL);
    }
    for (size_t i = 0; i < n_added; i++) {
        struct added_token *a = &added[i];
        int32_t known = vocab_find(v, a->text, a->size);
        if (known >= 0 && known != a->id)
            return err_set(err, ERR_INPUT, "added_tokens: \"%.*s\" has id %lld, but %d elsewhere",
                           (int)a->size, a->text, (long long)a->id, known);
        struct token *t = &v->tokens[a->id];
        if (known < 0 && t->flags)
            return err_set(err, ERR_INPUT, "added_tokens: id %lld is both \"%.*s\" and \"%.*s\"",
                           (long long)a->id, (int)t->size, t->text, (int)a->size, a->text);
        if (known < 0)
            vocab_set(v, (int32_t)a->id, a->text, a->size, 0);
        if (a->special)
            t->flags = (uint8_t)((t->flags | TOKEN_SPECIAL) & ~TOKEN_MODEL);
    }
    return 0;
}

/* Puts the added tokens into the tries. One to be found after normalizing is normalized itself. */
static int index_added(struct tokenizer *t, const struct added_token *added, size_t n_added, struct err *err)
{
    size_t bytes = 0;
    for (size_t i = 0; i < n_added; i++)
        bytes += added[i].size;
    struct matcher *m;
    int rc = matcher_open(&m, bytes, err);
    for (size_t i = 0; i < n_added && !rc; i++) {
        const struct added_token *a = &added[i];
        if (!a->normalized) {
            rc = added_put(&t->added, a->text, a->size, (int32_t)a->id, a->flags, err);
            continue;
        }
        struct buf text = {0};
        rc = normalize(&t->normalizer, m, a->text, a->size, &text, err);
        if (!rc)
            rc = added_put(&t->added_normalized, text.data, text.size, (int32_t)a->id, a->flags, err);
        buf_free(&text);
    }
    matcher_close(m);
    return rc;
}

static int read_merges(struct tokenizer *t, const json_t *list, struct err *err)
{
    if (!json_is_array(list))
        return err_set(err, ERR_INPUT, "\"merges\" must be a list");
    int rc = 0;
    for (size_t i = 0; i < json_array_size(list) && !rc; i++) {
        const json_t *m = json_array_get(list, i);
        const json_t *l = json_array_get(m, 0), *r = json_array_get(m, 1);
        const char *text = json_string_value(m), *space = text ? strchr(text, ' ') : NULL;
        if (space && !strchr(space + 1, ' ') && strlen(text) == json_string_length(m))
            rc = bpe_add_merge(&t->bpe, &t->vocab, text, (size_t)(space - text), space + 1, strlen(space + 1),
                               (uint32_t)i, err);
        else if (json_array_size(m) == 2 && json_is_string(l) && json_is_string(r))
            rc = bpe_add_merge(&t->bpe, &t->vocab, json_string_value(l), json_string_length(l),
                               json_string_value(r), json_string_length(r), (uint32_t)i, err);
        else
            rc = err_set(err, ERR_INPUT, "merge %zu is neither \"a b\" nor [\"a\", \"b\"]", i);
    }
    return rc;
}

static int read_model_options(struct tokenizer *t, const json_t *model, struct err *err)
{
    const char *type, *unk, *text;
    double dropout;
    int rc = json_get_string(model, "type", "BPE", &type, err);
    if (!rc && strcmp(type, "BPE"))
        return err_set(err, ERR_INPUT, "model \"%s\" is not supported (only BPE is)", type);
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2 && !rc; i++) {
        rc = json_get_string(model, affixes[i], "", &text, err);
        if (!rc && *text)
            return err_set(err, ERR_INPUT, "\"%s\" \"%s\" is not supported", affixes[i], text);
    }
    if (!rc)
        rc = json_get_double(model, "dropout", 0, &dropout, err);
    if (!rc && dropout != 0)
        return err_set(err, ERR_INPUT, "\"dropout\" %g would make tokenizing random", dropout);
    if (!rc)
        rc = get_bool(model, "fuse_unk", false, &t->bpe.fuse_unk, err);
    if (!rc)
        rc = get_bool(model, "byte_fallback", false, &t->bpe.byte_fallback, err);
    if (!rc)
        rc = get_bool(model, "ignore_merges", false, &t->bpe.whole_pieces_first, err);
    if (!rc)
        rc = json_get_string(model, "unk_token", NULL, &unk, err);
    if (rc || !unk)
        return rc;
    t->bpe.unk = vocab_find(&t->vocab, unk, strlen(unk));
    return t->bpe.unk >= 0 ? 0 : err_set(err, ERR_INPUT, "unk_token \"%s\" is not in the vocabulary", unk);
}

static int read_vocab(struct tokenizer *t, const json_t *root, struct err *err)
{
    const json_t *model = json_object_get(root, "model"), *table = json_object_get(model, "vocab");
    const json_t *list = json_object_get(root, "added_tokens");
    const char *type;
    int rc = json_get_string(model, "type", "BPE", &type, err);
    if (!rc && strcmp(type, "BPE"))
        rc = err_set(err, ERR_INPUT, "model \"%s\" is not supported (only BPE is)", type);
    if (!rc && !json_is_object(table))
        rc = err_set(err, ERR_INPUT, "\"model\" has no \"vocab\" that is an object");
    if (!rc && list && !json_is_array(list) && !json_is_null(list))
        rc = err_set(err, ERR_INPUT, "\"added_tokens\" must be a list");
    if (rc)
        return rc;
    size_t n = json_array_size(list);
    struct added_token *added = calloc(n + 1, sizeof *added);
    rc = added ? 0 : out_of_memory(err);
    for (size_t i = 0; i < n && !rc; i++)
        rc = read_added_token(json_array_get(list, i), i, &added[i], err);
    if (!rc)
        rc = size_vocab(&t->vocab, table, added, n, err);
    if (!rc)
        rc = fill_vocab(&t->vocab, table, added, n, err);
    if (!rc)
        rc = index_added(t, added, n, err);
    free(added);
    bpe_index(&t->bpe, &t->vocab);
    if (!rc)
        rc = read_model_options(t, model, err);
    if (!rc)
        rc = read_merges(t, json_object_get(model, "merges"), err);
    return rc ? err_prefix(err, "model") : 0;
}

/* ---- post-processor and tokenizer_config.json ---- */

static int push_affix(struct tokenizer *t, struct affix *a, const json_t *id, struct err *err)
{
    int64_t n = json_is_integer(id) ? json_integer_value(id) : -1;
    if (n < 0 || n >= t->vocab.n || !t->vocab.tokens[n].flags)
        return err_set(err, ERR_INPUT, "post_processor: a special token's id is not in the vocabulary");
    if (a->n == TOKENIZER_MAX_AFFIX)
        return err_set(err, ERR_INPUT, "post_processor: more than %d special tokens", TOKENIZER_MAX_AFFIX);
    a->ids[a->n++] = (int32_t)n;
    return 0;
}

/* "single": special tokens around one sequence. */
static int read_template(struct tokenizer *t, const json_t *v, struct err *err)
{
    const json_t *single = json_object_get(v, "single"), *table = json_object_get(v, "special_tokens");
    bool seen = false;
    t->prefix.n = t->suffix.n = 0;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i), *token = json_object_get(item, "SpecialToken");
        if (json_object_get(item, "Sequence")) {
            if (seen)
                return err_set(err, ERR_INPUT, "post_processor: the text stands twice in \"single\"");
            seen = true;
            continue;
        }
        const char *name = json_string_value(json_object_get(token, "id"));
        const json_t *ids = name ? json_object_get(json_object_get(table, name), "ids") : NULL;
        if (!json_is_array(ids))
            return err_set(err, ERR_INPUT, "post_processor: entry %zu of \"single\" is not a known token", i);
        for (size_t k = 0; k < json_array_size(ids); k++) {
            int rc = push_affix(t, seen ? &t->suffix : &t->prefix, json_array_get(ids, k), err);
            if (rc)
                return rc;
        }
    }
    return seen ? 0 : err_set(err, ERR_INPUT, "post_processor: \"single\" does not contain the text");
}

static int read_post_processor(struct tokenizer *t, const json_t *v, int depth, struct err *err)
{
    if (!v || json_is_null(v))
        return 0;
    const char *type;
    int rc = get_type(v, "post_processor", &type, err);
    if (rc)
        return rc;
    if (strcmp(type, "ByteLevel") == 0) /* only trims offsets */
        return 0;
    if (strcmp(type, "TemplateProcessing") == 0)
        return read_template(t, v, err);
    if (strcmp(type, "Sequence"))
        return err_set(err, ERR_INPUT, "post_processor \"%s\" is not supported", type);
    const json_t *list = json_object_get(v, "processors");
    if (!json_is_array(list) || depth == MAX_DEPTH)
        return err_set(err, ERR_INPUT, "\"processors\" must be a list, nested at most %d deep", MAX_DEPTH);
    for (size_t i = 0; i < json_array_size(list) && !rc; i++)
        rc = read_post_processor(t, json_array_get(list, i), depth + 1, err);
    return rc;
}

/* "bos_token": a string, or an object with "content". -1 when absent or not in the vocabulary. */
static int32_t named_token(const struct tokenizer *t, const json_t *config, const char *key)
{
    const json_t *v = json_object_get(config, key);
    if (json_is_object(v))
        v = json_object_get(v, "content");
    return json_is_string(v) ? vocab_find(&t->vocab, json_string_value(v), json_string_length(v)) : -1;
}

/* add_bos_token and add_eos_token, where a file has them, overrule that end of the template, as in
 * transformers. */
static void apply_add(struct affix *a, const json_t *add, int32_t id)
{
    if (json_is_boolean(add) && (json_is_false(add) || id >= 0))
        *a = json_is_true(add) ? (struct affix){.ids = {id}, .n = 1} : (struct affix){0};
}

static void read_config(struct tokenizer *t, const json_t *config)
{
    t->bos = named_token(t, config, "bos_token");
    int32_t eos = named_token(t, config, "eos_token");
    tokenizer_add_eos(t, eos);
    apply_add(&t->prefix, json_object_get(config, "add_bos_token"), t->bos);
    apply_add(&t->suffix, json_object_get(config, "add_eos_token"), eos);
    if (t->bos < 0 && t->prefix.n)
        t->bos = t->prefix.ids[0];
}

int tokenizer_read_json(struct tokenizer *t, const json_t *root, const json_t *config, struct err *err)
{
    int rc = read_normalizer(&t->normalizer, json_object_get(root, "normalizer"), 0, err);
    if (!rc)
        rc = read_pretokenizer(&t->pretokenizer, json_object_get(root, "pre_tokenizer"), 0, err);
    if (!rc)
        rc = read_vocab(t, root, err);
    if (!rc)
        rc = read_post_processor(t, json_object_get(root, "post_processor"), 0, err);
    if (rc)
        return rc;
    const json_t *decoder = json_object_get(root, "decoder");
    bool fused = false;
    struct decode_step *s;
    rc = decoder && !json_is_null(decoder) ? read_decoder(&t->decoder, decoder, 0, &fused, err)
                                           : add_decode(&t->decoder, DECODE_SPACE_BETWEEN, &s, err);
    if (rc)
        return rc;
    read_config(t, config);
    tokenizer_add_known_eos(t);
    return 0;
}

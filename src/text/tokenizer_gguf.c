/* tokenizer_gguf.c - reading a tokenizer from GGUF metadata (keys: the GGUF specification and llama.cpp,
 * whose defaults and results are followed) into the parts of tokenizer_impl.h. Called at open, by one thread.
 */
#include "text/tokenizer_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* tokenizer.ggml.token_type */
enum token_type { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER_DEFINED, TYPE_UNUSED, TYPE_BYTE };

#define CONTRACTIONS "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
#define TAIL         "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define GPT2         "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)"
#define UPPER        "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER        "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(end, digits)                                                                                   \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" end "|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER "*" end       \
    "|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" TAIL

#define WORDS(digits)                                                                                        \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" TAIL

/* tokenizer.ggml.pre names the split: each pattern cuts the pieces that the one before left. */
enum { MAX_PATTERNS = 4 };
struct split_rule {
    const char *names; /* each between spaces */
    const char *patterns[MAX_PATTERNS];
    bool add_bos, whole_pieces_first;
};

static const struct split_rule split_rules[] = {
    {" default ", {"[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}, false, false},
    {" gpt-2 gpt2 phi-2 mpt olmo jais mellum jina-es jina-de jina-v1-en jina-v2-es jina-v2-de roberta-bpe ",
     {GPT2},
     false,
     false},
    {" llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 ",
     {WORDS("\\p{N}{1,3}")},
     true,
     true},
    {" dbrx smaug-bpe ", {WORDS("\\p{N}{1,3}")}, false, false},
    {" qwen2 deepseek-r1-qwen stablelm2 megrez ", {WORDS("\\p{N}")}, false, false},
    {" smollm starcoder refact command-r codeshell exaone minerva-7b ", {"\\p{N}", GPT2}, false, false},
    {" tekken ", {CASED("", "\\p{N}")}, true, true},
    {" gpt-4o llama4 ", {CASED("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "\\p{N}{1,3}")}, false, false},
    {" falcon ", {"[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2, "[0-9][0-9][0-9]"}, false, false},
    {" deepseek-coder ",
     {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[一-龥ࠀ-一가-퟿]+|\\p{N}"},
     false,
     false},
    {" deepseek-v3 ",
     {"\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
      "| ?[\\p{P}\\p{S}]+[\\r\\n]*|" TAIL},
     false,
     false},
};

/* ---- metadata arrays, checked ---- */

struct tables {
    const struct gguf_value *tokens, *types, *scores, *merges;
};

/* *out stays NULL when the key is absent. */
static int get_array(const struct file *f, const char *key, enum gguf_type item_type,
                     const struct gguf_value **out, struct err *err)
{
    *out = file_gguf_value(f, key);
    if (*out && ((*out)->type != GGUF_ARRAY || (*out)->item_type != item_type))
        return err_set(err, ERR_INPUT, "%s: an array of another type was expected", key);
    return 0;
}

static int get_tables(struct tables *x, const struct file *f, struct err *err)
{
    int rc = get_array(f, "tokenizer.ggml.tokens", GGUF_STRING, &x->tokens, err);
    if (!rc)
        rc = get_array(f, "tokenizer.ggml.token_type", GGUF_I32, &x->types, err);
    if (!rc)
        rc = get_array(f, "tokenizer.ggml.scores", GGUF_F32, &x->scores, err);
    if (!rc)
        rc = get_array(f, "tokenizer.ggml.merges", GGUF_STRING, &x->merges, err);
    if (rc)
        return rc;
    if (!x->tokens || x->tokens->n_items == 0 || x->tokens->n_items > VOCAB_MAX_TOKENS)
        return err_set(err, ERR_INPUT, "tokenizer.ggml.tokens: 1 to %d tokens were expected",
                       VOCAB_MAX_TOKENS);
    uint64_t n = x->tokens->n_items;
    if ((x->types && x->types->n_items != n) || (x->scores && x->scores->n_items != n))
        return err_set(err, ERR_INPUT,
                       "tokenizer.ggml: tokens, scores and token_type have different lengths");
    return 0;
}

static enum token_type type_of(const struct tables *x, size_t i)
{
    int32_t type = TYPE_NORMAL;
    if (x->types)
        memcpy(&type, (const char *)x->types->items + 4 * i, 4);
    return (enum token_type)type;
}

/* Scalars with a fallback. (file.h's own look-ups name the path, which tokenizer_open() adds to all
 * messages.) */
static int get_flag(const struct file *f, const char *key, bool fallback, bool *out, struct err *err)
{
    const struct gguf_value *v = file_gguf_value(f, key);
    *out = fallback;
    if (v && v->type != GGUF_BOOL)
        return err_set(err, ERR_INPUT, "%s must be true or false", key);
    if (v)
        *out = v->i != 0;
    return 0;
}

static int get_string(const struct file *f, const char *key, const char *fallback, const char **out,
                      struct err *err)
{
    const struct gguf_value *v = file_gguf_value(f, key);
    *out = fallback;
    if (v && (v->type != GGUF_STRING || strlen(v->string) != v->string_bytes))
        return err_set(err, ERR_INPUT, "%s must be a string", key);
    if (v)
        *out = v->string;
    return 0;
}

/* White space after a token, which the file does not tell; llama.cpp goes by the model's name as well. */
static int added_flags(const char *model_name, const char *text)
{
    if (!strcasestr(model_name, "phi-3") && !strcasestr(model_name, "phi3"))
        return 0;
    return strcmp(text, "<unk>") && strcmp(text, "<s>") && strcmp(text, "<|endoftext|>") ? ADDED_RSTRIP : 0;
}

static int read_tokens(struct tokenizer *t, const struct file *f, const struct tables *x, struct err *err)
{
    static const uint8_t flags_of[] = {
        [TYPE_NORMAL] = TOKEN_MODEL,
        [TYPE_UNKNOWN] = TOKEN_SPECIAL | TOKEN_LITERAL,
        [TYPE_CONTROL] = TOKEN_SPECIAL | TOKEN_LITERAL,
        [TYPE_USER_DEFINED] = TOKEN_MODEL | TOKEN_LITERAL,
        [TYPE_UNUSED] = 0,
        [TYPE_BYTE] = 0,
    };
    const char *name;
    int rc = get_string(f, "general.name", "", &name, err);
    if (rc)
        return rc;
    size_t n = (size_t)x->tokens->n_items, bytes = 0;
    for (size_t i = 0; i < n; i++) {
        size_t size = x->tokens->string_lengths[i];
        if (size > TOKEN_MAX_BYTES || utf8_valid_bytes(x->tokens->strings[i], size) != size)
            return err_set(err, ERR_INPUT,
                           "tokenizer.ggml.tokens: token %zu is not UTF-8 of at most %d bytes", i,
                           TOKEN_MAX_BYTES);
        bytes += size;
    }
    rc = vocab_init(&t->vocab, (int64_t)n, bytes, err);
    for (size_t i = 0; i < n && !rc; i++) {
        enum token_type type = type_of(x, i);
        const char *text = x->tokens->strings[i];
        size_t size = x->tokens->string_lengths[i];
        if (type < TYPE_NORMAL || type > TYPE_BYTE)
            return err_set(err, ERR_INPUT, "tokenizer.ggml.token_type: token %zu has unknown type %d", i,
                           type);
        vocab_set(&t->vocab, (int32_t)i, text, size, flags_of[type]);
        if (type == TYPE_UNKNOWN || type == TYPE_CONTROL || type == TYPE_USER_DEFINED)
            rc = added_put(&t->added, text, size, (int32_t)i, added_flags(name, text), err);
    }
    bpe_index(&t->bpe, &t->vocab);
    return rc;
}

/* ---- SentencePiece ("llama") ---- */

struct scored {
    float score;
    int32_t id;
};

static int by_score(const void *a, const void *b)
{
    float x = ((const struct scored *)a)->score, y = ((const struct scored *)b)->score;
    return (x < y) - (x > y);
}

/* Merging only compares scores: ranks do the same, and are what merges have. */
static int read_scores(struct tokenizer *t, const struct tables *x, struct err *err)
{
    if (!x->scores)
        return err_set(err, ERR_INPUT, "tokenizer.ggml.scores is missing");
    size_t n = (size_t)t->vocab.n;
    struct scored *sorted = malloc(n * sizeof *sorted);
    t->bpe.ranks = malloc(n * sizeof *t->bpe.ranks);
    int rc = sorted && t->bpe.ranks ? 0 : err_set(err, ERR_SYSTEM, "out of memory for %zu scores", n);
    for (size_t i = 0; i < n && !rc; i++) {
        sorted[i].id = (int32_t)i;
        memcpy(&sorted[i].score, (const char *)x->scores->items + 4 * i, 4);
        if (!isfinite(sorted[i].score))
            rc = err_set(err, ERR_INPUT, "tokenizer.ggml.scores: the score of token %zu is not a number", i);
    }
    if (!rc) {
        qsort(sorted, n, sizeof *sorted, by_score);
        for (size_t i = 0; i < n; i++)
            t->bpe.ranks[sorted[i].id] =
                i && sorted[i].score == sorted[i - 1].score ? t->bpe.ranks[sorted[i - 1].id] : (uint32_t)i;
    }
    free(sorted);
    return rc;
}

static int add_normalize(struct tokenizer *t, enum normalize_kind kind, const char *from, const char *to,
                         struct err *err)
{
    struct normalize_step *s = normalizer_grow(&t->normalizer);
    if (!s)
        return err_set(err, ERR_SYSTEM, "out of memory");
    s->kind = kind;
    int rc = bytes_copy(&s->from, from, strlen(from), err);
    return rc ? rc : bytes_copy(&s->to, to, strlen(to), err);
}

static int add_decode(struct tokenizer *t, enum decode_kind kind, const char *from, const char *to,
                      bool first_only, struct err *err)
{
    struct decode_step *s = decoder_grow(&t->decoder);
    if (!s)
        return err_set(err, ERR_SYSTEM, "out of memory");
    s->kind = kind;
    s->count = 1;
    s->first_only = first_only;
    int rc = bytes_copy(&s->from, from, strlen(from), err);
    return rc ? rc : bytes_copy(&s->to, to, strlen(to), err);
}

static int read_sentencepiece(struct tokenizer *t, const struct file *f, const struct tables *x,
                              struct err *err)
{
    static const char mark[] = "\xe2\x96\x81"; /* U+2581, a space */
    bool prefix;
    int rc = get_flag(f, "tokenizer.ggml.add_space_prefix", true, &prefix, err);
    if (!rc)
        rc = read_scores(t, x, err);
    if (!rc && prefix)
        rc = add_normalize(t, NORMALIZE_PREPEND, "", mark, err);
    if (!rc)
        rc = add_normalize(t, NORMALIZE_REPLACE, " ", mark, err);
    if (!rc)
        rc = add_decode(t, DECODE_REPLACE, mark, " ", false, err);
    if (!rc && prefix)
        rc = add_decode(t, DECODE_STRIP, " ", "", true, err);
    if (!rc)
        rc = add_decode(t, DECODE_BYTE_FALLBACK, "", "", false, err);
    if (rc)
        return rc;
    for (int i = 0; i < 256 && t->bpe.unk < 0; i++)
        if (t->bpe.byte_ids[i] < 0)
            return err_set(err, ERR_INPUT, "tokenizer.ggml.tokens has neither <0x%02X> nor an unknown token",
                           i);
    return 0;
}

/* ---- byte-level BPE ("gpt2") ---- */

static const struct split_rule *find_rule(const char *name)
{
    char key[64];
    if (snprintf(key, sizeof key, " %s ", name) >= (int)sizeof key || strchr(name, ' '))
        return NULL;
    for (size_t i = 0; i < sizeof split_rules / sizeof *split_rules; i++)
        if (strstr(split_rules[i].names, key))
            return &split_rules[i];
    return NULL;
}

static int read_byte_level(struct tokenizer *t, const struct file *f, const struct tables *x,
                           const struct split_rule *rule, struct err *err)
{
    bool prefix;
    int rc = get_flag(f, "tokenizer.ggml.add_space_prefix", false, &prefix, err);
    if (!rc && prefix)
        rc = add_normalize(t, NORMALIZE_PREPEND, "", " ", err);
    for (size_t i = 0; i < MAX_PATTERNS && rule->patterns[i] && !rc; i++) {
        struct pretokenize_step *s = pretokenizer_grow(&t->pretokenizer);
        rc = s ? pattern_compile(&s->pattern, rule->patterns[i], strlen(rule->patterns[i]), err)
               : err_set(err, ERR_SYSTEM, "out of memory");
    }
    if (!rc) {
        struct pretokenize_step *s = pretokenizer_grow(&t->pretokenizer);
        if (s)
            s->kind = PRETOKENIZE_BYTES;
        else
            rc = err_set(err, ERR_SYSTEM, "out of memory");
    }
    if (!rc)
        rc = add_decode(t, DECODE_BYTE_LEVEL, "", "", false, err);
    t->bpe.whole_pieces_first = rule->whole_pieces_first;
    if (!rc && !x->merges)
        rc = err_set(err, ERR_INPUT, "tokenizer.ggml.merges is missing");
    for (size_t i = 0; !rc && i < x->merges->n_items; i++) {
        const char *text = x->merges->strings[i];
        size_t size = x->merges->string_lengths[i];
        const char *space = size > 1 ? memchr(text + 1, ' ', size - 1) : NULL;
        rc = space ? bpe_add_merge(&t->bpe, &t->vocab, text, (size_t)(space - text), space + 1,
                                   size - (size_t)(space + 1 - text), (uint32_t)i, err)
                   : err_set(err, ERR_INPUT, "tokenizer.ggml.merges: entry %zu is not two tokens", i);
    }
    return rc;
}

/* ---- the whole ---- */

/* -1 when absent, or the 32-bit all-ones that some writers use for "none". */
static int get_id(const struct tokenizer *t, const struct file *f, const char *key, int32_t fallback,
                  int32_t *out, struct err *err)
{
    const struct gguf_value *v = file_gguf_value(f, key);
    if (v && (v->type == GGUF_BOOL || v->type == GGUF_STRING || v->type == GGUF_ARRAY ||
              v->type == GGUF_F32 || v->type == GGUF_F64))
        return err_set(err, ERR_INPUT, "%s must be an integer", key);
    int64_t id = v ? v->i : fallback;
    if (id == UINT32_MAX)
        id = -1;
    if (id < -1 || id >= t->vocab.n)
        return err_set(err, ERR_INPUT, "%s is %lld, but there are %d tokens", key, (long long)id, t->vocab.n);
    *out = (int32_t)id;
    return 0;
}

static int read_specials(struct tokenizer *t, const struct file *f, bool add_bos, struct err *err)
{
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    bool add_eos;
    int32_t id = -1, eos = -1;
    int rc = get_id(t, f, "tokenizer.ggml.bos_token_id", -1, &t->bos, err);
    for (int i = 0; i < 3 && !rc; i++) {
        rc = get_id(t, f, ends[i], -1, &id, err);
        if (!rc)
            tokenizer_add_eos(t, id);
        if (i == 0)
            eos = id;
    }
    if (!rc)
        rc = get_flag(f, "tokenizer.ggml.add_bos_token", add_bos, &add_bos, err);
    if (!rc)
        rc = get_flag(f, "tokenizer.ggml.add_eos_token", false, &add_eos, err);
    if (rc)
        return rc;
    if (add_bos && t->bos >= 0)
        t->prefix = (struct affix){.ids = {t->bos}, .n = 1};
    if (add_eos && eos >= 0)
        t->suffix = (struct affix){.ids = {eos}, .n = 1};
    tokenizer_add_known_eos(t);
    return 0;
}

int tokenizer_read_gguf(struct tokenizer *t, const struct file *f, struct err *err)
{
    const char *model, *pre;
    struct tables x;
    int rc = get_string(f, "tokenizer.ggml.model", "", &model, err);
    if (!rc)
        rc = get_string(f, "tokenizer.ggml.pre", "default", &pre, err);
    if (rc)
        return rc;
    bool scores = strcmp(model, "llama") == 0;
    if (!scores && strcmp(model, "gpt2"))
        return err_set(err, ERR_INPUT,
                       "tokenizer.ggml.model \"%s\" is not supported (\"llama\" and \"gpt2\" are)", model);
    const struct split_rule *rule = scores ? NULL : find_rule(pre);
    if (!scores && !rule)
        return err_set(err, ERR_INPUT, "tokenizer.ggml.pre \"%s\" is not supported", pre);
    rc = get_tables(&x, f, err);
    if (!rc)
        rc = read_tokens(t, f, &x, err);
    if (!rc)
        rc = get_id(t, f, "tokenizer.ggml.unknown_token_id", scores ? 0 : -1, &t->bpe.unk, err);
    if (!rc)
        rc = scores ? read_sentencepiece(t, f, &x, err) : read_byte_level(t, f, &x, rule, err);
    return rc ? rc : read_specials(t, f, scores || rule->add_bos, err);
}

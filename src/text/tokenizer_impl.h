/* tokenizer_impl.h - the parts a tokenizer is made of, shared by the files of src/text and by nothing else.
 *
 * Encoding is a chain, each part in a file of its own:
 *   added.c       cut the text at added tokens (special ones only when asked)
 *   normalize.c   rewrite what lies between (Unicode normal forms, a leading space, "▁" for " ")
 *   pretokenize.c cut that into pieces, with regular expressions (pattern.c)
 *   bpe.c         merge the characters of each piece into tokens
 * and decode.c turns a token back into bytes. tokenizer_json.c and tokenizer_gguf.c fill these structs from
 * the two kinds of model files; tokenizer.c owns them. All are written at open and read-only afterwards; what
 * an encoding needs to write lives in structs of its own on that caller's side. */
#ifndef TEXT_TOKENIZER_IMPL_H
#define TEXT_TOKENIZER_IMPL_H

#include "text/tokenizer.h"

/* ---- utf8.c ---- */

/* Bytes at the start of text that are valid UTF-8 (no surrogates, no overlong forms, at most U+10FFFF). */
size_t utf8_valid_bytes(const char *text, size_t size);
/* Length of the character that starts with this byte, in valid UTF-8. */
static inline size_t utf8_length(char lead)
{
    unsigned char c = (unsigned char)lead;
    return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
}
/* Character at the start of valid UTF-8, which must not be empty. */
uint32_t utf8_read(const char *text);
void utf8_append(struct buf *out, uint32_t character);
/* Byte-level BPE spells every byte as one printable character (GPT-2's table), so that vocabularies are text.
 */
uint32_t byte_level_character(uint8_t byte);
/* The byte that a character stands for, -1 when none. */
int byte_level_byte(uint32_t character);

/* ---- vocab.c: ids, texts and hash tables ---- */

enum token_flags {
    TOKEN_USED = 1,    /* the id exists; ids may have gaps */
    TOKEN_SPECIAL = 2, /* not text: begin, end, roles; never comes out of plain text */
    TOKEN_MODEL = 4,   /* merging may produce it */
    TOKEN_LITERAL = 8, /* decodes to its text as it is, without the decoder's rules */
};

struct token {
    const char *text; /* in vocab.texts, not NUL-terminated */
    uint32_t size;
    uint8_t flags;
};

struct vocab {
    struct token *tokens; /* [n] */
    int32_t n;
    struct buf texts;
    int32_t *slots; /* [mask + 1] open addressing: id or -1 */
    size_t mask;
    uint64_t seed; /* random, so that no file can be made to collide */
};

enum { VOCAB_MAX_TOKENS = 1 << 22, TOKEN_MAX_BYTES = 1 << 16 };

/* Room for ids below n and text_bytes of text in all. */
MUST_CHECK int vocab_init(struct vocab *v, int64_t n, size_t text_bytes, struct err *err);
void vocab_free(struct vocab *v);
/* Sets the text of an id that is not used yet. The text is found by vocab_find afterwards; of equal texts
 * the last one added is. */
void vocab_set(struct vocab *v, int32_t id, const char *text, size_t size, int flags);
/* -1 when absent. */
int32_t vocab_find(const struct vocab *v, const char *text, size_t size);

/* A map from 64-bit keys to a rank and an id: merges, and the edges of a trie. */
struct pair_slot {
    uint64_t key; /* UINT64_MAX: empty */
    uint32_t rank;
    int32_t id;
};
struct pair_map {
    struct pair_slot *slots;
    size_t n, mask;
    uint64_t seed;
};
MUST_CHECK int pair_map_set(struct pair_map *m, uint64_t key, uint32_t rank, int32_t id, struct err *err);
const struct pair_slot *pair_map_find(const struct pair_map *m, uint64_t key); /* NULL when absent */
void pair_map_free(struct pair_map *m);

MUST_CHECK int ids_push(struct ids *ids, int32_t id, struct err *err);

/* ---- pattern.c: what tokenizers call a regex, on PCRE2 ---- */

struct pattern;
/* Compiles Oniguruma syntax as far as tokenizers use it; what cannot be carried over exactly is refused. */
MUST_CHECK int pattern_compile(struct pattern **out, const char *source, size_t size, struct err *err);
void pattern_free(struct pattern *p);

/* What matching writes, one for each encoding, and the bound on the time it may take. */
struct matcher;
MUST_CHECK int matcher_open(struct matcher **out, size_t text_bytes, struct err *err);
void matcher_close(struct matcher *m);
/* Where a search through one text stands; all zero at its start. */
struct search {
    size_t from, last_end;
    bool any;
};
/* The next match in text: 1 and its bounds, 0 when there is none, negative on error: the pattern takes too
 * long on this text. A match may be empty, but not where the last one ended. */
MUST_CHECK int pattern_next(const struct pattern *p, struct matcher *m, const char *text, size_t size,
                            struct search *at, size_t *begin, size_t *end, struct err *err);

/* ---- added.c: tokens found in the text itself ---- */

enum added_flags { ADDED_LSTRIP = 1, ADDED_RSTRIP = 2, ADDED_SINGLE_WORD = 4 };

/* A trie; node 0 is the root. */
struct added {
    struct pair_map edges; /* node << 8 | byte → node */
    int32_t *ids;          /* [n_nodes] token that ends here, -1 when none */
    uint8_t *flags;        /* [n_nodes] */
    size_t n_nodes, capacity;
    bool first[256]; /* bytes some token starts with */
};
MUST_CHECK int added_put(struct added *a, const char *text, size_t size, int32_t id, int flags,
                         struct err *err);
void added_free(struct added *a);
struct added_match {
    size_t begin, end; /* with the white space it takes */
    int32_t id;
};
/* The leftmost, then longest, token at or after `from`; special tokens only if `special`. */
bool added_next(const struct added *a, const struct vocab *v, const char *text, size_t size, size_t from,
                bool special, struct added_match *out);

/* ---- normalize.c ---- */

enum normalize_kind {
    NORMALIZE_NFC,
    NORMALIZE_NFD,
    NORMALIZE_NFKC,
    NORMALIZE_NFKD,
    NORMALIZE_PREPEND,
    NORMALIZE_REPLACE
};

struct bytes {
    char *data;
    size_t size;
};

struct normalize_step {
    enum normalize_kind kind;
    struct bytes from, to;   /* PREPEND uses `to` */
    struct pattern *pattern; /* REPLACE: instead of `from` when not NULL */
};

struct normalizer {
    struct normalize_step *steps;
    size_t n;
};
/* Appends to out; text is valid UTF-8. */
MUST_CHECK int normalize(const struct normalizer *n, struct matcher *m, const char *text, size_t size,
                         struct buf *out, struct err *err);
/* Appends text to out with every `from` (not empty) replaced. */
void replace_all(struct buf *out, const char *text, size_t size, struct bytes from, struct bytes to);

/* ---- pretokenize.c ---- */

enum split_behavior { SPLIT_ISOLATED, SPLIT_REMOVED, SPLIT_CONTIGUOUS, SPLIT_WITH_PREVIOUS, SPLIT_WITH_NEXT };
enum pretokenize_kind {
    PRETOKENIZE_SPLIT,   /* cut at matches of the pattern */
    PRETOKENIZE_PREFIX,  /* put `to` before a piece that does not start with it */
    PRETOKENIZE_REPLACE, /* `from` becomes `to` */
    PRETOKENIZE_BYTES,   /* byte-level characters for bytes */
};

struct pretokenize_step {
    enum pretokenize_kind kind;
    struct pattern *pattern; /* SPLIT: a regex, or the literal `from` when NULL */
    enum split_behavior behavior;
    bool invert;     /* SPLIT: what does not match is the match */
    bool first_only; /* PREFIX: only at the start of the whole text */
    struct bytes from, to;
};

struct pretokenizer {
    struct pretokenize_step *steps;
    size_t n;
};

/* Text cut into pieces that follow each other. */
struct pieces {
    struct buf text;
    size_t *ends; /* [n] */
    size_t n, capacity;
};
void pieces_free(struct pieces *p);
/* in holds one piece on entry; the result is in *in, *spare is scratch. start: the piece begins the whole
 * text. */
MUST_CHECK int pretokenize(const struct pretokenizer *p, struct matcher *m, struct pieces *in,
                           struct pieces *spare, bool start, struct err *err);
MUST_CHECK int pieces_set(struct pieces *p, const char *text, size_t size, struct err *err);

/* ---- bpe.c ---- */

struct bpe {
    struct pair_map merges; /* left id << 32 | right id → rank, merged id */
    uint32_t *ranks;        /* not NULL: SentencePiece; [n_tokens], the best score has the lowest rank */
    int32_t byte_ids[256];  /* of "<0x00>"…, -1 */
    int32_t unk;            /* -1: unknown characters are dropped */
    bool byte_fallback, fuse_unk;
    bool
        cuts_before_marks; /* no token has "▁" behind another character: nothing merges across such a place */
    bool whole_pieces_first; /* a piece that is a token becomes it without merging ("ignore_merges") */
};
struct bpe_work {
    struct bpe_symbol *symbols;
    struct bpe_candidate *heap;
    size_t n_symbols, symbols_capacity, n_heap, heap_capacity;
};
void bpe_work_free(struct bpe_work *w);
MUST_CHECK int bpe_encode(const struct bpe *b, const struct vocab *v, struct bpe_work *w, const char *text,
                          size_t size, struct ids *out, struct err *err);
/* Fills byte_ids and cuts_before_marks from the complete vocabulary. */
void bpe_index(struct bpe *b, const struct vocab *v);
/* Adds one merge; its parts and its result must be tokens. */
MUST_CHECK int bpe_add_merge(struct bpe *b, const struct vocab *v, const char *left, size_t left_size,
                             const char *right, size_t right_size, uint32_t rank, struct err *err);

/* ---- decode.c ---- */

enum decode_kind {
    DECODE_REPLACE,       /* `from` becomes `to` */
    DECODE_BYTE_FALLBACK, /* "<0x41>" becomes "A" */
    DECODE_BYTE_LEVEL,    /* byte-level characters become bytes */
    DECODE_STRIP,      /* up to `count` of `from` are taken off the start, of the first token if first_only */
    DECODE_DROP_FIRST, /* every `from` is taken out of the first token */
    DECODE_SPACE_BETWEEN, /* a space before every token but the first */
};

struct decode_step {
    enum decode_kind kind;
    struct bytes from, to;
    int64_t count;
    bool first_only;
};

struct decoder {
    struct decode_step *steps;
    size_t n;
};
void decode_token(const struct decoder *d, const struct token *token, bool first, struct buf *out);

/* ---- the whole ---- */

enum { TOKENIZER_MAX_EOS = 16, TOKENIZER_MAX_AFFIX = 16 };

struct affix {
    int32_t ids[TOKENIZER_MAX_AFFIX];
    size_t n;
};

struct tokenizer {
    struct vocab vocab;
    struct added added;            /* looked for in the text as given */
    struct added added_normalized; /* looked for after normalizing */
    struct normalizer normalizer;
    struct pretokenizer pretokenizer;
    struct bpe bpe;
    struct decoder decoder;
    struct affix prefix, suffix; /* of TOKENIZE_BOS */
    int32_t bos;
    int32_t eos[TOKENIZER_MAX_EOS];
    size_t n_eos;
};

/* The readers fill an empty tokenizer; on error the caller closes it. */
MUST_CHECK int tokenizer_read_json(struct tokenizer *t, const json_t *root, const json_t *config,
                                   struct err *err);
MUST_CHECK int tokenizer_read_gguf(struct tokenizer *t, const struct file *f, struct err *err);
/* Adds an id to the list of ends, if it is a token and not there yet. */
void tokenizer_add_eos(struct tokenizer *t, int64_t id);
/* Adds the special tokens that end a turn in well-known chat formats. */
void tokenizer_add_known_eos(struct tokenizer *t);

/* Growing arrays of steps: a zeroed new last element, NULL when out of memory. */
struct normalize_step *normalizer_grow(struct normalizer *n);
struct pretokenize_step *pretokenizer_grow(struct pretokenizer *p);
struct decode_step *decoder_grow(struct decoder *d);
MUST_CHECK int bytes_copy(struct bytes *out, const char *data, size_t size, struct err *err);

#endif

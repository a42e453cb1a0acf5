/* bpe.c - byte-pair merging of one piece of text, for both kinds of vocabulary; see tokenizer_impl.h.
 *
 * With merges (tokenizer.json, GGUF "gpt2") the pair of lowest rank anywhere is merged first; with scores
 * (SentencePiece, GGUF "llama") the pair whose concatenation is the token of the highest score. Equal ranks
 * go from left to right. A heap of candidates over a linked list of symbols makes this n log n, so that a
 * piece of megabytes without a space is no attack. Any thread, each with its own bpe_work. */
#include "text/tokenizer_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct bpe_symbol {
    int32_t id;           /* -1: no token has this text */
    int32_t prev, next;   /* -1 at the ends */
    uint32_t begin, size; /* of the text it covers; 0 bytes: merged into its left neighbour */
};

struct bpe_candidate {
    uint32_t rank, left;
    uint32_t size; /* of both symbols together when it was found: it is stale if they have grown */
    int32_t id;
};

void bpe_work_free(struct bpe_work *w)
{
    free(w->symbols);
    free(w->heap);
    *w = (struct bpe_work){0};
}

static int grow(void **data, size_t *capacity, size_t element_bytes, struct err *err)
{
    size_t wanted = *capacity ? *capacity * 2 : 64;
    void *wider = realloc(*data, wanted * element_bytes);
    if (!wider)
        return err_set(err, ERR_SYSTEM, "out of memory while tokenizing (%zu symbols)", wanted);
    *data = wider;
    *capacity = wanted;
    return 0;
}

static int add_symbol(struct bpe_work *w, int32_t id, size_t begin, size_t size, struct err *err)
{
    if (w->n_symbols == w->symbols_capacity) {
        int rc = grow((void **)&w->symbols, &w->symbols_capacity, sizeof *w->symbols, err);
        if (rc)
            return rc;
    }
    int32_t i = (int32_t)w->n_symbols++;
    w->symbols[i] = (struct bpe_symbol){id, i - 1, i + 1, (uint32_t)begin, (uint32_t)size};
    return 0;
}

static bool goes_before(const struct bpe_candidate *a, const struct bpe_candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->left < b->left;
}

static int heap_push(struct bpe_work *w, struct bpe_candidate c, struct err *err)
{
    if (w->n_heap == w->heap_capacity) {
        int rc = grow((void **)&w->heap, &w->heap_capacity, sizeof *w->heap, err);
        if (rc)
            return rc;
    }
    size_t i = w->n_heap++;
    for (; i > 0 && goes_before(&c, &w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = c;
    return 0;
}

static struct bpe_candidate heap_pop(struct bpe_work *w)
{
    struct bpe_candidate top = w->heap[0], last = w->heap[--w->n_heap];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= w->n_heap)
            break;
        if (child + 1 < w->n_heap && goes_before(&w->heap[child + 1], &w->heap[child]))
            child++;
        if (!goes_before(&w->heap[child], &last))
            break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return top;
}

/* Id of a text that merging may produce, -1 when none. */
static int32_t find_token(const struct vocab *v, const char *text, size_t size)
{
    int32_t id = vocab_find(v, text, size);
    return id >= 0 && v->tokens[id].flags & TOKEN_MODEL ? id : -1;
}

/* Pushes the merge of symbols left and its right neighbour if there is one. */
static int consider(const struct bpe *b, const struct vocab *v, struct bpe_work *w, const char *text,
                    int32_t left, struct err *err)
{
    if (left < 0 || w->symbols[left].next < 0)
        return 0;
    const struct bpe_symbol *l = &w->symbols[left], *r = &w->symbols[l->next];
    struct bpe_candidate c = {.left = (uint32_t)left, .size = l->size + r->size};
    if (b->ranks) {
        c.id = c.size <= TOKEN_MAX_BYTES ? find_token(v, text + l->begin, c.size) : -1;
        if (c.id < 0)
            return 0;
        c.rank = b->ranks[c.id];
    } else {
        const struct pair_slot *merge =
            pair_map_find(&b->merges, (uint64_t)(uint32_t)l->id << 32 | (uint32_t)r->id);
        if (!merge)
            return 0;
        c.id = merge->id;
        c.rank = merge->rank;
    }
    return heap_push(w, c, err);
}

static int merge_all(const struct bpe *b, const struct vocab *v, struct bpe_work *w, const char *text,
                     struct err *err)
{
    int rc = 0;
    w->n_heap = 0;
    w->symbols[w->n_symbols - 1].next = -1;
    for (size_t i = 0; i + 1 < w->n_symbols && !rc; i++)
        rc = consider(b, v, w, text, (int32_t)i, err);
    while (w->n_heap && !rc) {
        struct bpe_candidate c = heap_pop(w);
        struct bpe_symbol *l = &w->symbols[c.left];
        if (l->size == 0 || l->next < 0 || l->size + w->symbols[l->next].size != c.size)
            continue;
        struct bpe_symbol *r = &w->symbols[l->next];
        l->id = c.id;
        l->size = c.size;
        l->next = r->next;
        if (r->next >= 0)
            w->symbols[r->next].prev = (int32_t)c.left;
        r->size = 0;
        rc = consider(b, v, w, text, l->prev, err);
        if (!rc)
            rc = consider(b, v, w, text, (int32_t)c.left, err);
    }
    return rc;
}

/* The bytes of a character as tokens. Fewer than all of them exist: false, and nothing is added. */
static bool has_bytes(const struct bpe *b, const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (b->byte_ids[(unsigned char)text[i]] < 0)
            return false;
    return true;
}

/* Characters to symbols, where merges go by id. Characters that are no token become byte tokens before
 * merging (merges may join them again), then the unknown token. */
static int split_for_merges(const struct bpe *b, const struct vocab *v, struct bpe_work *w, const char *text,
                            size_t size, struct err *err)
{
    size_t unknown_begin = 0, unknown_size = 0; /* run of unknown characters not added yet */
    int rc = 0;
    for (size_t i = 0, n; i < size && !rc; i += n) {
        n = utf8_length(text[i]);
        int32_t id = find_token(v, text + i, n);
        bool known = id >= 0 || (b->byte_fallback && has_bytes(b, text + i, n));
        if (unknown_size && (known || !b->fuse_unk)) {
            rc = add_symbol(w, b->unk, unknown_begin, unknown_size, err);
            unknown_size = 0;
        }
        if (rc)
            break;
        if (id >= 0) {
            rc = add_symbol(w, id, i, n, err);
        } else if (known) {
            for (size_t k = 0; k < n && !rc; k++)
                rc = add_symbol(w, b->byte_ids[(unsigned char)text[i + k]], i + k, 1, err);
        } else if (b->unk >= 0) {
            if (!unknown_size)
                unknown_begin = i;
            unknown_size += n;
        }
    }
    if (!rc && unknown_size)
        rc = add_symbol(w, b->unk, unknown_begin, unknown_size, err);
    return rc;
}

/* Characters to symbols, where merges go by text: what is no token after merging falls back to bytes. */
static int split_for_scores(const struct vocab *v, struct bpe_work *w, const char *text, size_t size,
                            struct err *err)
{
    int rc = 0;
    for (size_t i = 0, n; i < size && !rc; i += n) {
        n = utf8_length(text[i]);
        rc = add_symbol(w, find_token(v, text + i, n), i, n, err);
    }
    return rc;
}

static int emit(const struct bpe *b, const struct bpe_symbol *s, const char *text, struct ids *out,
                struct err *err)
{
    if (s->id >= 0)
        return ids_push(out, s->id, err);
    if (!has_bytes(b, text + s->begin, s->size))
        return b->unk >= 0 ? ids_push(out, b->unk, err) : 0;
    int rc = 0;
    for (size_t k = 0; k < s->size && !rc; k++)
        rc = ids_push(out, b->byte_ids[(unsigned char)text[s->begin + k]], err);
    return rc;
}

static int encode_part(const struct bpe *b, const struct vocab *v, struct bpe_work *w, const char *text,
                       size_t size, struct ids *out, struct err *err)
{
    w->n_symbols = 0;
    int rc = b->ranks ? split_for_scores(v, w, text, size, err) : split_for_merges(b, v, w, text, size, err);
    if (rc || !w->n_symbols)
        return rc;
    rc = merge_all(b, v, w, text, err);
    for (int32_t i = 0; i >= 0 && !rc; i = w->symbols[i].next)
        rc = emit(b, &w->symbols[i], text, out, err);
    return rc;
}

/* U+2581, which SentencePiece writes for a space. */
static const char mark[] = "\xe2\x96\x81";
enum { MARK_BYTES = 3 };

static bool at_mark(const char *text, size_t size)
{
    return size >= MARK_BYTES && memcmp(text, mark, MARK_BYTES) == 0;
}

/* Where the first word of the text ends: before a mark behind another character. */
static size_t word_end(const char *text, size_t size)
{
    size_t i = 0;
    while (at_mark(text + i, size - i))
        i += MARK_BYTES;
    const char *next = memmem(text + i, size - i, mark, MARK_BYTES);
    return next ? (size_t)(next - text) : size;
}

int bpe_encode(const struct bpe *b, const struct vocab *v, struct bpe_work *w, const char *text, size_t size,
               struct ids *out, struct err *err)
{
    if (b->whole_pieces_first && size <= TOKEN_MAX_BYTES) {
        int32_t id = find_token(v, text, size);
        if (id >= 0)
            return ids_push(out, id, err);
    }
    /* A SentencePiece text is one piece of any length; word by word the heap stays small, with the same ids.
     */
    int rc = 0;
    for (size_t done = 0, n; done < size && !rc; done += n) {
        n = b->cuts_before_marks ? word_end(text + done, size - done) : size;
        rc = encode_part(b, v, w, text + done, n, out, err);
    }
    return rc;
}

void bpe_index(struct bpe *b, const struct vocab *v)
{
    for (int i = 0; i < 256; i++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", i);
        b->byte_ids[i] = vocab_find(v, name, 6);
    }
    b->cuts_before_marks = find_token(v, mark, MARK_BYTES) >= 0;
    for (int32_t i = 0; i < v->n && b->cuts_before_marks; i++)
        b->cuts_before_marks =
            !v->tokens[i].flags || word_end(v->tokens[i].text, v->tokens[i].size) == v->tokens[i].size;
}

int bpe_add_merge(struct bpe *b, const struct vocab *v, const char *left, size_t left_size, const char *right,
                  size_t right_size, uint32_t rank, struct err *err)
{
    int32_t l = vocab_find(v, left, left_size), r = vocab_find(v, right, right_size);
    struct buf text = {0};
    buf_append(&text, left, left_size);
    buf_append(&text, right, right_size);
    int rc;
    if (text.failed) {
        rc = err_set(err, ERR_SYSTEM, "out of memory while reading merges");
    } else {
        int32_t merged = vocab_find(v, text.data, text.size);
        if (l < 0 || r < 0 || merged < 0)
            rc = err_set(err, ERR_INPUT, "merge %u: \"%.*s\" is not in the vocabulary", rank,
                         l < 0   ? (int)left_size
                         : r < 0 ? (int)right_size
                                 : (int)text.size,
                         l < 0   ? left
                         : r < 0 ? right
                                 : text.data);
        else
            rc = pair_map_set(&b->merges, (uint64_t)(uint32_t)l << 32 | (uint32_t)r, rank, merged, err);
    }
    buf_free(&text);
    return rc;
}

/* added.c - tokens that are found in the text itself before anything else: "<|im_end|>", runs of spaces; see
 * tokenizer_impl.h. A trie in a hash map, so that thousands of tokens with one first byte cost no more than
 * one. Written at open, read by any thread. */
#include "text/tokenizer_impl.h"

#include <stdlib.h>
#include <utf8proc.h>

static int add_node(struct added *a, struct err *err)
{
    if (a->n_nodes == a->capacity) {
        size_t capacity = a->capacity ? a->capacity * 2 : 64;
        int32_t *ids = realloc(a->ids, capacity * sizeof *ids);
        if (ids)
            a->ids = ids;
        uint8_t *flags = realloc(a->flags, capacity);
        if (flags)
            a->flags = flags;
        if (!ids || !flags)
            return err_set(err, ERR_SYSTEM, "out of memory for the added tokens");
        a->capacity = capacity;
    }
    a->ids[a->n_nodes] = -1;
    a->flags[a->n_nodes++] = 0;
    return 0;
}

int added_put(struct added *a, const char *text, size_t size, int32_t id, int flags, struct err *err)
{
    int rc = a->n_nodes ? 0 : add_node(a, err);
    size_t node = 0;
    for (size_t i = 0; i < size && !rc; i++) {
        uint64_t key = (uint64_t)node << 8 | (unsigned char)text[i];
        const struct pair_slot *edge = pair_map_find(&a->edges, key);
        if (edge) {
            node = (size_t)edge->id;
            continue;
        }
        node = a->n_nodes;
        rc = node < INT32_MAX ? add_node(a, err) : err_set(err, ERR_INPUT, "too many bytes of added tokens");
        if (!rc)
            rc = pair_map_set(&a->edges, key, 0, (int32_t)node, err);
    }
    if (rc || !size)
        return rc;
    a->first[(unsigned char)text[0]] = true;
    a->ids[node] = id;
    a->flags[node] = (uint8_t)flags;
    return 0;
}

void added_free(struct added *a)
{
    pair_map_free(&a->edges);
    free(a->ids);
    free(a->flags);
}

static bool is_space(uint32_t c)
{
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return (c >= 9 && c <= 13) || c == 0x85 || k == UTF8PROC_CATEGORY_ZS || k == UTF8PROC_CATEGORY_ZL ||
           k == UTF8PROC_CATEGORY_ZP;
}

static bool is_word(uint32_t c)
{
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_NL) || k == UTF8PROC_CATEGORY_PC ||
           c == 0x200c || c == 0x200d; /* the joiners */
}

static size_t start_of_last(const char *text, size_t end)
{
    do
        end--;
    while (((unsigned char)text[end] & 0xc0) == 0x80);
    return end;
}

/* Applies the token's flags to a match. from: where the previous one ended, its white space is taken. */
static bool trim(int flags, const char *text, size_t size, size_t from, struct added_match *m)
{
    if (flags & ADDED_SINGLE_WORD) {
        if (m->begin > 0 && is_word(utf8_read(text + start_of_last(text, m->begin))))
            return false;
        if (m->end < size && is_word(utf8_read(text + m->end)))
            return false;
    }
    if (flags & ADDED_LSTRIP) {
        while (m->begin > from) {
            size_t last = start_of_last(text, m->begin);
            if (!is_space(utf8_read(text + last)))
                break;
            m->begin = last;
        }
    }
    if (flags & ADDED_RSTRIP)
        while (m->end < size && is_space(utf8_read(text + m->end)))
            m->end += utf8_length(text[m->end]);
    return true;
}

bool added_next(const struct added *a, const struct vocab *v, const char *text, size_t size, size_t from,
                bool special, struct added_match *out)
{
    if (!a->n_nodes)
        return false;
    for (size_t begin = from; begin < size; begin++) {
        if (!a->first[(unsigned char)text[begin]])
            continue;
        size_t node = 0, found = 0;
        for (size_t i = begin; i < size; i++) {
            const struct pair_slot *edge =
                pair_map_find(&a->edges, (uint64_t)node << 8 | (unsigned char)text[i]);
            if (!edge)
                break;
            node = (size_t)edge->id;
            if (a->ids[node] >= 0 && (special || !(v->tokens[a->ids[node]].flags & TOKEN_SPECIAL))) {
                found = node;
                *out = (struct added_match){begin, i + 1, a->ids[node]};
            }
        }
        if (!found)
            continue;
        size_t end = out->end;
        if (trim(a->flags[found], text, size, from, out))
            return true;
        begin = end - 1; /* not a word of its own: go on behind it */
    }
    return false;
}

/* vocab.c - the token table, its hash by text, and the pair map; see tokenizer_impl.h. Written at open by one
 * thread, read by any. */
#include "text/tokenizer_impl.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

static uint64_t random_seed(void)
{
    uint64_t seed = 0;
    if (getentropy(&seed, sizeof seed))
        seed = (uint64_t)(uintptr_t)&seed; /* only protects against made-up files: a weak seed will do */
    return seed;
}

static uint64_t mix(uint64_t h)
{
    h *= 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93u;
    return h ^ h >> 32;
}

static uint64_t hash_text(uint64_t seed, const char *text, size_t size)
{
    uint64_t h = seed ^ size;
    for (; size >= 8; text += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, text, 8);
        h = mix(h ^ word);
    }
    uint64_t tail = 0;
    for (size_t i = 0; i < size; i++)
        tail |= (uint64_t)(unsigned char)text[i] << 8 * i;
    return mix(h ^ tail);
}

int vocab_init(struct vocab *v, int64_t n, size_t text_bytes, struct err *err)
{
    assert(n >= 0 && n <= VOCAB_MAX_TOKENS);
    size_t slots = 16;
    while (slots < (size_t)n * 2)
        slots *= 2;
    v->tokens = calloc(n ? (size_t)n : 1, sizeof *v->tokens);
    v->slots = malloc(slots * sizeof *v->slots);
    v->texts = (struct buf){.data = malloc(text_bytes + 1), .capacity = text_bytes + 1};
    if (!v->tokens || !v->slots || !v->texts.data)
        return err_set(err, ERR_SYSTEM, "out of memory for a vocabulary of %lld tokens", (long long)n);
    memset(v->slots, 0xff, slots * sizeof *v->slots);
    v->n = (int32_t)n;
    v->mask = slots - 1;
    v->seed = random_seed();
    return 0;
}

void vocab_free(struct vocab *v)
{
    free(v->tokens);
    free(v->slots);
    buf_free(&v->texts);
}

/* Slot of a text: where it is, or the empty one where it would go. */
static size_t find_slot(const struct vocab *v, const char *text, size_t size)
{
    size_t i = (size_t)hash_text(v->seed, text, size) & v->mask;
    for (; v->slots[i] >= 0; i = (i + 1) & v->mask) {
        const struct token *t = &v->tokens[v->slots[i]];
        if (t->size == size && memcmp(t->text, text, size) == 0)
            break;
    }
    return i;
}

void vocab_set(struct vocab *v, int32_t id, const char *text, size_t size, int flags)
{
    assert(id >= 0 && id < v->n && !v->tokens[id].flags);
    assert(v->texts.size + size < v->texts.capacity); /* never moves: tokens point into it */
    const char *at = v->texts.data + v->texts.size;
    buf_append(&v->texts, text, size);
    v->tokens[id] =
        (struct token){.text = at, .size = (uint32_t)size, .flags = (uint8_t)(flags | TOKEN_USED)};
    v->slots[find_slot(v, at, size)] = id;
}

int32_t vocab_find(const struct vocab *v, const char *text, size_t size)
{
    return v->slots ? v->slots[find_slot(v, text, size)] : -1;
}

static size_t pair_slot_of(const struct pair_map *m, uint64_t key)
{
    size_t i = (size_t)mix(key ^ m->seed) & m->mask;
    while (m->slots[i].key != UINT64_MAX && m->slots[i].key != key)
        i = (i + 1) & m->mask;
    return i;
}

static int pair_map_grow(struct pair_map *m, struct err *err)
{
    struct pair_map wide = {.n = m->n, .mask = m->slots ? m->mask * 2 + 1 : 63, .seed = m->seed};
    if (!m->slots)
        wide.seed = random_seed();
    wide.slots = malloc((wide.mask + 1) * sizeof *wide.slots);
    if (!wide.slots)
        return err_set(err, ERR_SYSTEM, "out of memory for a table of %zu merges", wide.mask + 1);
    for (size_t i = 0; i <= wide.mask; i++)
        wide.slots[i].key = UINT64_MAX;
    for (size_t i = 0; m->slots && i <= m->mask; i++)
        if (m->slots[i].key != UINT64_MAX)
            wide.slots[pair_slot_of(&wide, m->slots[i].key)] = m->slots[i];
    free(m->slots);
    *m = wide;
    return 0;
}

int pair_map_set(struct pair_map *m, uint64_t key, uint32_t rank, int32_t id, struct err *err)
{
    assert(key != UINT64_MAX);
    if (!m->slots || m->n * 2 > m->mask) {
        int rc = pair_map_grow(m, err);
        if (rc)
            return rc;
    }
    struct pair_slot *slot = &m->slots[pair_slot_of(m, key)];
    if (slot->key == UINT64_MAX)
        m->n++;
    *slot = (struct pair_slot){key, rank, id};
    return 0;
}

const struct pair_slot *pair_map_find(const struct pair_map *m, uint64_t key)
{
    if (!m->slots)
        return NULL;
    const struct pair_slot *slot = &m->slots[pair_slot_of(m, key)];
    return slot->key == key ? slot : NULL;
}

void pair_map_free(struct pair_map *m)
{
    free(m->slots);
}

int ids_push(struct ids *ids, int32_t id, struct err *err)
{
    if (ids->n == ids->capacity) {
        size_t capacity = ids->capacity ? ids->capacity * 2 : 64;
        int32_t *data = realloc(ids->data, capacity * sizeof *data);
        if (!data)
            return err_set(err, ERR_SYSTEM, "out of memory for %zu token ids", capacity);
        ids->data = data;
        ids->capacity = capacity;
    }
    ids->data[ids->n++] = id;
    return 0;
}

void ids_free(struct ids *ids)
{
    free(ids->data);
    *ids = (struct ids){0};
}

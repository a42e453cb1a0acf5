/* split.c - see split.h. */
#include "model/split.h"

#include "ops/pack.h"

#include <assert.h>

static int64_t least_common_multiple(int64_t a, int64_t b)
{
    int64_t x = a, y = b;
    while (y) {
        int64_t t = x % y;
        x = y;
        y = t;
    }
    return a / x * b;
}

void split_make(struct split *out, const struct config *c, int head_group, int ffn_group, int rank,
                int n_ranks)
{
    *out = (struct split){.rank = rank, .n_ranks = n_ranks};
    int64_t bound[N_SLABS + 1];
    int begin = N_SLABS * rank / n_ranks, end = N_SLABS * (rank + 1) / n_ranks;

    out->head_unit = least_common_multiple(c->head_dim, head_group);
    kcut_slab_bounds((int64_t)c->n_heads * c->head_dim, out->head_unit, bound);
    out->q_head = (int)(bound[begin] / c->head_dim);
    out->n_q_heads = (int)(bound[end] / c->head_dim) - out->q_head;
    int per_kv = c->n_heads / c->n_kv_heads;
    out->kv_head = out->q_head / per_kv;
    if (out->n_q_heads)
        out->n_kv_heads = (out->q_head + out->n_q_heads - 1) / per_kv + 1 - out->kv_head;

    out->ffn_unit = ffn_group;
    kcut_slab_bounds(c->ffn_dim, out->ffn_unit, bound);
    out->ffn = (int)bound[begin];
    out->n_ffn = (int)bound[end] - out->ffn;

    /* Whole panels, so that no two ranks share one. */
    int64_t panels = (c->n_vocab + PANEL - 1) / PANEL;
    int64_t first = panels * rank / n_ranks * PANEL, last = panels * (rank + 1) / n_ranks * PANEL;
    if (last > c->n_vocab)
        last = c->n_vocab;
    out->vocab = (int)first;
    out->n_vocab = (int)(last - first);
}

void split_rows(const struct split *s, const struct config *c, enum split_rule rule, int64_t *first,
                int64_t *count)
{
    switch (rule) {
    case SPLIT_VOCAB:
        *first = s->vocab, *count = s->n_vocab;
        return;
    case SPLIT_Q_HEADS:
        *first = (int64_t)s->q_head * c->head_dim, *count = (int64_t)s->n_q_heads * c->head_dim;
        return;
    case SPLIT_KV_HEADS:
        *first = (int64_t)s->kv_head * c->head_dim, *count = (int64_t)s->n_kv_heads * c->head_dim;
        return;
    case SPLIT_FFN:
        *first = s->ffn, *count = s->n_ffn;
        return;
    case SPLIT_HEAD_COLS:
    case SPLIT_FFN_COLS:
        *first = 0, *count = c->dim;
        return;
    case SPLIT_NONE:
        break;
    }
    assert(!"vectors are not split");
}

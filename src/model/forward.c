/* forward.c - a Llama-style transformer as the papers write it, on one rank's shard. Every thread of every
 * rank runs this same function (SPMD); the two all-reduces of a layer are inside reduce_add_norm. Rank
 * threads only. */
#include "model/forward.h"

#include "base/detmath.h"

/* Cosines and sines of this step's positions: shared by all layers and heads. The angle is the fp32 product,
 * as the reference implementations compute it. */
static int rotary_angles(struct lane *lane, const struct model *m, struct shard *s, const struct batch *batch)
{
    int half = m->config.head_dim / 2, n_threads = lane->worker->n_threads;
    for (int i = 0; i < batch->n_runs; i++) {
        const struct run *run = &batch->runs[i];
        for (int r = lane->worker->thread; r < run->n_rows; r += n_threads) {
            size_t at = (size_t)(run->row + r) * (size_t)half;
            for (int j = 0; j < half; j++) {
                double sine, cosine;
                det_sincos((float)(run->position + r) * m->rope_frequency[j], &sine, &cosine);
                s->sine[at + (size_t)j] = (float)sine;
                s->cosine[at + (size_t)j] = (float)cosine;
            }
        }
    }
    return rank_barrier(lane->worker, "rotary angles");
}

static int attention(struct lane *lane, const struct model *m, struct shard *s, struct layer *l,
                     const struct batch *batch)
{
    const struct ops *ops = m->ops;
    int rows = batch->n_rows, head_dim = m->config.head_dim;
    struct product qkv[] = {
        {&l->q, s->q, s->q_stride, false},
        {&l->k, s->k, s->kv_stride, false},
        {&l->v, s->v, s->kv_stride, false},
    };
    if (ops->linear(lane, qkv, 3, &s->in[INPUT_DIM], rows) ||
        ops->rope(lane, s->q, s->q_stride, s->split.n_q_heads, s->k, s->kv_stride, s->split.n_kv_heads,
                  head_dim, s->cosine, s->sine, rows))
        return -1;
    struct attention a = {
        .n_heads = s->split.n_q_heads,
        .n_kv_heads = s->split.n_kv_heads,
        .kv_of_head = s->kv_of_head,
        .q = s->q,
        .k = s->k,
        .v = s->v,
        .q_stride = s->q_stride,
        .k_stride = s->kv_stride,
        .v_stride = s->kv_stride,
        .runs = batch->runs,
        .n_runs = batch->n_runs,
        .out = s->in[INPUT_HEADS].x,
        .out_stride = s->in[INPUT_HEADS].stride,
    };
    if (ops->attend(lane, &a, &l->kv))
        return -1;
    return ops->partial(lane, &l->o, &s->in[INPUT_HEADS], rows, m->config.dim);
}

static int feed_forward(struct lane *lane, const struct model *m, struct shard *s, struct layer *l, int rows)
{
    const struct ops *ops = m->ops;
    float *gate = s->in[INPUT_FFN].x;
    struct product gate_up[] = {
        {&l->gate, gate, s->ffn_stride, false},
        {&l->up, s->up, s->ffn_stride, false},
    };
    if (ops->linear(lane, gate_up, 2, &s->in[INPUT_DIM], rows) ||
        ops->silu_mul(lane, gate, s->up, s->ffn_stride, s->split.n_ffn, rows))
        return -1;
    return ops->partial(lane, &l->down, &s->in[INPUT_FFN], rows, m->config.dim);
}

int forward(struct lane *lane, const struct model *m, struct shard *s, const struct batch *batch)
{
    const struct ops *ops = m->ops;
    const struct config *c = &m->config;
    const struct act *normed = &s->in[INPUT_DIM];
    int rows = batch->n_rows;

    if (rotary_angles(lane, m, s, batch) ||
        ops->embed(lane, &s->embed, s->split.vocab, batch->tokens, rows, s->x, c->dim) ||
        ops->norm(lane, s->x, NULL, s->layers[0].attn_norm, rows, c->dim, c->norm_eps, normed))
        return -1;
    for (int i = 0; i < c->n_layers; i++) {
        struct layer *l = &s->layers[i];
        if (attention(lane, m, s, l, batch) ||
            ops->reduce_add_norm(lane, s->x, l->ffn_norm, rows, c->dim, c->norm_eps, normed,
                                 "all-reduce of the attention output") ||
            feed_forward(lane, m, s, l, rows))
            return -1;
        const float *next_norm = i + 1 < c->n_layers ? s->layers[i + 1].attn_norm : NULL;
        if (ops->reduce_add_norm(lane, s->x, next_norm, rows, c->dim, c->norm_eps, normed,
                                 "all-reduce of the feed-forward output"))
            return -1;
    }
    if (!batch->n_logits)
        return 0;
    struct product head = {&s->head, batch->logits + s->split.vocab, (size_t)c->n_vocab, true};
    if (ops->norm(lane, s->x, batch->logit_rows, s->out_norm, batch->n_logits, c->dim, c->norm_eps, normed))
        return -1;
    return ops->linear(lane, &head, 1, normed, batch->n_logits);
}

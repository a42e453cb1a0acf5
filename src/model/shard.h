/* shard.h - one rank's part of a model: its slice of every weight repacked for the kernels, its KV cache, and
 * the buffers of a step, all in the rank's arena.
 *
 * Layout is one function run twice: over nothing (to count bytes, before anything is loaded) and over the
 * arena. So the prediction and the use are the same sum. Filled by the rank's own threads (first touch places
 * the pages); weights are read-only afterwards, the rest is written by the rank's threads inside a step. */
#ifndef MODEL_SHARD_H
#define MODEL_SHARD_H

#include "hw/arena.h"
#include "hw/reduce.h"
#include "model/source.h"
#include "model/split.h"
#include "ops/ops.h"

#include <stdatomic.h>

/* Sizes that a run is opened for. */
struct limits {
    int rows;       /* most rows in one step */
    int logit_rows; /* most rows of one step that want logits */
    int ctx;        /* positions per sequence */
    int n_pages;    /* KV pages, shared by all sequences */
    enum kv_type kv;
    int n_threads; /* per rank */
};

struct layer {
    float *attn_norm, *ffn_norm; /* (dim) */
    struct packed q, k, v;       /* (my heads * head_dim, dim) */
    struct packed o;             /* (dim, my q heads * head_dim) */
    struct packed gate, up;      /* (my ffn, dim) */
    struct packed down;          /* (dim, my ffn) */
    struct kv_view kv;
};

/* The three vectors that matrices read; each may be needed as fp32 and as int8. */
enum input { INPUT_DIM, INPUT_HEADS, INPUT_FFN, N_INPUTS };

struct shard {
    const struct config *config;
    struct split split;
    struct limits limits;
    struct kcut cut[N_INPUTS][2]; /* [input][quantised] */
    int *kv_of_head;              /* (n_q_heads) local */

    struct packed embed, head; /* the same panels when tied */
    float *out_norm;           /* (dim) */
    struct layer *layers;      /* (n_layers) */

    float *x;                /* (rows, dim) the residual stream */
    struct act in[N_INPUTS]; /* normed x; attention output; gated FFN channels */
    float *q, *k, *v, *up;   /* (rows, stride below) outputs of the row-split products */
    size_t q_stride, kv_stride, ffn_stride;
    float *cosine, *sine; /* (rows, head_dim / 2) of this step's positions */
    uint8_t *scratch;     /* (n_threads, scratch_bytes) */
    size_t scratch_bytes;

    uint64_t weight_bytes, kv_bytes, step_bytes; /* of the arena: packed weights, cache, everything else */
    struct arena arena;
};

/* Formats and groups of all matrices of a source: what a split needs to know before it exists. */
struct inventory {
    int n_layers;
    struct matrix *matrices; /* (n_layers, N_WEIGHT_ROLES) and one more row for the model-wide ones */
    int head_group, ffn_group;
    bool quantised[N_INPUTS]; /* some matrix reads this input as int8 */
    bool all_f32;
    uint64_t file_bytes, n_parameters;
};
/* Checks that every weight is there with the right shape, and that the norms can be used. */
MUST_CHECK int inventory_make(struct inventory *out, const struct source *s, struct err *err);
void inventory_free(struct inventory *inv);
/* layer < 0: model-wide. */
const struct matrix *inventory_matrix(const struct inventory *inv, enum weight_role role, int layer);
/* "bf16", "mlx4 g64", "q4_k + q6_k": the formats in it, most bytes first. */
void inventory_describe(const struct inventory *inv, char *out, size_t size);

/* How kernels keep a weight of this format. */
struct pack_format pack_format_of(const struct matrix *m);

/* Sums only: fills *out's split, cuts and byte counts; no memory but small tables. shard_free() after it. */
MUST_CHECK int shard_plan(struct shard *out, const struct config *c, const struct inventory *inv,
                          const struct limits *limits, const struct ops *ops, int rank, int n_ranks,
                          struct err *err);
uint64_t shard_bytes(const struct shard *s);
/* Takes the arena (of shard_bytes() at least) and lays the shard out in it. */
void shard_place(struct shard *s, const struct inventory *inv, const struct ops *ops);
void shard_free(struct shard *s);

/* Packs this thread's panels of one layer (layer == -1: embedding and head, and clears the KV cache; norms by
 * thread 0). A failure is noted for the loading thread to read afterwards. Rank threads. */
struct shard_failure {
    _Atomic(const char *) name; /* NULL: none; "out of memory"; else a weight that is not finite */
};
void shard_load_layer(struct shard *s, const struct source *source, const struct inventory *inv, int layer,
                      const struct worker *w, struct shard_failure *failure);

#endif

/* model.h - one transformer, split over the ranks of a team: what it is opened from, the sums before loading,
 * and the step that every rank thread runs. Owned by the engine; model_* from the engine's thread. */
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include "model/shard.h"

/* Rows of one step. Read-only to ranks; owned by the caller of model_step. */
struct batch {
    int n_rows;
    const int32_t *tokens;  /* (n_rows) */
    const struct run *runs; /* (n_runs) cover rows 0 .. n_rows - 1 in order */
    int n_runs;
    int n_logits;
    const int32_t *logit_rows; /* (n_logits) rows that want logits */
    float *logits; /* (n_logits, n_vocab), written by the ranks, each its slice of the vocabulary */
};

struct model_options {
    struct limits limits;     /* n_threads is taken from the topology */
    uint64_t memory_per_rank; /* 0: what each place has free */
    enum isa isa;
    double stall_seconds;
    /* Called between layers while loading; nonzero cancels. May be NULL. */
    int (*progress)(void *user, uint64_t done, uint64_t total);
    void *progress_user;
};

struct model {
    struct config config;
    struct inventory inventory;
    struct topo topo;
    struct team *team;
    struct reduce *reduce;
    const struct kernels *kernels;
    const struct ops *ops;
    int n_ranks;
    struct shard shards[MAX_RANKS];
    float *rope_frequency;     /* (head_dim / 2) */
    const struct batch *batch; /* of the running step */
    bool abandoned;            /* a rank hangs: nothing may be released any more */
};

/* Takes ownership of inventory (of this source) and topo in every case. The source may be closed afterwards. */
MUST_CHECK int model_open(struct model *m, const struct source *source, struct inventory *inventory,
                          struct topo *topo, const struct model_options *options, struct err *err);
/* False: a rank hangs and may still come back to this model, which therefore stays as it is, *m included. */
bool model_close(struct model *m);

/* One step of all ranks. After a failure the batch and all it leads to must stay: see model_close(). */
MUST_CHECK int model_step(struct model *m, const struct batch *batch, struct err *err);

/* Bytes of weights that one generated token reads, all ranks together, as packed. */
uint64_t model_weight_bytes_per_token(const struct model *m);

#endif

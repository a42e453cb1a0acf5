/* split.h - one rank's share of a model: which heads, FFN channels and vocabulary rows, and how K is cut. A
 * function of the configuration, the weights' groups, and (rank, n_ranks) alone. */
#ifndef MODEL_SPLIT_H
#define MODEL_SPLIT_H

#include "model/arch.h"
#include "model/config.h"

#include <stdint.h>

struct split {
    int rank, n_ranks;
    int64_t head_unit, ffn_unit; /* inputs of the column-split matrices are cut at multiples of these */
    int q_head, n_q_heads;       /* first, count */
    int kv_head, n_kv_heads;     /* those that its query heads need */
    int ffn, n_ffn;
    int vocab, n_vocab;
};

/* head_group, ffn_group: largest group of the output projections' (down projections') weights in the model, 1
 * for floats. Heads are cut so that neither a head nor a group is divided. A rank's share may be empty. */
void split_make(struct split *out, const struct config *c, int head_group, int ffn_group, int rank,
                int n_ranks);

/* First row and number of rows of a row-split weight. */
void split_rows(const struct split *s, const struct config *c, enum split_rule rule, int64_t *first,
                int64_t *count);

#endif

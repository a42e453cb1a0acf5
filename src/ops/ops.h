/* ops.h - the dozen things a transformer layer does, on plain pointers, for one rank.
 *
 * The forward pass (model/forward.c) is written once against this table. Every thread of a rank calls every
 * operation with the same arguments (SPMD): the operation shares its work out among the rank's threads and
 * returns when what this thread needs next is complete. A device rank has one host thread, which enqueues.
 *
 * Return value: 0, or nonzero once the team has failed (hw/team.h): the caller returns at once.
 * Sizes were checked at load. `what` arguments name the wait for the error message: string literals. */
#ifndef OPS_OPS_H
#define OPS_OPS_H

#include "hw/reduce.h"
#include "hw/team.h"
#include "ops/kernels.h"
#include "ops/pack.h"

/* Input rows of matrix products: fp32, and int8 where quantised weights will read them. */
struct act {
    float *x; /* (rows, stride) */
    size_t stride;
    struct qact q;          /* unused (q.q == NULL) when no quantised weight reads it */
    const struct kcut *cut; /* that q is quantised for */
};

/* One product of several that share their input: out[r][o] = sum over k of w[o][k] * in[r][k]. */
struct product {
    const struct packed *w;
    float *out; /* (rows, out_stride); out_stride >= 16 * n_panels unless exact_width */
    size_t out_stride;
    bool exact_width; /* out has just w->rows columns: the last panel must not write beyond them */
};

/* Keys and values of one rank and layer: where a position's page lies. */
struct kv_view {
    enum kv_type type;
    uint8_t *data; /* of this layer: (kv heads, n_pages, page) */
    size_t page_bytes, head_bytes;
    int head_dim;
};

/* Consecutive positions of one sequence among the rows of a step. */
struct run {
    int row, n_rows, position; /* of the first row */
    const int32_t *pages;      /* page ids of the sequence, by position / KV_PAGE */
};

struct attention {
    int n_heads, n_kv_heads; /* of this rank */
    const int *kv_of_head;   /* (n_heads) local KV head of each query head, ascending */
    const float *q, *k, *v;  /* rows of n_heads (n_kv_heads) * head_dim, already rotated q and k */
    size_t q_stride, k_stride, v_stride;
    const struct run *runs;
    int n_runs;
    float *out; /* (rows, out_stride) */
    size_t out_stride;
};

enum { ROW_TILE = 64 }; /* rows of a product, or query rows of an attention tile, taken at a time */

/* What one thread of a CPU rank carries through a step. */
struct lane {
    struct worker *worker;
    const struct kernels *kernels;
    struct reduce *reduce;
    uint8_t *scratch; /* ops->scratch_bytes(head_dim) bytes of this thread, 64-byte aligned */
};

struct ops {
    const char *device;
    size_t (*scratch_bytes)(int head_dim, int heads_per_kv); /* per thread */

    /* x[r] = row tokens[r] of the embedding table, of which this rank has [first, first + table->rows); all
     * ranks together have all of it. One all-reduce. */
    int (*embed)(struct lane *l, const struct packed *table, int64_t first, const int32_t *tokens, int rows,
                 float *x, int dim);
    /* out = rmsnorm(x) per row, in fp32 and (out->q.q != NULL) int8. pick: NULL, or the row of x for each
     * row. */
    int (*norm)(struct lane *l, const float *x, const int32_t *pick, const float *weight, int rows, int dim,
                float eps, const struct act *out);
    /* After the partial products of this rank were written with partial(): x[r] += sum over ranks, then norm
     * as above (weight == NULL: no norm). */
    int (*reduce_add_norm)(struct lane *l, float *x, const float *weight, int rows, int dim, float eps,
                           const struct act *out, const char *what);
    /* Row-split products. */
    int (*linear)(struct lane *l, const struct product *products, int n, const struct act *in, int rows);
    /* Column-split product: this rank's partial sums, to be added up by reduce_add_norm. in->q is quantised
     * here from in->x first, if the weight is quantised. */
    int (*partial)(struct lane *l, const struct packed *w, const struct act *in, int rows, int dim);
    /* Rotates heads of q and k in place. cosine, sine: (rows, head_dim / 2). */
    int (*rope)(struct lane *l, float *q, size_t q_stride, int n_q, float *k, size_t k_stride, int n_k,
                int head_dim, const float *cosine, const float *sine, int rows);
    /* Stores k and v of all rows in the cache, then attends: every row sees the positions up to its own. */
    int (*attend)(struct lane *l, const struct attention *a, const struct kv_view *kv);
    /* gate = silu(gate) * up */
    int (*silu_mul)(struct lane *l, float *gate, const float *up, size_t stride, int n, int rows);
};

extern const struct ops ops_cpu;

#endif

/* fixture.h - random matrices, cuts and activations for the kernel tests, made from a seed. Every buffer is
 * an allocation of exactly the promised size, so that a sanitizer sees a kernel that reads too far. */
#ifndef TESTS_KERNELS_FIXTURE_H
#define TESTS_KERNELS_FIXTURE_H

#include "ops/kernels.h"
#include "ops/pack.h"

#include <stdint.h>

struct rng {
    uint64_t state;
};
uint32_t rng_next(struct rng *r);
int rng_below(struct rng *r, int n); /* 0 .. n - 1 */
float rng_uniform(struct rng *r);    /* -1 .. 1 */
void rng_fill(struct rng *r, float *x, size_t n, float scale);

/* What the numbers of a matrix or of activations look like. */
enum flavour {
    RANDOM,
    EXTREME, /* the largest codes, integers and activations, signs mixed by row */
    TINY,    /* factors and activations down to subnormals */
    HUGE_,   /* products near the top of fp32, still finite */
    ZERO,
    N_FLAVOURS,
};

/* Largest |sc| (or |mn|) a format may hold, as pack.h words it. */
int format_sc_limit(const struct pack_format *f);
int format_mn_limit(const struct pack_format *f);
/* The i-th of all quantised formats: bits x width x mins x group; 48 of them. */
enum { N_Q_FORMATS = 48 };
struct pack_format q_format(int i);
const char *format_name(const struct pack_format *f); /* static buffer */

struct weights {
    struct packed packed;
    struct kcut cut;
    /* quantised: the rows as they were before packing, whole K */
    uint8_t *q;       /* (rows, k_total) */
    int16_t *sc, *mn; /* (rows, k_total / group) */
    float *d1, *d2;   /* (rows, ceil(k_total / 256)) */
    /* float: */
    uint8_t *raw; /* (rows, k_total) of the format's type */
};
struct shape {
    int rows;
    int k, unit; /* unit 0: row split */
    int rank, n_ranks;
};
void weights_make(struct weights *w, const struct pack_format *f, const struct shape *s, enum flavour flavour,
                  struct rng *r);
void weights_free(struct weights *w);

/* Activations of n rows for the cut, x: (rows, cut->k) fp32; quantised through `k`. */
struct activations {
    float *x;
    struct qact act;
};
void activations_make(struct activations *a, const struct kcut *cut, int rows, enum flavour flavour,
                      struct rng *r, const struct kernels *k);
void activations_free(struct activations *a);
/* Room for rows of activations, nothing in it. */
void qact_alloc(struct qact *act, const struct kcut *cut, int rows);
void qact_free(struct qact *act);

void *must_alloc(size_t bytes);

#endif

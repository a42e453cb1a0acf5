/* kernels.h - the inner loops, one table per instruction set, all equal to ref.c bit for bit.
 *
 * ref.c is the contract: what it computes, in its order of operations, is what every other table computes.
 * Each table is complete; kernels_select() picks one by what the CPU has. Kernels return
 * void: sizes were checked at load. Pointers need no alignment unless said. Any thread; no state.
 *
 * fp32 everywhere, round to nearest even, subnormals kept, no contraction: an fma is written fmaf() in ref.c.
 */
#ifndef OPS_KERNELS_H
#define OPS_KERNELS_H

#include "base/err.h"
#include "ops/pack.h"

#include <stddef.h>
#include <stdint.h>

/* Activations of n rows quantised for a cut of K. */
struct qact {
    int8_t *q;       /* (rows, q_stride); q_stride a multiple of 64, inputs beyond k are zero */
    float *scale;    /* (rows, n_blocks) */
    int32_t *sum[4]; /* sum[i]: (rows, sum_stride >> i) sums of q over groups of 16 << i inputs, counted from
                        the rank's first input; only groups that lie wholly inside k */
    int32_t q_stride, sum_stride, n_blocks;
};

enum { NORM_LANES = 256 };

enum kv_type { KV_F32, KV_F16, KV_Q8 };
enum { KV_PAGE = 128 }; /* positions per page */

/* One page of one KV head of one layer. K is stored transposed so that lanes are positions. */
struct kv_page {
    void *k;        /* (head_dim, 128) */
    void *v;        /* (128, head_dim) */
    float *k_scale; /* (128), KV_Q8 */
    float *v_scale; /* (128), KV_Q8 */
};

struct kernels {
    const char *name;

    /* out[r * out_stride + o] for rows r < n_rows of x (from row x_row) and the 16 outputs o of `panel`:
     *   acc = 0; for blocks b in [block_begin, block_end):
     *     t = sum over groups of sc * (dot(q_w, q_x) - zero * sum(q_x))      (int32, exact; zero = 0 with mins)
     *     acc = fma(d1 * scale_x, (float)t, acc)
     *     with mins: u = sum over groups of mn * sum(q_x); acc = fma(d2 * scale_x, (float)u, acc) */
    void (*gemm_q)(const struct packed *w, int panel, int block_begin, int block_end, const struct qact *x,
                   int x_row, int n_rows, float *out, size_t out_stride);
    /* acc = 0; for k in order: acc = fma(x[k], w[k], acc). x: (rows, x_stride) fp32, already at its first
     * row. */
    void (*gemm_f)(const struct packed *w, int panel, int block_begin, int block_end, const float *x,
                   size_t x_stride, int n_rows, float *out, size_t out_stride);

    /* Per block of the cut: m = max|x|; m < 2^-100 counts as 0 (scale 0, all q 0); scale = m / 127;
     * q = rint(x * (127 / m)), ties to even, within [-127, 127]. Writes row `row` of *out. */
    void (*quantize)(const struct kcut *cut, const float *x, const struct qact *out, int row);

    /* out[i] = (x[i] * r) * w[i], r = 1 / sqrt(s / n + eps); s: 256 lanes, lane[i % 256] = fma(x[i], x[i],
     * lane), then lane[i] += lane[i + 128], + 64, … + 1 (many lanes: a GPU's threads, and short chains). out
     * may be x. */
    void (*rmsnorm)(const float *x, const float *w, int n, float eps, float *out);

    /* out[i] = (g / (1 + exp(-g))) * up[i], g = gate[i]; exp below. out may be gate. */
    void (*silu_mul)(const float *gate, const float *up, int n, float *out);

    /* In place, half-split pairs: a = x[i], b = x[i + half]; x[i] = a*c - b*s; x[i + half] = a*s + b*c, each
     * product rounded. cosine, sine: (half). */
    void (*rope)(float *x, const float *cosine, const float *sine, int half);

    /* Stores one position's key and value (head_dim each) at slot `slot` of a page, in the cache's type: F16
     * rounds to nearest even (finite values beyond 65504 clamp to it); Q8: scale = max|x| / 127 per
     * (position, head), as in quantize. */
    void (*kv_store)(enum kv_type type, const struct kv_page *page, int slot, int head_dim, const float *key,
                     const float *value);

    /* Attention of n_rows query rows over one page: q (n_rows, q_stride), already scaled by 1/sqrt(head_dim);
     * n_valid[r] in [0, 128]: row r sees slots [0, n_valid[r]).
     *   s[j] = fma chain over d of q[d] * K[d][j], from 0   (Q8: then * k_scale[j])
     *   m = max s;  p[j] = exp(s[j] - m)
     *   l: 16 lanes, lane[j % 16] += p[j] in order, then lane[i] += lane[i + 8], + 4, + 2, + 1
     *   o[d] = fma chain over j in order of p[j] * V[j][d], from 0   (Q8: p[j] * v_scale[j] first)
     * Then folds (m, l, o) into the running state of the row (max (n_rows), sum (n_rows), acc (n_rows, head_dim)):
     *   first != 0: the state becomes (m, l, o)
     *   else M = max(max, m), a = exp(max - M), b = exp(m - M): sum = sum * a + l * b, acc = acc * a + o * b, each
     *   product rounded. Rows with n_valid = 0 leave their state alone (never on their first page).
     * scratch: (n_rows, 128 + head_dim) floats. */
    void (*attend)(enum kv_type type, const struct kv_page *page, int head_dim, const float *q,
                   size_t q_stride, int n_rows, const int *n_valid, int first, float *max, float *sum,
                   float *acc, float *scratch);

    /* out[i] = acc[i] / sum for one row. */
    void (*attend_finish)(const float *acc, float sum, int head_dim, float *out);

    /* x[i] += y[i]. */
    void (*add)(float *x, const float *y, size_t n);
};

/* exp(x), the one used everywhere: x > 88 -> exp(88); x < -87 -> 0; else n = rint(x * 1.44269502f),
 * r = fma(-n, ln2_hi, x), r = fma(-n, ln2_lo, r), a degree-6 polynomial in r by Horner's rule with fma, times
 * 2^n (added to the exponent). The constants are in ref.c. Relative error below 2e-7. */
float exp_ref(float x);

extern const struct kernels kernels_ref;

enum isa { ISA_AUTO, ISA_REF, ISA_AVX2, ISA_AVX512, ISA_AMX, ISA_NEON };

/* The table for an instruction set ("auto": the best this CPU has). ERR_USAGE when the name is unknown,
 * ERR_SYSTEM when this CPU or this build lacks it. */
MUST_CHECK int kernels_select(const struct kernels **out, enum isa isa, struct err *err);
MUST_CHECK int isa_from_name(const char *name, enum isa *out, struct err *err);

#endif

/* lanes_q.h - gemm_q once for all x86 vector widths, over 16 int32 lanes and unpacked steps of codes
 * (lanes_avx2.h or lanes_avx512.h). Integers are exact, so only the fold into fp32 has an order: ref.c's.
 *
 * A tile is up to GEMM_Q_ROWS rows of activations by one panel: weights are unpacked once for all rows of the
 * tile. Sums over activations (mins, or the code that means 0) are multiplied two groups at a time. Included
 * by avx2.c and avx512.c only; static functions throughout. */
#ifndef OPS_LANES_Q_H
#define OPS_LANES_Q_H

#include "ops/block.h"
#include "ops/kernels.h"

enum { AHEAD_BYTES = 8192 }; /* prefetch distance in the weight stream; panels follow each other in memory */

/* One row of activations at a block. */
struct row_view {
    const int8_t *q;
    const int32_t *sum;
    const float *scale;
};

/* The integers of group g for the 16 outputs. */
ALWAYS_INLINE __m256i load_ints(const uint8_t *plane, int width, int g)
{
    if (width == 1)
        return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(plane + g * PANEL)));
    return _mm256_loadu_si256((const __m256i *)(plane + g * PANEL * 2));
}

ALWAYS_INLINE void prefetch(const uint8_t *p, int bytes)
{
    for (int i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)p + AHEAD_BYTES + i, _MM_HINT_T0);
}

/* t[r] = sum over groups of sc * dot. */
ALWAYS_INLINE void block_dots(const int bits, const int group, const int R, int width, int len,
                              const struct block_view *v, const struct row_view *row, i32x16 *t)
{
    const uint8_t *codes = v->codes;
    const int unit_bytes = 2 * PANEL * bits; /* of 16 inputs */
    for (int r = 0; r < R; r++)
        t[r] = i_zero();
    for (int g = 0, k = 0; k < len; g++) {
        i32x16 dot[GEMM_Q_ROWS];
        for (int r = 0; r < R; r++)
            dot[r] = i_zero();
        for (int i = 0; i < group; i += 16, k += 16, codes += unit_bytes) {
            kstep w[4];
            unpack16(bits, codes, w);
            prefetch(codes, unit_bytes);
            for (int r = 0; r < R; r++)
                dot[r] = dot16(bits, dot[r], w, row[r].q + k);
        }
        i32x16 sc = i_from_i16(load_ints(v->sc, width, g));
        for (int r = 0; r < R; r++)
            t[r] = i_add(t[r], i_mul(sc, dot[r]));
    }
}

/* u[r] = sum over groups of integer * sum(q_x), integers from `plane` (mn, or sc where a code means 0). */
ALWAYS_INLINE void block_sums(const int R, int width, int n_groups, const uint8_t *plane,
                              const struct row_view *row, i32x16 *u)
{
    int16_t sums[GEMM_Q_ROWS][MAX_GROUPS + 2]; /* |sum| <= 128 * 127 */
    for (int r = 0; r < R; r++) {
        for (int g = 0; g < n_groups; g++)
            sums[r][g] = (int16_t)row[r].sum[g];
        sums[r][n_groups] = 0;
        u[r] = i_zero();
    }
    /* The partner of an odd last group is whatever follows (the block's codes: readable) and meets a sum of
     * 0. */
    for (int g = 0; g < n_groups; g += 2) {
        i32x16 pairs = i_pair(load_ints(plane, width, g), load_ints(plane, width, g + 1));
        for (int r = 0; r < R; r++)
            u[r] = i_pair_dot(u[r], pairs, &sums[r][g]);
    }
}

ALWAYS_INLINE void gemm_q_tile(const int bits, const bool has_min, const int group, const int R,
                               const struct packed *w, int panel, int block_begin, int block_end,
                               const struct qact *x, int x_row, int n_rows, float *out, size_t out_stride)
{
    const struct pack_format *f = &w->format;
    const uint8_t *base = w->data + (size_t)panel * w->panel_bytes;
    int level = sum_level(group);
    struct row_view first[GEMM_Q_ROWS];
    v16 acc[GEMM_Q_ROWS];
    for (int r = 0; r < R; r++) { /* rows beyond the end repeat the last: computed, not stored */
        size_t i = (size_t)(x_row + (r < n_rows ? r : n_rows - 1));
        first[r].q = x->q + i * (size_t)x->q_stride;
        first[r].sum = x->sum[level] + i * (size_t)(x->sum_stride >> level);
        first[r].scale = x->scale + i * (size_t)x->n_blocks;
        acc[r] = v_zero();
    }
    for (int b = block_begin; b < block_end; b++) {
        const struct kblock *kb = &w->cut->blocks[b];
        const uint8_t *block = base + w->block_offset[b];
        struct block_view v = block_view_at(f, kb->len, block);
        struct row_view row[GEMM_Q_ROWS];
        i32x16 t[GEMM_Q_ROWS], u[GEMM_Q_ROWS];
        prefetch(block, (int)(v.codes - block));
        for (int r = 0; r < R; r++)
            row[r] =
                (struct row_view){first[r].q + kb->k0, first[r].sum + kb->k0 / group, first[r].scale + b};
        block_dots(bits, group, R, f->width, kb->len, &v, row, t);
        block_sums(R, f->width, kb->len / group, has_min ? v.mn : v.sc, row, u);
        v16 d1 = v_load(v.d1), d2 = has_min ? v_load(v.d2) : v_zero();
        for (int r = 0; r < R; r++) {
            v16 scale = v_set1(*row[r].scale);
            if (!has_min)
                t[r] = i_sub(t[r], i_mul(i_set1(f->zero), u[r]));
            acc[r] = v_fma(v_mul(d1, scale), i_float(t[r]), acc[r]);
            if (has_min)
                acc[r] = v_fma(v_mul(d2, scale), i_float(u[r]), acc[r]);
        }
    }
    for (int r = 0; r < R && r < n_rows; r++)
        v_store(out + (size_t)r * out_stride, acc[r]);
}

/* Row tiles of GEMM_Q_ROWS, the last one the smallest of 1, 2, 4, 8 that fits. `group` is a constant or the
 * format's. */
#define GEMM_Q(name, bits, has_min, group)                                                                   \
    static void name(const struct packed *w, int panel, int block_begin, int block_end,                      \
                     const struct qact *x, int x_row, int n_rows, float *out, size_t stride)                 \
    {                                                                                                        \
        for (int r = 0; r < n_rows; r += GEMM_Q_ROWS) {                                                      \
            int n = n_rows - r, row = x_row + r;                                                             \
            float *to = out + (size_t)r * stride;                                                            \
            if (n > 4 && GEMM_Q_ROWS > 4)                                                                    \
                gemm_q_tile(bits, has_min, group, GEMM_Q_ROWS, w, panel, block_begin, block_end, x, row, n,  \
                            to, stride);                                                                     \
            else if (n > 2)                                                                                  \
                gemm_q_tile(bits, has_min, group, 4, w, panel, block_begin, block_end, x, row, n, to,        \
                            stride);                                                                         \
            else if (n > 1)                                                                                  \
                gemm_q_tile(bits, has_min, group, 2, w, panel, block_begin, block_end, x, row, n, to,        \
                            stride);                                                                         \
            else                                                                                             \
                gemm_q_tile(bits, has_min, group, 1, w, panel, block_begin, block_end, x, row, n, to,        \
                            stride);                                                                         \
        }                                                                                                    \
    }

/* The commonest: Q4_0, Q4_K and MLX 4-bit at group 32, Q6_K, Q8_0. */
GEMM_Q(gemm_q4_32, 4, false, 32)
GEMM_Q(gemm_q4_min_32, 4, true, 32)
GEMM_Q(gemm_q6_16, 6, false, 16)
GEMM_Q(gemm_q8_32, 8, false, 32)
/* Any group. */
GEMM_Q(gemm_q4, 4, false, w->format.group)
GEMM_Q(gemm_q6, 6, false, w->format.group)
GEMM_Q(gemm_q8, 8, false, w->format.group)
GEMM_Q(gemm_q4_min, 4, true, w->format.group)
GEMM_Q(gemm_q6_min, 6, true, w->format.group)
GEMM_Q(gemm_q8_min, 8, true, w->format.group)

static void lanes_gemm_q(const struct packed *w, int panel, int block_begin, int block_end,
                         const struct qact *x, int x_row, int n_rows, float *out, size_t out_stride)
{
    const struct pack_format *f = &w->format;
    void (*gemm)(const struct packed *, int, int, int, const struct qact *, int, int, float *, size_t);
    if (f->bits == 4 && f->group == 32)
        gemm = f->has_min ? gemm_q4_min_32 : gemm_q4_32;
    else if (f->bits == 4)
        gemm = f->has_min ? gemm_q4_min : gemm_q4;
    else if (f->bits == 6)
        gemm = f->has_min ? gemm_q6_min : f->group == 16 ? gemm_q6_16 : gemm_q6;
    else
        gemm = f->has_min ? gemm_q8_min : f->group == 32 ? gemm_q8_32 : gemm_q8;
    gemm(w, panel, block_begin, block_end, x, x_row, n_rows, out, out_stride);
}

#endif

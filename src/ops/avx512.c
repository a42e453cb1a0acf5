/* avx512.c - kernels for AVX-512 (F, BW, DQ, VL) with VNNI. Equal to ref.c bit for bit; any thread.
 *
 * gemm_q: the int8 dots go through vpdpbusd, a group's integer scale through vpmulld; the sums over
 * activations (mins, or the code that means 0) take two groups at a time through vpdpwssd. A tile is up to 8
 * rows of activations by one panel: weights are unpacked once for all rows of the tile. */
#include "ops/lanes_avx512.h"

#include "ops/lanes.h"

enum {
    GEMM_Q_ROWS = 8,
    AHEAD_BYTES = 8192, /* prefetch distance in the weight stream; panels follow each other in memory */
};

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

/* The integers of groups g and g + 1 side by side, as vpdpwssd wants them. When g is the block's last, the
 * second half is whatever follows (the block's codes: readable) and meets a sum of 0. */
ALWAYS_INLINE __m512i load_int_pairs(const uint8_t *plane, int width, int g)
{
    __m512i even = _mm512_cvtepu16_epi32(load_ints(plane, width, g));
    __m512i odd = _mm512_cvtepu16_epi32(load_ints(plane, width, g + 1));
    return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}

/* The four steps (16 inputs) at codes, one byte a code. */
ALWAYS_INLINE void unpack16(const int bits, const uint8_t *codes, __m512i w[4])
{
    const __m512i *in = (const __m512i *)codes;
    if (bits == 8) {
        for (int i = 0; i < 4; i++)
            w[i] = _mm512_loadu_si512(in + i);
        return;
    }
    const __m512i low = _mm512_set1_epi8(0x0f), high = _mm512_set1_epi8(0x30);
    __m512i a = _mm512_loadu_si512(in), b = _mm512_loadu_si512(in + 1);
    w[0] = _mm512_and_si512(a, low);
    w[1] = _mm512_and_si512(_mm512_srli_epi16(a, 4), low);
    w[2] = _mm512_and_si512(b, low);
    w[3] = _mm512_and_si512(_mm512_srli_epi16(b, 4), low);
    if (bits == 6) { /* (h shifted & 0x30) | w */
        __m512i h = _mm512_loadu_si512(in + 2);
        w[0] = _mm512_ternarylogic_epi32(_mm512_slli_epi16(h, 4), high, w[0], 0xea);
        w[1] = _mm512_ternarylogic_epi32(_mm512_slli_epi16(h, 2), high, w[1], 0xea);
        w[2] = _mm512_ternarylogic_epi32(h, high, w[2], 0xea);
        w[3] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(h, 2), high, w[3], 0xea);
    }
}

ALWAYS_INLINE __m512i broadcast4(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, 4);
    return _mm512_set1_epi32(four);
}

/* t[r] = sum over groups of sc * dot. */
ALWAYS_INLINE void block_dots(const int bits, const int R, const struct pack_format *f, int len,
                              const struct block_view *v, const struct row_view *row, __m512i *t)
{
    const uint8_t *codes = v->codes;
    const int unit_bytes = 2 * PANEL * bits; /* of 16 inputs */
    for (int r = 0; r < R; r++)
        t[r] = _mm512_setzero_si512();
    for (int g = 0, k = 0; k < len; g++) {
        __m512i dot[GEMM_Q_ROWS];
        for (int r = 0; r < R; r++)
            dot[r] = _mm512_setzero_si512();
        for (int end = k + f->group; k < end; k += 16) {
            __m512i w[4];
            unpack16(bits, codes, w);
            for (int i = 0; i < unit_bytes; i += 64)
                _mm_prefetch((const char *)codes + AHEAD_BYTES + i, _MM_HINT_T0);
            codes += unit_bytes;
            for (int s = 0; s < 4; s++)
                for (int r = 0; r < R; r++)
                    dot[r] = _mm512_dpbusd_epi32(dot[r], w[s], broadcast4(row[r].q + k + 4 * s));
        }
        __m512i sc = _mm512_cvtepi16_epi32(load_ints(v->sc, f->width, g));
        for (int r = 0; r < R; r++)
            t[r] = _mm512_add_epi32(t[r], _mm512_mullo_epi32(sc, dot[r]));
    }
}

/* u[r] = sum over groups of integer * sum(q_x), integers from `plane` (mn, or sc where a code means 0). */
ALWAYS_INLINE void block_sums(const int R, const struct pack_format *f, int len, const uint8_t *plane,
                              const struct row_view *row, __m512i *u)
{
    int n_groups = len / f->group;
    int16_t sums[GEMM_Q_ROWS][MAX_GROUPS]; /* |sum| <= 128 * 127 */
    for (int r = 0; r < R; r++) {
        __m512i s = _mm512_maskz_loadu_epi32(first_lanes(n_groups), row[r].sum);
        _mm256_storeu_si256((__m256i *)sums[r], _mm512_cvtepi32_epi16(s));
        u[r] = _mm512_setzero_si512();
    }
    for (int g = 0; g < n_groups; g += 2) {
        __m512i ints = load_int_pairs(plane, f->width, g);
        for (int r = 0; r < R; r++)
            u[r] = _mm512_dpwssd_epi32(u[r], ints, broadcast4((const int8_t *)&sums[r][g]));
    }
}

ALWAYS_INLINE void gemm_q_tile(const int bits, const bool has_min, const int R, const struct packed *w,
                               int panel, int block_begin, int block_end, const struct qact *x, int x_row,
                               int n_rows, float *out, size_t out_stride)
{
    const struct pack_format *f = &w->format;
    const uint8_t *base = w->data + (size_t)panel * w->panel_bytes;
    int level = sum_level(f->group);
    struct row_view first[GEMM_Q_ROWS];
    __m512 acc[GEMM_Q_ROWS];
    for (int r = 0; r < R; r++) { /* rows beyond the end repeat the last: computed, not stored */
        size_t i = (size_t)(x_row + (r < n_rows ? r : n_rows - 1));
        first[r].q = x->q + i * (size_t)x->q_stride;
        first[r].sum = x->sum[level] + i * (size_t)(x->sum_stride >> level);
        first[r].scale = x->scale + i * (size_t)x->n_blocks;
        acc[r] = _mm512_setzero_ps();
    }
    for (int b = block_begin; b < block_end; b++) {
        const struct kblock *kb = &w->cut->blocks[b];
        struct block_view v = block_view_at(f, kb->len, base + w->block_offset[b]);
        struct row_view row[GEMM_Q_ROWS];
        __m512i t[GEMM_Q_ROWS], u[GEMM_Q_ROWS];
        for (int i = 0; i < v.codes - (const uint8_t *)v.d1; i += 64)
            _mm_prefetch((const char *)v.d1 + AHEAD_BYTES + i, _MM_HINT_T0);
        for (int r = 0; r < R; r++)
            row[r] =
                (struct row_view){first[r].q + kb->k0, first[r].sum + kb->k0 / f->group, first[r].scale + b};
        block_dots(bits, R, f, kb->len, &v, row, t);
        block_sums(R, f, kb->len, has_min ? v.mn : v.sc, row, u);
        __m512 d1 = _mm512_loadu_ps(v.d1), d2 = has_min ? _mm512_loadu_ps(v.d2) : _mm512_setzero_ps();
        __m512i zero = _mm512_set1_epi32(f->zero);
        for (int r = 0; r < R; r++) {
            __m512 scale = _mm512_set1_ps(*row[r].scale);
            if (!has_min)
                t[r] = _mm512_sub_epi32(t[r], _mm512_mullo_epi32(zero, u[r]));
            acc[r] = _mm512_fmadd_ps(_mm512_mul_ps(d1, scale), _mm512_cvtepi32_ps(t[r]), acc[r]);
            if (has_min)
                acc[r] = _mm512_fmadd_ps(_mm512_mul_ps(d2, scale), _mm512_cvtepi32_ps(u[r]), acc[r]);
        }
    }
    for (int r = 0; r < R && r < n_rows; r++)
        _mm512_storeu_ps(out + (size_t)r * out_stride, acc[r]);
}

/* Row tiles of 8, the last one the smallest of 1, 2, 4, 8 that fits. */
#define GEMM_Q(name, bits, has_min)                                                                          \
    static void name(const struct packed *w, int panel, int block_begin, int block_end,                      \
                     const struct qact *x, int x_row, int n_rows, float *out, size_t stride)                 \
    {                                                                                                        \
        for (int r = 0; r < n_rows; r += GEMM_Q_ROWS) {                                                      \
            int n = n_rows - r, row = x_row + r;                                                             \
            float *to = out + (size_t)r * stride;                                                            \
            if (n > 4)                                                                                       \
                gemm_q_tile(bits, has_min, 8, w, panel, block_begin, block_end, x, row, n, to, stride);      \
            else if (n > 2)                                                                                  \
                gemm_q_tile(bits, has_min, 4, w, panel, block_begin, block_end, x, row, n, to, stride);      \
            else if (n > 1)                                                                                  \
                gemm_q_tile(bits, has_min, 2, w, panel, block_begin, block_end, x, row, n, to, stride);      \
            else                                                                                             \
                gemm_q_tile(bits, has_min, 1, w, panel, block_begin, block_end, x, row, n, to, stride);      \
        }                                                                                                    \
    }

GEMM_Q(gemm_q4, 4, false)
GEMM_Q(gemm_q6, 6, false)
GEMM_Q(gemm_q8, 8, false)
GEMM_Q(gemm_q4_min, 4, true)
GEMM_Q(gemm_q6_min, 6, true)
GEMM_Q(gemm_q8_min, 8, true)

static void avx512_gemm_q(const struct packed *w, int panel, int block_begin, int block_end,
                          const struct qact *x, int x_row, int n_rows, float *out, size_t out_stride)
{
    const struct pack_format *f = &w->format;
    if (f->bits == 4)
        (f->has_min ? gemm_q4_min : gemm_q4)(w, panel, block_begin, block_end, x, x_row, n_rows, out,
                                             out_stride);
    else if (f->bits == 6)
        (f->has_min ? gemm_q6_min : gemm_q6)(w, panel, block_begin, block_end, x, x_row, n_rows, out,
                                             out_stride);
    else
        (f->has_min ? gemm_q8_min : gemm_q8)(w, panel, block_begin, block_end, x, x_row, n_rows, out,
                                             out_stride);
}

const struct kernels kernels_avx512 = {
    .name = "avx512",
    .row_tile = GEMM_Q_ROWS,
    .gemm_q = avx512_gemm_q,
    .gemm_f = lanes_gemm_f,
    .quantize = lanes_quantize,
    .rmsnorm = lanes_rmsnorm,
    .silu_mul = lanes_silu_mul,
    .rope = lanes_rope,
    .kv_store = lanes_kv_store,
    .attend = lanes_attend,
    .attend_finish = lanes_attend_finish,
    .add = lanes_add,
};

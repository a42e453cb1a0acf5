/* lanes.h - the fp32 kernels once for all x86 vector widths, over 16 lanes (type v16 and v_... functions of
 * lanes_avx2.h or lanes_avx512.h, which the including file chooses). Every order of operations is ref.c's.
 * Included by avx2.c and avx512.c only, compiled into each with its own flags; static functions throughout.
 */
#ifndef OPS_LANES_H
#define OPS_LANES_H

#include "base/half.h"
#include "ops/block.h"
#include "ops/kernels.h"

#include <math.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

static inline float lanes_sum(v16 v)
{
    __m256 a = _mm256_add_ps(v_low(v), v_high(v));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

static inline float lanes_max(v16 v)
{
    __m256 a = _mm256_max_ps(v_low(v), v_high(v));
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

static inline v16 lanes_exp(v16 x)
{
    v16 y = v_min(x, v_set1(EXP_MAX));
    v16 n = v_rint(v_mul(y, v_set1(EXP_LOG2E)));
    v16 r = v_fnma(n, v_set1(EXP_LN2_HI), y);
    r = v_fnma(n, v_set1(EXP_LN2_LO), r);
    v16 p = v_set1(EXP_C6);
    p = v_fma(p, r, v_set1(EXP_C5));
    p = v_fma(p, r, v_set1(EXP_C4));
    p = v_fma(p, r, v_set1(EXP_C3));
    p = v_fma(p, r, v_set1(EXP_C2));
    p = v_fma(p, r, v_set1(1));
    p = v_fma(p, r, v_set1(1));
    return v_where_ge(v_ldexp(p, n), x, v_set1(EXP_MIN));
}

/* gemm_f: R rows of one panel. */
ALWAYS_INLINE v16 load_weights(enum pack_kind kind, const uint8_t *panel, size_t k)
{
    if (kind == PACK_F32)
        return v_load((const float *)panel + k * PANEL);
    const uint16_t *half = (const uint16_t *)panel + k * PANEL;
    return kind == PACK_F16 ? v_load_f16(half) : v_load_bf16(half);
}

ALWAYS_INLINE void gemm_f_tile(enum pack_kind kind, const uint8_t *panel, int k_begin, int k_end,
                               const float *x, size_t x_stride, int n_rows, const int R, float *out,
                               size_t out_stride)
{
    enum { AHEAD = 64 }; /* inputs: 2 to 4 KB */
    const float *xr[GEMM_F_ROWS];
    v16 acc[GEMM_F_ROWS];
    for (int r = 0; r < R; r++) {
        xr[r] = x + (size_t)(r < n_rows ? r : n_rows - 1) *
                        x_stride; /* rows beyond the end: computed, not stored */
        acc[r] = v_zero();
    }
    for (int k = k_begin; k < k_end; k++) {
        v16 w = load_weights(kind, panel, (size_t)k);
        size_t size = kind == PACK_F32 ? 4 : 2;
        _mm_prefetch((const char *)panel + (size_t)(k + AHEAD) * PANEL * size, _MM_HINT_T0);
        for (int r = 0; r < R; r++)
            acc[r] = v_fma(v_set1(xr[r][k]), w, acc[r]);
    }
    for (int r = 0; r < R && r < n_rows; r++)
        v_store(out + (size_t)r * out_stride, acc[r]);
}

ALWAYS_INLINE void gemm_f_rows(enum pack_kind kind, const uint8_t *panel, int k_begin, int k_end,
                               const float *x, size_t x_stride, int n_rows, float *out, size_t out_stride)
{
    for (int r = 0; r < n_rows; r += GEMM_F_ROWS) {
        int left = n_rows - r;
        const float *xr = x + (size_t)r * x_stride;
        float *to = out + (size_t)r * out_stride;
        if (left == 1)
            gemm_f_tile(kind, panel, k_begin, k_end, xr, x_stride, left, 1, to, out_stride);
        else if (left == 2)
            gemm_f_tile(kind, panel, k_begin, k_end, xr, x_stride, left, 2, to, out_stride);
        else if (left <= 4)
            gemm_f_tile(kind, panel, k_begin, k_end, xr, x_stride, left, 4, to, out_stride);
        else
            gemm_f_tile(kind, panel, k_begin, k_end, xr, x_stride, left, GEMM_F_ROWS, to, out_stride);
    }
}

static void lanes_gemm_f(const struct packed *w, int panel, int block_begin, int block_end, const float *x,
                         size_t x_stride, int n_rows, float *out, size_t out_stride)
{
    const uint8_t *base = w->data + (size_t)panel * w->panel_bytes;
    int begin = 0, end = 0; /* float blocks follow each other without gaps: one range of k */
    if (block_begin < block_end) {
        const struct kblock *last = &w->cut->blocks[block_end - 1];
        begin = w->cut->blocks[block_begin].k0;
        end = last->k0 + last->len;
    }
    switch (w->format.kind) {
    case PACK_F32:
        gemm_f_rows(PACK_F32, base, begin, end, x, x_stride, n_rows, out, out_stride);
        break;
    case PACK_F16:
        gemm_f_rows(PACK_F16, base, begin, end, x, x_stride, n_rows, out, out_stride);
        break;
    default:
        gemm_f_rows(PACK_BF16, base, begin, end, x, x_stride, n_rows, out, out_stride);
        break;
    }
}

static float quant_scale(const float *x, int n, float *inverse)
{
    v16 top = v_zero();
    int i = 0;
    for (; i + 16 <= n; i += 16)
        top = v_max(v_abs(v_load(x + i)), top);
    if (i < n)
        top = v_max(v_abs(v_load_n(x + i, n - i)), top);
    float m = lanes_max(top);
    *inverse = m < QUANT_TINY ? 0 : 127.0f / m;
    return m < QUANT_TINY ? 0 : m / 127.0f;
}

static inline v16 quant_codes(v16 x, float inverse)
{
    if (inverse == 0)
        return v_zero();
    v16 v = v_mul(x, v_set1(inverse));
    v = v_max(v, v_set1(-127));
    return v_min(v, v_set1(127));
}

static inline int32_t sum_i8_16(const int8_t *p)
{
    __m128i v = _mm_xor_si128(_mm_loadu_si128((const __m128i *)p), _mm_set1_epi8((char)0x80));
    v = _mm_sad_epu8(v, _mm_setzero_si128());
    return _mm_cvtsi128_si32(v) + _mm_extract_epi16(v, 4) - 16 * 128;
}

static void lanes_quantize(const struct kcut *cut, const float *x, const struct qact *out, int row)
{
    int8_t *q = out->q + (size_t)row * (size_t)out->q_stride;
    for (int b = 0; b < cut->n_blocks; b++) { /* 16 divides every block's len */
        const struct kblock *kb = &cut->blocks[b];
        float inverse;
        out->scale[(size_t)row * (size_t)out->n_blocks + (size_t)b] =
            quant_scale(x + kb->k0, kb->len, &inverse);
        for (int i = kb->k0; i < kb->k0 + kb->len; i += 16)
            v_store_i8_n(q + i, quant_codes(v_load(x + i), inverse), 16);
    }
    memset(q + cut->k, 0, (size_t)(out->q_stride - cut->k));
    int32_t *sum = out->sum[0] + (size_t)row * (size_t)out->sum_stride;
    for (int g = 0; g < cut->k / 16; g++)
        sum[g] = sum_i8_16(q + 16 * g);
    for (int level = 1; level < 4; level++) {
        const int32_t *finer = sum;
        sum = out->sum[level] + (size_t)row * (size_t)(out->sum_stride >> level);
        for (int g = 0; g < cut->k / (16 << level); g++)
            sum[g] = finer[2 * g] + finer[2 * g + 1];
    }
}

static void lanes_rmsnorm(const float *x, const float *w, int n, float eps, float *out)
{
    enum { CHAINS = NORM_LANES / 16 };
    v16 lane[CHAINS];
    int whole = n / 16 * 16, rest = n % 16;
    for (int c = 0; c < CHAINS; c++)
        lane[c] = v_zero();
    for (int i = 0; i < whole; i += 16) {
        v16 v = v_load(x + i), *sum = &lane[i / 16 % CHAINS];
        *sum = v_fma(v, v, *sum);
    }
    if (rest) {
        v16 v = v_load_n(x + whole, rest), *sum = &lane[whole / 16 % CHAINS];
        *sum = v_fma(v, v, *sum);
    }
    for (int step = CHAINS / 2; step >= 1; step /= 2)
        for (int c = 0; c < step; c++)
            lane[c] = v_add(lane[c], lane[c + step]);
    v16 r = v_set1(1.0f / sqrtf(lanes_sum(lane[0]) / (float)n + eps));
    for (int i = 0; i < whole; i += 16)
        v_store(out + i, v_mul(v_mul(v_load(x + i), r), v_load(w + i)));
    if (rest)
        v_store_n(out + whole, v_mul(v_mul(v_load_n(x + whole, rest), r), v_load_n(w + whole, rest)), rest);
}

static inline v16 silu_mul16(v16 g, v16 up)
{
    v16 e = lanes_exp(v_sub(v_set1(-0.0f), g)); /* -0 - g is -g, also for zeros */
    return v_mul(v_div(g, v_add(v_set1(1), e)), up);
}

static void lanes_silu_mul(const float *gate, const float *up, int n, float *out)
{
    int i = 0;
    for (; i + 16 <= n; i += 16)
        v_store(out + i, silu_mul16(v_load(gate + i), v_load(up + i)));
    if (i < n)
        v_store_n(out + i, silu_mul16(v_load_n(gate + i, n - i), v_load_n(up + i, n - i)), n - i);
}

static void lanes_rope(float *x, const float *cosine, const float *sine, int half)
{
    for (int i = 0; i < half; i += 16) {
        int n = half - i < 16 ? half - i : 16;
        v16 a = v_load_n(x + i, n), b = v_load_n(x + i + half, n);
        v16 c = v_load_n(cosine + i, n), s = v_load_n(sine + i, n);
        v_store_n(x + i, v_sub(v_mul(a, c), v_mul(b, s)), n);
        v_store_n(x + i + half, v_add(v_mul(a, s), v_mul(b, c)), n);
    }
}

static void store_f16(const float *x, int n, uint16_t *out)
{
    for (int i = 0; i < n; i += 16) {
        int left = n - i < 16 ? n - i : 16;
        v16 v = v_min(v_set1(F16_MAX), v_load_n(x + i, left));
        v_store_f16_n(out + i, v_max(v_set1(-F16_MAX), v), left);
    }
}

static float store_q8(const float *x, int n, int8_t *out)
{
    float inverse, scale = quant_scale(x, n, &inverse);
    for (int i = 0; i < n; i += 16) {
        int left = n - i < 16 ? n - i : 16;
        v_store_i8_n(out + i, quant_codes(v_load_n(x + i, left), inverse), left);
    }
    return scale;
}

/* Keys are converted as a run of up to KEY_RUN numbers, then scattered into their column. */
enum { KEY_RUN = 64 };

static void lanes_kv_store(enum kv_type type, const struct kv_page *page, int slot, int head_dim,
                           const float *key, const float *value)
{
    size_t v0 = (size_t)slot * (size_t)head_dim;
    if (type == KV_F32) {
        float *column = (float *)page->k + slot;
        for (int d = 0; d < head_dim; d++)
            column[d * KV_PAGE] = key[d];
        memcpy((float *)page->v + v0, value, (size_t)head_dim * sizeof(float));
    } else if (type == KV_F16) {
        uint16_t *column = (uint16_t *)page->k + slot;
        for (int begin = 0; begin < head_dim; begin += KEY_RUN) {
            uint16_t run[KEY_RUN];
            int n = head_dim - begin < KEY_RUN ? head_dim - begin : KEY_RUN;
            store_f16(key + begin, n, run);
            for (int d = 0; d < n; d++)
                column[(begin + d) * KV_PAGE] = run[d];
        }
        store_f16(value, head_dim, (uint16_t *)page->v + v0);
    } else {
        int8_t *column = (int8_t *)page->k + slot;
        float inverse;
        page->k_scale[slot] = quant_scale(key, head_dim, &inverse);
        for (int d = 0; d < head_dim; d += 16) {
            int8_t run[16];
            int n = head_dim - d < 16 ? head_dim - d : 16;
            v_store_i8_n(run, quant_codes(v_load_n(key + d, n), inverse), n);
            for (int i = 0; i < n; i++)
                column[(d + i) * KV_PAGE] = run[i];
        }
        page->v_scale[slot] = store_q8(value, head_dim, (int8_t *)page->v + v0);
    }
}

/* 16 cache elements from i on, of which n exist (a constant 16 costs no mask). */
ALWAYS_INLINE v16 load_kv(enum kv_type type, const void *array, size_t i, int n)
{
    if (type == KV_F32)
        return n == 16 ? v_load((const float *)array + i) : v_load_n((const float *)array + i, n);
    if (type == KV_F16)
        return n == 16 ? v_load_f16((const uint16_t *)array + i)
                       : v_load_f16_n((const uint16_t *)array + i, n);
    return n == 16 ? v_load_i8((const int8_t *)array + i) : v_load_i8_n((const int8_t *)array + i, n);
}

/* Scores of R rows at VECS vectors of positions from j0 on, into p (R, p_stride). */
ALWAYS_INLINE void score_tile(enum kv_type type, const struct kv_page *page, int head_dim, const float *q,
                              size_t q_stride, const int R, const int VECS, int j0, float *p, size_t p_stride)
{
    v16 s[TILE_ROWS][LINE_VECS];
    for (int r = 0; r < R; r++)
        for (int i = 0; i < VECS; i++)
            s[r][i] = v_zero();
    for (int d = 0; d < head_dim; d++)
        for (int i = 0; i < VECS; i++) {
            v16 k = load_kv(type, page->k, (size_t)d * KV_PAGE + (size_t)(j0 + 16 * i), 16);
            for (int r = 0; r < R; r++)
                s[r][i] = v_fma(v_set1(q[(size_t)r * q_stride + (size_t)d]), k, s[r][i]);
        }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < VECS; i++) {
            v16 v = s[r][i];
            if (type == KV_Q8)
                v = v_mul(v, v_load(page->k_scale + j0 + 16 * i));
            v_store(p + (size_t)r * p_stride + j0 + 16 * i, v);
        }
}

ALWAYS_INLINE void scores(enum kv_type type, const struct kv_page *page, int head_dim, const float *q,
                          size_t q_stride, const int R, int n, float *p, size_t p_stride)
{
    int vecs = (n + 15) / 16, i = 0;
    for (; R == 1 && i + LINE_VECS <= vecs; i += LINE_VECS)
        score_tile(type, page, head_dim, q, q_stride, R, LINE_VECS, 16 * i, p, p_stride);
    for (; i + TILE_VECS <= vecs; i += TILE_VECS)
        score_tile(type, page, head_dim, q, q_stride, R, TILE_VECS, 16 * i, p, p_stride);
    for (; i < vecs; i++)
        score_tile(type, page, head_dim, q, q_stride, R, 1, 16 * i, p, p_stride);
}

/* Continues o[d] of R rows over positions [j_begin, j_end), at VECS vectors of d from d0 on (the last may be
 * partial: `last` elements). */
ALWAYS_INLINE void value_tile(enum kv_type type, const struct kv_page *page, int head_dim, const int R,
                              const int VECS, int d0, int last, int j_begin, int j_end, const float *p,
                              float *o, size_t stride)
{
    v16 acc[TILE_ROWS][LINE_VECS];
    for (int r = 0; r < R; r++)
        for (int i = 0; i < VECS; i++)
            acc[r][i] = j_begin ? v_load_n(o + (size_t)r * stride + d0 + 16 * i, i == VECS - 1 ? last : 16)
                                : v_zero();
    for (int j = j_begin; j < j_end; j++)
        for (int i = 0; i < VECS; i++) {
            size_t at = (size_t)j * (size_t)head_dim + (size_t)(d0 + 16 * i);
            v16 v = load_kv(type, page->v, at, i == VECS - 1 ? last : 16);
            for (int r = 0; r < R; r++)
                acc[r][i] = v_fma(v_set1(p[(size_t)r * stride + (size_t)j]), v, acc[r][i]);
        }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < VECS; i++)
            v_store_n(o + (size_t)r * stride + d0 + 16 * i, acc[r][i], i == VECS - 1 ? last : 16);
}

ALWAYS_INLINE void values(enum kv_type type, const struct kv_page *page, int head_dim, const int R,
                          int j_begin, int j_end, const float *p, float *o, size_t stride)
{
    int d = 0;
    for (; R == 1 && d + 16 * LINE_VECS <= head_dim; d += 16 * LINE_VECS)
        value_tile(type, page, head_dim, R, LINE_VECS, d, 16, j_begin, j_end, p, o, stride);
    for (; d + 16 * TILE_VECS <= head_dim; d += 16 * TILE_VECS)
        value_tile(type, page, head_dim, R, TILE_VECS, d, 16, j_begin, j_end, p, o, stride);
    for (; d + 16 <= head_dim; d += 16)
        value_tile(type, page, head_dim, R, 1, d, 16, j_begin, j_end, p, o, stride);
    if (d < head_dim)
        value_tile(type, page, head_dim, R, 1, d, head_dim - d, j_begin, j_end, p, o, stride);
}

/* Scores in p become weights (for Q8 times the value's scale); lanes beyond n become 0. */
ALWAYS_INLINE void softmax_row(enum kv_type type, const struct kv_page *page, int n, float *p, float *max,
                               float *sum)
{
    v16 top = v_set1(-INFINITY), lane = v_zero();
    int whole = n / 16 * 16, rest = n % 16;
    for (int j = 0; j < whole; j += 16)
        top = v_max(v_load(p + j), top);
    float m = lanes_max(top);
    for (int j = whole; j < n; j++)
        m = p[j] > m ? p[j] : m;
    m += 0.0f;
    for (int j = 0; j < whole + (rest ? 16 : 0); j += 16) {
        v16 e = lanes_exp(v_sub(v_load(p + j), v_set1(m)));
        if (j == whole)
            e = v_first(e, rest);
        lane = v_add(lane, e);
        if (type == KV_Q8)
            e = v_mul(e, v_load(page->v_scale + j));
        v_store(p + j, e);
    }
    *max = m;
    *sum = lanes_sum(lane);
}

/* Folds one row's page result into its running state. */
static void fold_row(int first, int head_dim, float m, float l, const float *o, float *max, float *sum,
                     float *acc)
{
    if (first) {
        *max = m;
        *sum = l;
        memcpy(acc, o, (size_t)head_dim * sizeof *acc);
        return;
    }
    float both = m > *max ? m : *max, a = exp_ref(*max - both), b = exp_ref(m - both);
    *max = both;
    *sum = *sum * a + l * b;
    v16 va = v_set1(a), vb = v_set1(b);
    for (int d = 0; d < head_dim; d += 16) {
        int n = head_dim - d < 16 ? head_dim - d : 16;
        v_store_n(acc + d, v_add(v_mul(v_load_n(acc + d, n), va), v_mul(v_load_n(o + d, n), vb)), n);
    }
}

/* R rows over one page. Values that only some rows see are added row by row: even a weight of 0 could turn -0
 * into +0. */
ALWAYS_INLINE void attend_rows(enum kv_type type, const struct kv_page *page, int head_dim, const float *q,
                               size_t q_stride, const int R, const int *n_valid, int first, float *max,
                               float *sum, float *acc, float *scratch)
{
    size_t stride = (size_t)(KV_PAGE + head_dim);
    float *p = scratch, *o = scratch + KV_PAGE, m[TILE_ROWS], l[TILE_ROWS];
    int most = 0, least = KV_PAGE;
    for (int r = 0; r < R; r++) {
        most = n_valid[r] > most ? n_valid[r] : most;
        least = n_valid[r] < least ? n_valid[r] : least;
    }
    scores(type, page, head_dim, q, q_stride, R, most, p, stride);
    for (int r = 0; r < R; r++)
        softmax_row(type, page, n_valid[r], p + (size_t)r * stride, &m[r], &l[r]);
    values(type, page, head_dim, R, 0, least, p, o, stride);
    for (int r = 0; r < R; r++) {
        size_t at = (size_t)r * stride;
        if (n_valid[r] > least)
            values(type, page, head_dim, 1, least, n_valid[r], p + at, o + at, stride);
        if (n_valid[r] > 0)
            fold_row(first, head_dim, m[r], l[r], o + at, &max[r], &sum[r], acc + r * head_dim);
    }
}

ALWAYS_INLINE void attend_type(enum kv_type type, const struct kv_page *page, int head_dim, const float *q,
                               size_t q_stride, int n_rows, const int *n_valid, int first, float *max,
                               float *sum, float *acc, float *scratch)
{
    int r = 0;
    size_t hd = (size_t)head_dim;
    for (; r + TILE_ROWS <= n_rows; r += TILE_ROWS)
        attend_rows(type, page, head_dim, q + (size_t)r * q_stride, q_stride, TILE_ROWS, n_valid + r, first,
                    max + r, sum + r, acc + (size_t)r * hd, scratch + (size_t)r * (KV_PAGE + hd));
    for (; r < n_rows; r++)
        attend_rows(type, page, head_dim, q + (size_t)r * q_stride, q_stride, 1, n_valid + r, first, max + r,
                    sum + r, acc + (size_t)r * hd, scratch + (size_t)r * (KV_PAGE + hd));
}

static void lanes_attend(enum kv_type type, const struct kv_page *page, int head_dim, const float *q,
                         size_t q_stride, int n_rows, const int *n_valid, int first, float *max, float *sum,
                         float *acc, float *scratch)
{
    switch (type) {
    case KV_F32:
        attend_type(KV_F32, page, head_dim, q, q_stride, n_rows, n_valid, first, max, sum, acc, scratch);
        break;
    case KV_F16:
        attend_type(KV_F16, page, head_dim, q, q_stride, n_rows, n_valid, first, max, sum, acc, scratch);
        break;
    case KV_Q8:
        attend_type(KV_Q8, page, head_dim, q, q_stride, n_rows, n_valid, first, max, sum, acc, scratch);
        break;
    }
}

static void lanes_attend_finish(const float *acc, float sum, int head_dim, float *out)
{
    v16 s = v_set1(sum);
    for (int d = 0; d < head_dim; d += 16) {
        int n = head_dim - d < 16 ? head_dim - d : 16;
        v_store_n(out + d, v_div(v_load_n(acc + d, n), s), n);
    }
}

static void lanes_add(float *x, const float *y, size_t n)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        v_store(x + i, v_add(v_load(x + i), v_load(y + i)));
    if (i < n)
        v_store_n(x + i, v_add(v_load_n(x + i, (int)(n - i)), v_load_n(y + i, (int)(n - i))), (int)(n - i));
}

#endif

/* avx2.c - kernels for AVX2 with FMA and F16C. Equal to ref.c bit for bit; any thread.
 *
 * gemm_q: 4- and 6-bit codes through vpmaddubsw, whose 16-bit pairs stay exact for a few steps (a pair is at
 * most 2 * 127 * code); 8-bit codes would saturate it and are widened to 16 bits. Otherwise as avx512.c, with
 * two ymm registers for the 16 outputs. */
#include "ops/lanes_avx2.h"

#include "ops/lanes.h"

enum {
    GEMM_Q_ROWS = 4,
    AHEAD_BYTES = 8192, /* prefetch distance in the weight stream; panels follow each other in memory */
};

/* Outputs 0..7 and 8..15. */
typedef struct {
    __m256i lo, hi;
} i32x16;

/* One row of activations at a block. */
struct row_view {
    const int8_t *q;
    const int32_t *sum;
    const float *scale;
};

ALWAYS_INLINE i32x16 i_zero(void)
{
    return (i32x16){_mm256_setzero_si256(), _mm256_setzero_si256()};
}
ALWAYS_INLINE i32x16 i_add(i32x16 a, i32x16 b)
{
    return (i32x16){_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
ALWAYS_INLINE i32x16 i_sub(i32x16 a, i32x16 b)
{
    return (i32x16){_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
ALWAYS_INLINE i32x16 i_mul(i32x16 a, i32x16 b)
{
    return (i32x16){_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)};
}
/* Sums of neighbouring 16-bit products. */
ALWAYS_INLINE i32x16 i_madd(i32x16 a, __m256i b)
{
    return (i32x16){_mm256_madd_epi16(a.lo, b), _mm256_madd_epi16(a.hi, b)};
}
ALWAYS_INLINE v16 i_float(i32x16 a)
{
    return (v16){_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}

/* The integers of group g for the 16 outputs, as 16 and as 32 bits. */
ALWAYS_INLINE __m256i load_ints(const uint8_t *plane, int width, int g)
{
    if (width == 1)
        return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(plane + g * PANEL)));
    return _mm256_loadu_si256((const __m256i *)(plane + g * PANEL * 2));
}
ALWAYS_INLINE i32x16 widen(__m256i ints)
{
    return (i32x16){_mm256_cvtepi16_epi32(_mm256_castsi256_si128(ints)),
                    _mm256_cvtepi16_epi32(_mm256_extracti128_si256(ints, 1))};
}

/* The integers of groups g and g + 1 side by side, as vpmaddwd wants them. When g is the block's last, the
 * second half is whatever follows (the block's codes: readable) and meets a sum of 0. */
ALWAYS_INLINE i32x16 load_int_pairs(const uint8_t *plane, int width, int g)
{
    __m256i even = load_ints(plane, width, g), odd = load_ints(plane, width, g + 1);
    __m256i a = _mm256_unpacklo_epi16(even, odd), b = _mm256_unpackhi_epi16(even, odd);
    return (i32x16){_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31)};
}

ALWAYS_INLINE i32x16 load_codes(const uint8_t *codes)
{
    return (i32x16){_mm256_loadu_si256((const __m256i *)codes),
                    _mm256_loadu_si256((const __m256i *)codes + 1)};
}
ALWAYS_INLINE i32x16 and_right(i32x16 a, int shift, __m256i mask)
{
    return (i32x16){_mm256_and_si256(_mm256_srli_epi16(a.lo, shift), mask),
                    _mm256_and_si256(_mm256_srli_epi16(a.hi, shift), mask)};
}
ALWAYS_INLINE i32x16 or_left(i32x16 w, i32x16 a, int shift, __m256i mask)
{
    __m256i lo = _mm256_and_si256(_mm256_slli_epi16(a.lo, shift), mask);
    __m256i hi = _mm256_and_si256(_mm256_slli_epi16(a.hi, shift), mask);
    return (i32x16){_mm256_or_si256(w.lo, lo), _mm256_or_si256(w.hi, hi)};
}

/* The four steps (16 inputs) at codes, one byte a code. */
ALWAYS_INLINE void unpack16(const int bits, const uint8_t *codes, i32x16 w[4])
{
    if (bits == 8) {
        for (int i = 0; i < 4; i++)
            w[i] = load_codes(codes + i * STEP_BYTES);
        return;
    }
    const __m256i low = _mm256_set1_epi8(0x0f), high = _mm256_set1_epi8(0x30);
    i32x16 a = load_codes(codes), b = load_codes(codes + STEP_BYTES);
    w[0] = and_right(a, 0, low);
    w[1] = and_right(a, 4, low);
    w[2] = and_right(b, 0, low);
    w[3] = and_right(b, 4, low);
    if (bits == 6) {
        i32x16 h = load_codes(codes + 2 * STEP_BYTES);
        w[0] = or_left(w[0], h, 4, high);
        w[1] = or_left(w[1], h, 2, high);
        w[2] = or_left(w[2], h, 0, high);
        w[3] = or_left(w[3], and_right(h, 2, high), 0, high);
    }
}

ALWAYS_INLINE __m256i broadcast4(const void *p)
{
    int32_t four;
    memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}

/* One step of codes below 64 against 4 activations: 16-bit sums of two products each. */
ALWAYS_INLINE i32x16 step_pairs(i32x16 w, const int8_t *q)
{
    __m256i x = broadcast4(q);
    return (i32x16){_mm256_maddubs_epi16(w.lo, x), _mm256_maddubs_epi16(w.hi, x)};
}
ALWAYS_INLINE i32x16 add_pairs(i32x16 a, i32x16 b)
{
    return (i32x16){_mm256_add_epi16(a.lo, b.lo), _mm256_add_epi16(a.hi, b.hi)};
}

/* The same for 8-bit codes: even and odd inputs as 16-bit numbers. */
ALWAYS_INLINE i32x16 step_wide(i32x16 w, const int8_t *q)
{
    const __m256i bytes = _mm256_set1_epi16(0xff);
    __m256i x = broadcast4(q);
    __m256i x_even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), x_odd = _mm256_srai_epi16(x, 8);
    return i_add(i_madd(and_right(w, 0, bytes), x_even), i_madd(and_right(w, 8, bytes), x_odd));
}

/* dot of 16 inputs. */
ALWAYS_INLINE i32x16 dot16(const int bits, const i32x16 w[4], const int8_t *q)
{
    const __m256i ones = _mm256_set1_epi16(1);
    if (bits == 8)
        return i_add(i_add(step_wide(w[0], q), step_wide(w[1], q + 4)),
                     i_add(step_wide(w[2], q + 8), step_wide(w[3], q + 12)));
    i32x16 a = add_pairs(step_pairs(w[0], q), step_pairs(w[1], q + 4)); /* 4 * 127 * 63 = 32004 fits */
    i32x16 b = add_pairs(step_pairs(w[2], q + 8), step_pairs(w[3], q + 12));
    if (bits == 4)
        return i_madd(add_pairs(a, b), ones);
    return i_add(i_madd(a, ones), i_madd(b, ones));
}

/* t[r] = sum over groups of sc * dot. */
ALWAYS_INLINE void block_dots(const int bits, const int R, const struct pack_format *f, int len,
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
        for (int end = k + f->group; k < end; k += 16) {
            i32x16 w[4];
            unpack16(bits, codes, w);
            for (int i = 0; i < unit_bytes; i += 64)
                _mm_prefetch((const char *)codes + AHEAD_BYTES + i, _MM_HINT_T0);
            codes += unit_bytes;
            for (int r = 0; r < R; r++)
                dot[r] = i_add(dot[r], dot16(bits, w, row[r].q + k));
        }
        i32x16 sc = widen(load_ints(v->sc, f->width, g));
        for (int r = 0; r < R; r++)
            t[r] = i_add(t[r], i_mul(sc, dot[r]));
    }
}

/* u[r] = sum over groups of integer * sum(q_x), integers from `plane` (mn, or sc where a code means 0). */
ALWAYS_INLINE void block_sums(const int R, const struct pack_format *f, int len, const uint8_t *plane,
                              const struct row_view *row, i32x16 *u)
{
    int n_groups = len / f->group;
    int16_t sums[GEMM_Q_ROWS][MAX_GROUPS + 2]; /* |sum| <= 128 * 127 */
    for (int r = 0; r < R; r++) {
        for (int g = 0; g < n_groups; g++)
            sums[r][g] = (int16_t)row[r].sum[g];
        sums[r][n_groups] = 0; /* partner of an odd last group */
        u[r] = i_zero();
    }
    for (int g = 0; g < n_groups; g += 2) {
        i32x16 ints = load_int_pairs(plane, f->width, g);
        for (int r = 0; r < R; r++)
            u[r] = i_add(u[r], i_madd(ints, broadcast4(&sums[r][g])));
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
        struct block_view v = block_view_at(f, kb->len, base + w->block_offset[b]);
        struct row_view row[GEMM_Q_ROWS];
        i32x16 t[GEMM_Q_ROWS], u[GEMM_Q_ROWS];
        for (int i = 0; i < v.codes - (const uint8_t *)v.d1; i += 64)
            _mm_prefetch((const char *)v.d1 + AHEAD_BYTES + i, _MM_HINT_T0);
        for (int r = 0; r < R; r++)
            row[r] =
                (struct row_view){first[r].q + kb->k0, first[r].sum + kb->k0 / f->group, first[r].scale + b};
        block_dots(bits, R, f, kb->len, &v, row, t);
        block_sums(R, f, kb->len, has_min ? v.mn : v.sc, row, u);
        v16 d1 = v_load(v.d1), d2 = has_min ? v_load(v.d2) : v_zero();
        __m256i zero = _mm256_set1_epi32(f->zero);
        for (int r = 0; r < R; r++) {
            v16 scale = v_set1(*row[r].scale);
            if (!has_min)
                t[r] = i_sub(t[r], i_mul((i32x16){zero, zero}, u[r]));
            acc[r] = v_fma(v_mul(d1, scale), i_float(t[r]), acc[r]);
            if (has_min)
                acc[r] = v_fma(v_mul(d2, scale), i_float(u[r]), acc[r]);
        }
    }
    for (int r = 0; r < R && r < n_rows; r++)
        v_store(out + (size_t)r * out_stride, acc[r]);
}

/* Row tiles of 4, the last one the smallest of 1, 2, 4 that fits. */
#define GEMM_Q(name, bits, has_min)                                                                          \
    static void name(const struct packed *w, int panel, int block_begin, int block_end,                      \
                     const struct qact *x, int x_row, int n_rows, float *out, size_t stride)                 \
    {                                                                                                        \
        for (int r = 0; r < n_rows; r += GEMM_Q_ROWS) {                                                      \
            int n = n_rows - r, row = x_row + r;                                                             \
            float *to = out + (size_t)r * stride;                                                            \
            if (n > 2)                                                                                       \
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

static void avx2_gemm_q(const struct packed *w, int panel, int block_begin, int block_end,
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

const struct kernels kernels_avx2 = {
    .name = "avx2",
    .row_tile = GEMM_Q_ROWS,
    .gemm_q = avx2_gemm_q,
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

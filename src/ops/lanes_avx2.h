/* lanes_avx2.h - the 16 lanes of the contract as two ymm registers. Included only by avx2.c; lanes_avx512.h
 * has the same functions (with their comments) for AVX-512, lanes.h the kernels written with them. */
#ifndef OPS_LANES_AVX2_H
#define OPS_LANES_AVX2_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    __m256 lo, hi;
} v16;

enum { TILE_ROWS = 2, TILE_VECS = 2, LINE_VECS = 4, GEMM_F_ROWS = 4, GEMM_Q_ROWS = 4 };

static inline v16 v_zero(void)
{
    return (v16){_mm256_setzero_ps(), _mm256_setzero_ps()};
}
static inline v16 v_set1(float x)
{
    return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
static inline v16 v_load(const float *p)
{
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline void v_store(float *p, v16 v)
{
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
}
static inline v16 v_add(v16 a, v16 b)
{
    return (v16){_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
static inline v16 v_sub(v16 a, v16 b)
{
    return (v16){_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
static inline v16 v_mul(v16 a, v16 b)
{
    return (v16){_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
static inline v16 v_div(v16 a, v16 b)
{
    return (v16){_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
static inline v16 v_fma(v16 a, v16 b, v16 c)
{
    return (v16){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
static inline v16 v_fnma(v16 a, v16 b, v16 c)
{
    return (v16){_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
static inline v16 v_max(v16 a, v16 b)
{
    return (v16){_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
static inline v16 v_min(v16 a, v16 b)
{
    return (v16){_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
static inline v16 v_abs(v16 a)
{
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (v16){_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
static inline v16 v_rint(v16 a)
{
    return (v16){_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                 _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
static inline v16 v_where_ge(v16 v, v16 x, v16 bound)
{
    return (v16){_mm256_and_ps(v.lo, _mm256_cmp_ps(x.lo, bound.lo, _CMP_GE_OQ)),
                 _mm256_and_ps(v.hi, _mm256_cmp_ps(x.hi, bound.hi, _CMP_GE_OQ))};
}
static inline v16 v_first(v16 v, int n)
{
    __m256i i = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i lo = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), i);
    __m256i hi = _mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), i);
    return (v16){_mm256_and_ps(v.lo, _mm256_castsi256_ps(lo)), _mm256_and_ps(v.hi, _mm256_castsi256_ps(hi))};
}
static inline __m256 ldexp8(__m256 v, __m256 n)
{
    __m256i shift = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), shift));
}
static inline v16 v_ldexp(v16 v, v16 n)
{
    return (v16){ldexp8(v.lo, n.lo), ldexp8(v.hi, n.hi)};
}

static inline v16 v_load_f16(const uint16_t *p)
{
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                 _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
static inline __m256 load_bf16_8(const uint16_t *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
static inline v16 v_load_bf16(const uint16_t *p)
{
    return (v16){load_bf16_8(p), load_bf16_8(p + 8)};
}
static inline __m256 load_i8_8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
static inline v16 v_load_i8(const int8_t *p)
{
    return (v16){load_i8_8(p), load_i8_8(p + 8)};
}

/* Partial vectors go through a buffer: they are rare (head sizes that 16 does not divide). */
static inline v16 v_load_n(const float *p, int n)
{
    if (n == 16)
        return v_load(p);
    float t[16] = {0};
    memcpy(t, p, (size_t)n * sizeof *p);
    return v_load(t);
}
static inline void v_store_n(float *p, v16 v, int n)
{
    if (n == 16) {
        v_store(p, v);
        return;
    }
    float t[16];
    v_store(t, v);
    memcpy(p, t, (size_t)n * sizeof *p);
}
static inline v16 v_load_f16_n(const uint16_t *p, int n)
{
    uint16_t t[16] = {0};
    memcpy(t, p, (size_t)n * sizeof *p);
    return v_load_f16(t);
}
static inline v16 v_load_i8_n(const int8_t *p, int n)
{
    int8_t t[16] = {0};
    memcpy(t, p, (size_t)n);
    return v_load_i8(t);
}
static inline void v_store_i8_n(int8_t *p, v16 v, int n)
{
    __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.lo), _mm256_cvtps_epi32(v.hi));
    words = _mm256_permute4x64_epi64(words, 0xd8); /* packs works within 128-bit halves */
    int8_t t[16];
    _mm_storeu_si128((__m128i *)t,
                     _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    memcpy(p, t, (size_t)n);
}
static inline void v_store_f16_n(uint16_t *p, v16 v, int n)
{
    uint16_t t[16];
    _mm_storeu_si128((__m128i *)t, _mm256_cvtps_ph(v.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i *)(t + 8),
                     _mm256_cvtps_ph(v.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    memcpy(p, t, (size_t)n * sizeof *p);
}

static inline __m256 v_low(v16 v)
{
    return v.lo;
}
static inline __m256 v_high(v16 v)
{
    return v.hi;
}

/* ---- int32 lanes, for gemm_q ---- */

typedef struct {
    __m256i lo, hi;
} i32x16;

static inline i32x16 i_zero(void)
{
    return (i32x16){_mm256_setzero_si256(), _mm256_setzero_si256()};
}
static inline i32x16 i_set1(int32_t x)
{
    return (i32x16){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
static inline i32x16 i_add(i32x16 a, i32x16 b)
{
    return (i32x16){_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
static inline i32x16 i_sub(i32x16 a, i32x16 b)
{
    return (i32x16){_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
static inline i32x16 i_mul(i32x16 a, i32x16 b)
{
    return (i32x16){_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)};
}
static inline v16 i_float(i32x16 a)
{
    return (v16){_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}
static inline i32x16 i_from_i16(__m256i a)
{
    return (i32x16){_mm256_cvtepi16_epi32(_mm256_castsi256_si128(a)),
                    _mm256_cvtepi16_epi32(_mm256_extracti128_si256(a, 1))};
}
static inline i32x16 i_pair(__m256i a, __m256i b)
{
    __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b); /* of each 128-bit half */
    return (i32x16){_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)};
}
static inline __m256i broadcast4(const void *p)
{
    int32_t four;
    memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}
/* Products of 16-bit numbers, neighbours added. */
static inline i32x16 i_madd(i32x16 a, __m256i b)
{
    return (i32x16){_mm256_madd_epi16(a.lo, b), _mm256_madd_epi16(a.hi, b)};
}
static inline i32x16 i_pair_dot(i32x16 sum, i32x16 pairs, const int16_t x[2])
{
    return i_add(sum, i_madd(pairs, broadcast4(x)));
}

typedef i32x16 kstep;

static inline kstep step_load(const uint8_t *codes)
{
    return (kstep){_mm256_loadu_si256((const __m256i *)codes),
                   _mm256_loadu_si256((const __m256i *)codes + 1)};
}
static inline kstep step_right(kstep a, int shift, __m256i mask)
{
    return (kstep){_mm256_and_si256(_mm256_srli_epi16(a.lo, shift), mask),
                   _mm256_and_si256(_mm256_srli_epi16(a.hi, shift), mask)};
}
static inline kstep step_left(kstep a, int shift, __m256i mask)
{
    return (kstep){_mm256_and_si256(_mm256_slli_epi16(a.lo, shift), mask),
                   _mm256_and_si256(_mm256_slli_epi16(a.hi, shift), mask)};
}
static inline kstep step_or(kstep a, kstep b)
{
    return (kstep){_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}

static inline __attribute__((always_inline)) void unpack16(const int bits, const uint8_t *codes, kstep w[4])
{
    if (bits == 8) {
        for (int i = 0; i < 4; i++)
            w[i] = step_load(codes + 64 * i);
        return;
    }
    const __m256i low = _mm256_set1_epi8(0x0f), high = _mm256_set1_epi8(0x30);
    kstep a = step_load(codes), b = step_load(codes + 64);
    w[0] = step_right(a, 0, low);
    w[1] = step_right(a, 4, low);
    w[2] = step_right(b, 0, low);
    w[3] = step_right(b, 4, low);
    if (bits == 6) {
        kstep h = step_load(codes + 128);
        w[0] = step_or(w[0], step_left(h, 4, high));
        w[1] = step_or(w[1], step_left(h, 2, high));
        w[2] = step_or(w[2], step_left(h, 0, high));
        w[3] = step_or(w[3], step_right(h, 2, high));
    }
}

/* One step of codes below 64 against 4 activations: 16-bit sums of two products each. */
static inline kstep step_pairs(kstep w, const int8_t *q)
{
    __m256i x = broadcast4(q);
    return (kstep){_mm256_maddubs_epi16(w.lo, x), _mm256_maddubs_epi16(w.hi, x)};
}
static inline kstep pairs_add(kstep a, kstep b)
{
    return (kstep){_mm256_add_epi16(a.lo, b.lo), _mm256_add_epi16(a.hi, b.hi)};
}
/* The same for 8-bit codes, which would saturate vpmaddubsw: even and odd inputs as 16-bit numbers. */
static inline i32x16 step_wide(kstep w, const int8_t *q)
{
    const __m256i bytes = _mm256_set1_epi16(0xff);
    __m256i x = broadcast4(q);
    __m256i x_even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), x_odd = _mm256_srai_epi16(x, 8);
    return i_add(i_madd(step_right(w, 0, bytes), x_even), i_madd(step_right(w, 8, bytes), x_odd));
}

static inline __attribute__((always_inline)) i32x16 dot16(const int bits, i32x16 dot, const kstep w[4],
                                                          const int8_t *q)
{
    const __m256i ones = _mm256_set1_epi16(1);
    if (bits == 8) {
        for (int s = 0; s < 4; s++)
            dot = i_add(dot, step_wide(w[s], q + 4 * s));
        return dot;
    }
    kstep a = pairs_add(step_pairs(w[0], q), step_pairs(w[1], q + 4)); /* 4 * 127 * 63 = 32004 fits */
    kstep b = pairs_add(step_pairs(w[2], q + 8), step_pairs(w[3], q + 12));
    if (bits == 4)
        return i_add(dot, i_madd(pairs_add(a, b), ones));
    return i_add(dot, i_add(i_madd(a, ones), i_madd(b, ones)));
}

#endif

/* lanes_avx512.h - the 16 lanes of the contract as one zmm register. Included only by avx512.c; lanes_avx2.h
 * has the same functions for AVX2, lanes.h the kernels written with them. */
#ifndef OPS_LANES_AVX512_H
#define OPS_LANES_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef __m512 v16;

/* Accumulators that fit the register file: rows x vectors of one attention tile, rows of a product's tile. */
enum { TILE_ROWS = 4, TILE_VECS = 4, LINE_VECS = 8, GEMM_F_ROWS = 8, GEMM_Q_ROWS = 8 };

static inline __mmask16 first_lanes(int n)
{
    return (__mmask16)((1u << n) - 1);
}

static inline v16 v_zero(void)
{
    return _mm512_setzero_ps();
}
static inline v16 v_set1(float x)
{
    return _mm512_set1_ps(x);
}
static inline v16 v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline void v_store(float *p, v16 v)
{
    _mm512_storeu_ps(p, v);
}
static inline v16 v_add(v16 a, v16 b)
{
    return _mm512_add_ps(a, b);
}
static inline v16 v_sub(v16 a, v16 b)
{
    return _mm512_sub_ps(a, b);
}
static inline v16 v_mul(v16 a, v16 b)
{
    return _mm512_mul_ps(a, b);
}
static inline v16 v_div(v16 a, v16 b)
{
    return _mm512_div_ps(a, b);
}
static inline v16 v_fma(v16 a, v16 b, v16 c)
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline v16 v_fnma(v16 a, v16 b, v16 c)
{
    return _mm512_fnmadd_ps(a, b, c);
}
/* a > b ? a : b and a < b ? a : b, also for NaN and signed zeros. */
static inline v16 v_max(v16 a, v16 b)
{
    return _mm512_max_ps(a, b);
}
static inline v16 v_min(v16 a, v16 b)
{
    return _mm512_min_ps(a, b);
}
static inline v16 v_abs(v16 a)
{
    return _mm512_abs_ps(a);
}
static inline v16 v_rint(v16 a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* Lanes of v where x >= bound, else 0. */
static inline v16 v_where_ge(v16 v, v16 x, v16 bound)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, bound, _CMP_GE_OQ), v);
}
/* The first n lanes, the others 0. */
static inline v16 v_first(v16 v, int n)
{
    return _mm512_maskz_mov_ps(first_lanes(n), v);
}
/* v * 2^n by adding to the exponent; n holds integers. */
static inline v16 v_ldexp(v16 v, v16 n)
{
    __m512i shift = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), shift));
}

/* Loads of the first n <= 16 elements (others 0), and stores of them. */
static inline v16 v_load_n(const float *p, int n)
{
    return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
static inline void v_store_n(float *p, v16 v, int n)
{
    _mm512_mask_storeu_ps(p, first_lanes(n), v);
}
static inline v16 v_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline v16 v_load_f16_n(const uint16_t *p, int n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
static inline v16 v_load_bf16(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline v16 v_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline v16 v_load_i8_n(const int8_t *p, int n)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_lanes(n), p)));
}
/* Round to nearest even; i8 wants lanes within int8. */
static inline void v_store_i8_n(int8_t *p, v16 v, int n)
{
    _mm_mask_storeu_epi8(p, first_lanes(n), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}
static inline void v_store_f16_n(uint16_t *p, v16 v, int n)
{
    __m256i h = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_mask_storeu_epi16(p, first_lanes(n), h);
}

/* The two halves, for the horizontal trees of lanes.h. */
static inline __m256 v_low(v16 v)
{
    return _mm512_castps512_ps256(v);
}
static inline __m256 v_high(v16 v)
{
    return _mm512_extractf32x8_ps(v, 1);
}

/* ---- int32 lanes, for gemm_q ---- */

typedef __m512i i32x16;

static inline i32x16 i_zero(void)
{
    return _mm512_setzero_si512();
}
static inline i32x16 i_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}
static inline i32x16 i_add(i32x16 a, i32x16 b)
{
    return _mm512_add_epi32(a, b);
}
static inline i32x16 i_sub(i32x16 a, i32x16 b)
{
    return _mm512_sub_epi32(a, b);
}
static inline i32x16 i_mul(i32x16 a, i32x16 b)
{
    return _mm512_mullo_epi32(a, b);
}
static inline v16 i_float(i32x16 a)
{
    return _mm512_cvtepi32_ps(a);
}
static inline i32x16 i_from_i16(__m256i a)
{
    return _mm512_cvtepi16_epi32(a);
}
/* Lane i: a[i] in the low half, b[i] in the high half. */
static inline i32x16 i_pair(__m256i a, __m256i b)
{
    return _mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
}
/* sum + the products of both halves with the two numbers at x. */
static inline i32x16 i_pair_dot(i32x16 sum, i32x16 pairs, const int16_t x[2])
{
    int32_t both;
    memcpy(&both, x, 4);
    return _mm512_dpwssd_epi32(sum, pairs, _mm512_set1_epi32(both));
}

/* One step: 4 inputs x 16 outputs, a code a byte. */
typedef __m512i kstep;

/* The four steps (16 inputs) at codes. */
static inline __attribute__((always_inline)) void unpack16(const int bits, const uint8_t *codes, kstep w[4])
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

/* dot + the 16 inputs' products with the activations at q. */
static inline __attribute__((always_inline)) i32x16 dot16(const int bits, i32x16 dot, const kstep w[4],
                                                          const int8_t *q)
{
    for (int s = 0; s < 4; s++) {
        int32_t four;
        memcpy(&four, q + 4 * s, 4);
        dot = _mm512_dpbusd_epi32(dot, w[s], _mm512_set1_epi32(four));
    }
    return dot;
}

#endif

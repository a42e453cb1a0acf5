/* ref.c - the kernels in plain C: the contract that every other table equals bit for bit (kernels.h).
 *
 * Written to be read, not to be fast. fmaf() is one rounding on every machine; integers that may pass the
 * range of int32 on the way to a sum that fits are added as uint32. Any thread; no state. */
#include "base/half.h"
#include "ops/block.h"
#include "ops/kernels.h"

#include <math.h>

enum { LANES = 16 };

float exp_ref(float x)
{
    if (!(x >= EXP_MIN))
        return 0; /* NaN too, so that no path has to agree on its bits */
    if (x > EXP_MAX)
        x = EXP_MAX;
    float n = rintf(x * EXP_LOG2E);
    float r = fmaf(-n, EXP_LN2_HI, x);
    r = fmaf(-n, EXP_LN2_LO, r);
    float p = EXP_C6;
    p = fmaf(p, r, EXP_C5);
    p = fmaf(p, r, EXP_C4);
    p = fmaf(p, r, EXP_C3);
    p = fmaf(p, r, EXP_C2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return f32_from_bits(f32_bits(p) + ((uint32_t)(int32_t)n << 23)); /* stays normal: -126 <= n <= 127 */
}

/* 16 lanes to one number, in a fixed order. */
static float lanes_sum(float lane[LANES])
{
    for (int width = LANES / 2; width >= 1; width /= 2)
        for (int i = 0; i < width; i++)
            lane[i] += lane[i + width];
    return lane[0];
}

/* One output of one block against one row of activations: the two exact integers of the contract. */
static void block_dot(const struct pack_format *f, int len, const struct block_view *v, int o,
                      const int8_t *q, const int32_t *sum, int32_t *scaled, int32_t *offset)
{
    uint32_t t = 0, u = 0;
    for (int g = 0; g < len / f->group; g++) {
        int dot = 0;
        for (int i = g * f->group; i < (g + 1) * f->group; i++)
            dot += block_code(v->codes, f->bits, o, i) * q[i];
        int zero = f->has_min ? 0 : f->zero;
        t += (uint32_t)block_int(v->sc, f->width, g * PANEL + o) * (uint32_t)(dot - zero * sum[g]);
        if (f->has_min)
            u += (uint32_t)block_int(v->mn, f->width, g * PANEL + o) * (uint32_t)sum[g];
    }
    *scaled = (int32_t)t;
    *offset = (int32_t)u;
}

static void ref_gemm_q(const struct packed *w, int panel, int block_begin, int block_end,
                       const struct qact *x, int x_row, int n_rows, float *out, size_t out_stride)
{
    const struct pack_format *f = &w->format;
    const uint8_t *base = w->data + (size_t)panel * w->panel_bytes;
    int level = sum_level(f->group);
    for (int r = 0; r < n_rows; r++) {
        size_t row = (size_t)(x_row + r);
        const int8_t *q = x->q + row * (size_t)x->q_stride;
        const int32_t *sum = x->sum[level] + row * (size_t)(x->sum_stride >> level);
        const float *scale = x->scale + row * (size_t)x->n_blocks;
        for (int o = 0; o < PANEL; o++) {
            float acc = 0;
            for (int b = block_begin; b < block_end; b++) {
                const struct kblock *kb = &w->cut->blocks[b];
                struct block_view v = block_view_at(f, kb->len, base + w->block_offset[b]);
                int32_t t, u;
                block_dot(f, kb->len, &v, o, q + kb->k0, sum + kb->k0 / f->group, &t, &u);
                acc = fmaf(v.d1[o] * scale[b], (float)t, acc);
                if (f->has_min)
                    acc = fmaf(v.d2[o] * scale[b], (float)u, acc);
            }
            out[(size_t)r * out_stride + (size_t)o] = acc;
        }
    }
}

/* Element i of an array of the given float type. */
static float float_at(enum pack_kind kind, const void *array, size_t i)
{
    if (kind == PACK_F32)
        return ((const float *)array)[i];
    uint16_t h = ((const uint16_t *)array)[i];
    return kind == PACK_F16 ? f16_to_f32(h) : bf16_to_f32(h);
}

static void ref_gemm_f(const struct packed *w, int panel, int block_begin, int block_end, const float *x,
                       size_t x_stride, int n_rows, float *out, size_t out_stride)
{
    const uint8_t *base = w->data + (size_t)panel * w->panel_bytes;
    for (int r = 0; r < n_rows; r++)
        for (int o = 0; o < PANEL; o++) {
            float acc = 0;
            for (int b = block_begin; b < block_end; b++) {
                const struct kblock *kb = &w->cut->blocks[b];
                const uint8_t *block = base + w->block_offset[b];
                const float *xr = x + (size_t)r * x_stride + kb->k0;
                for (int k = 0; k < kb->len; k++)
                    acc = fmaf(xr[k], float_at(w->format.kind, block, (size_t)k * PANEL + (size_t)o), acc);
            }
            out[(size_t)r * out_stride + (size_t)o] = acc;
        }
}

/* max|x| of n numbers, and what to multiply them by to get codes; returns the scale of a code. */
static float quant_scale(const float *x, int n, float *inverse)
{
    float top = 0;
    for (int i = 0; i < n; i++)
        top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
    if (top < QUANT_TINY) {
        *inverse = 0;
        return 0;
    }
    *inverse = 127.0f / top;
    return top / 127.0f;
}

/* Clamps before the conversion, in the order of the vector units' min and max (a NaN becomes -127). */
static int8_t quant_code(float x, float inverse)
{
    float v = x * inverse;
    v = v > -127.0f ? v : -127.0f;
    v = v < 127.0f ? v : 127.0f;
    return (int8_t)rintf(v);
}

static void quant_codes(const float *x, int n, float inverse, int8_t *q)
{
    if (inverse == 0)
        memset(q, 0, (size_t)n);
    else
        for (int i = 0; i < n; i++)
            q[i] = quant_code(x[i], inverse);
}

static void ref_quantize(const struct kcut *cut, const float *x, const struct qact *out, int row)
{
    int8_t *q = out->q + (size_t)row * (size_t)out->q_stride;
    for (int b = 0; b < cut->n_blocks; b++) {
        const struct kblock *kb = &cut->blocks[b];
        float inverse;
        out->scale[(size_t)row * (size_t)out->n_blocks + (size_t)b] =
            quant_scale(x + kb->k0, kb->len, &inverse);
        quant_codes(x + kb->k0, kb->len, inverse, q + kb->k0);
    }
    memset(q + cut->k, 0, (size_t)(out->q_stride - cut->k));
    for (int level = 0; level < 4; level++) {
        int group = 16 << level;
        int32_t *sum = out->sum[level] + (size_t)row * (size_t)(out->sum_stride >> level);
        for (int g = 0; g < cut->k / group; g++) {
            sum[g] = 0;
            for (int i = 0; i < group; i++)
                sum[g] += q[g * group + i];
        }
    }
}

static void ref_rmsnorm(const float *x, const float *w, int n, float eps, float *out)
{
    float lane[NORM_LANES] = {0};
    for (int i = 0; i < n; i++)
        lane[i % NORM_LANES] = fmaf(x[i], x[i], lane[i % NORM_LANES]);
    for (int step = NORM_LANES / 2; step >= LANES; step /= 2)
        for (int i = 0; i < step; i++)
            lane[i] += lane[i + step];
    float r = 1.0f / sqrtf(lanes_sum(lane) / (float)n + eps);
    for (int i = 0; i < n; i++)
        out[i] = (x[i] * r) * w[i];
}

static void ref_silu_mul(const float *gate, const float *up, int n, float *out)
{
    for (int i = 0; i < n; i++)
        out[i] = (gate[i] / (1.0f + exp_ref(-gate[i]))) * up[i];
}

static void ref_rope(float *x, const float *cosine, const float *sine, int half)
{
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + half] = a * sine[i] + b * cosine[i];
    }
}

static uint16_t f16_clamped(float x)
{
    x = x > F16_MAX ? F16_MAX : x;
    x = x < -F16_MAX ? -F16_MAX : x;
    return f32_to_f16(x);
}

static void ref_kv_store(enum kv_type type, const struct kv_page *page, int slot, int head_dim,
                         const float *key, const float *value)
{
    size_t v0 = (size_t)slot * (size_t)head_dim;
    float k_inverse = 0, v_inverse = 0;
    if (type == KV_Q8) {
        page->k_scale[slot] = quant_scale(key, head_dim, &k_inverse);
        page->v_scale[slot] = quant_scale(value, head_dim, &v_inverse);
    }
    for (int i = 0; i < head_dim; i++) {
        size_t d = (size_t)i, at = d * KV_PAGE + (size_t)slot;
        switch (type) {
        case KV_F32:
            ((float *)page->k)[at] = key[d];
            ((float *)page->v)[v0 + d] = value[d];
            break;
        case KV_F16:
            ((uint16_t *)page->k)[at] = f16_clamped(key[d]);
            ((uint16_t *)page->v)[v0 + d] = f16_clamped(value[d]);
            break;
        case KV_Q8:
            ((int8_t *)page->k)[at] = k_inverse == 0 ? 0 : quant_code(key[d], k_inverse);
            ((int8_t *)page->v)[v0 + d] = v_inverse == 0 ? 0 : quant_code(value[d], v_inverse);
            break;
        }
    }
}

/* Element i of a cache array. */
static float kv_at(enum kv_type type, const void *array, size_t i)
{
    switch (type) {
    case KV_F32:
        return ((const float *)array)[i];
    case KV_F16:
        return f16_to_f32(((const uint16_t *)array)[i]);
    default:
        return ((const int8_t *)array)[i];
    }
}

/* One row over one page: fills p (n) and o (head_dim), returns max and sum. */
static void attend_row(enum kv_type type, const struct kv_page *page, int head_dim, const float *q, int n,
                       float *max, float *sum, float *p, float *o)
{
    float m = -INFINITY, lane[LANES] = {0};
    for (int j = 0; j < n; j++) {
        float s = 0;
        for (int d = 0; d < head_dim; d++)
            s = fmaf(q[d], kv_at(type, page->k, (size_t)d * KV_PAGE + (size_t)j), s);
        p[j] = type == KV_Q8 ? s * page->k_scale[j] : s;
        m = p[j] > m ? p[j] : m;
    }
    m += 0.0f; /* of -0 and +0 no order of comparison matters any more */
    for (int j = 0; j < n; j++) {
        p[j] = exp_ref(p[j] - m);
        lane[j % LANES] += p[j];
        if (type == KV_Q8)
            p[j] *= page->v_scale[j];
    }
    for (int d = 0; d < head_dim; d++) {
        o[d] = 0;
        for (int j = 0; j < n; j++)
            o[d] = fmaf(p[j], kv_at(type, page->v, (size_t)j * (size_t)head_dim + (size_t)d), o[d]);
    }
    *max = m;
    *sum = lanes_sum(lane);
}

static void ref_attend(enum kv_type type, const struct kv_page *page, int head_dim, const float *q,
                       size_t q_stride, int n_rows, const int *n_valid, int first, float *max, float *sum,
                       float *acc, float *scratch)
{
    for (int r = 0; r < n_rows; r++) {
        if (n_valid[r] == 0)
            continue;
        float *p = scratch + (size_t)r * (size_t)(KV_PAGE + head_dim), *o = p + KV_PAGE;
        float *acc_r = acc + (size_t)r * (size_t)head_dim;
        float m, l;
        attend_row(type, page, head_dim, q + (size_t)r * q_stride, n_valid[r], &m, &l, p, o);
        if (first) {
            max[r] = m;
            sum[r] = l;
            memcpy(acc_r, o, (size_t)head_dim * sizeof(float));
            continue;
        }
        float both = m > max[r] ? m : max[r];
        float a = exp_ref(max[r] - both), b = exp_ref(m - both);
        max[r] = both;
        sum[r] = sum[r] * a + l * b;
        for (int d = 0; d < head_dim; d++)
            acc_r[d] = acc_r[d] * a + o[d] * b;
    }
}

static void ref_attend_finish(const float *acc, float sum, int head_dim, float *out)
{
    for (int d = 0; d < head_dim; d++)
        out[d] = acc[d] / sum;
}

static void ref_add(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] += y[i];
}

const struct kernels kernels_ref = {
    .name = "ref",
    .gemm_q = ref_gemm_q,
    .gemm_f = ref_gemm_f,
    .quantize = ref_quantize,
    .rmsnorm = ref_rmsnorm,
    .silu_mul = ref_silu_mul,
    .rope = ref_rope,
    .kv_store = ref_kv_store,
    .attend = ref_attend,
    .attend_finish = ref_attend_finish,
    .add = ref_add,
};

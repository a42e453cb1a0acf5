/* matrix.c - see matrix.h. Owns nothing; every function may be called by any thread.
 *
 * Rows are worked through in chunks of 256 elements, the least common multiple of every block and group size
 * that is served. A chunk of a synthetic matrix is made as the bytes that a file would hold, so that
 * generated and stored weights take the same way from there on.
 *
 * Block layouts: GGUF, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and its block structures;
 * MLX, https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html */
#include "file/matrix.h"

#include "base/half.h"
#include "file/internal.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { CHUNK = 256, CHUNK_MAX_GROUPS = CHUNK / 16 };

/* Up to CHUNK elements of one row, as a file holds them. */
struct chunk {
    int n;
    const uint8_t *codes, *scales, *biases; /* scales, biases: MLX */
    uint8_t made[CHUNK * 4], made_scales[CHUNK / 32 * 4], made_biases[CHUNK / 32 * 4];
};

/* A chunk in affine form; see struct affine_row. */
struct affine_chunk {
    uint8_t q[CHUNK];
    float s[CHUNK_MAX_GROUPS], b[CHUNK_MAX_GROUPS];
    int16_t sc[CHUNK_MAX_GROUPS], mn[CHUNK_MAX_GROUPS];
    float d1, d2;
};

static const struct {
    enum dtype dtype;
    int bits, group;
    int zero; /* where the code of 0.0 is fixed */
} format_table[] = {
    [WEIGHT_F32] = {DTYPE_F32, 0, 0, 0},      [WEIGHT_F16] = {DTYPE_F16, 0, 0, 0},
    [WEIGHT_BF16] = {DTYPE_BF16, 0, 0, 0},    [WEIGHT_Q4_0] = {DTYPE_Q4_0, 4, 32, 8},
    [WEIGHT_Q8_0] = {DTYPE_Q8_0, 8, 32, 128}, [WEIGHT_Q4_K] = {DTYPE_Q4_K, 4, 32, 0},
    [WEIGHT_Q6_K] = {DTYPE_Q6_K, 6, 16, 32},
};

static bool mlx_bits_served(int bits)
{
    return bits == 3 || bits == 4 || bits == 5 || bits == 6 || bits == 8;
}

static bool mlx_group_served(int group)
{
    return group == 32 || group == 64 || group == 128;
}

static uint16_t load_u16(const uint8_t *p)
{
    uint16_t x;
    memcpy(&x, p, 2);
    return x;
}

static float load_f16(const uint8_t *p)
{
    return f16_to_f32(load_u16(p));
}

static void store_u16(uint8_t *p, uint16_t x)
{
    memcpy(p, &x, 2);
}

static float load_float(const uint8_t *p, enum dtype t)
{
    if (t == DTYPE_F16)
        return load_f16(p);
    if (t == DTYPE_BF16)
        return bf16_to_f32(load_u16(p));
    float x;
    memcpy(&x, p, 4);
    return x;
}

static void store_float(uint8_t *p, enum dtype t, float x)
{
    if (t == DTYPE_F16)
        store_u16(p, f32_to_f16(x));
    else if (t == DTYPE_BF16)
        store_u16(p, f32_to_bf16(x));
    else
        memcpy(p, &x, 4);
}

/* ---- making a matrix ---- */

int matrix_from_tensor(struct matrix *out, const struct tensor *t, struct err *err)
{
    static const int n_formats = (int)(sizeof format_table / sizeof format_table[0]);
    *out = (struct matrix){0};
    if (t->n_dims != 1 && t->n_dims != 2)
        return err_set(err, ERR_INPUT, "tensor \"%s\": %d dimensions where a matrix was expected", t->name,
                       t->n_dims);
    int f = 0;
    while (f < n_formats && format_table[f].dtype != t->dtype)
        f++;
    if (f == n_formats)
        return err_set(
            err, ERR_INPUT,
            "tensor \"%s\": weights of type %s are not served (f32, f16, bf16, q4_0, q8_0, q4_k and q6_k "
            "are)",
            t->name, dtype_table[t->dtype].name);
    snprintf(out->name, sizeof out->name, "%s", t->name);
    out->rows = t->n_dims == 2 ? t->shape[0] : 1;
    out->cols = t->shape[t->n_dims - 1];
    int block = dtype_table[t->dtype].block_elements;
    if (out->cols % block)
        return err_set(err, ERR_INPUT, "tensor \"%s\": rows of %lld are no multiple of %s's block of %d",
                       t->name, (long long)out->cols, dtype_table[t->dtype].name, block);
    out->format = (enum weight_format)f;
    out->bits = format_table[f].bits;
    out->group = format_table[f].group;
    out->data = t->data;
    out->row_bytes = dtype_bytes(t->dtype, out->cols);
    return 0;
}

static int check_mlx_scales(const struct tensor *t, const struct matrix *m, struct err *err)
{
    if (t->dtype != DTYPE_F16 && t->dtype != DTYPE_BF16 && t->dtype != DTYPE_F32)
        return err_set(err, ERR_INPUT, "tensor \"%s\": type %s where f16, bf16 or f32 was expected", t->name,
                       dtype_table[t->dtype].name);
    if (t->n_dims != 2 || t->shape[0] != m->rows || t->shape[1] != m->cols / m->group)
        return err_set(err, ERR_INPUT,
                       "tensor \"%s\": its shape is not (%lld, %lld), as \"%s\" with groups of %d needs",
                       t->name, (long long)m->rows, (long long)(m->cols / m->group), m->name, m->group);
    return 0;
}

int matrix_from_mlx(struct matrix *out, const struct tensor *weight, const struct tensor *scales,
                    const struct tensor *biases, int bits, int group, struct err *err)
{
    *out = (struct matrix){0};
    if (!mlx_bits_served(bits) || !mlx_group_served(group))
        return err_set(
            err, ERR_INPUT,
            "tensor \"%s\": quantised to %d bits in groups of %d (3, 4, 5, 6 and 8 bits in groups of 32, "
            "64 and 128 are served)",
            weight->name, bits, group);
    if (weight->dtype != DTYPE_U32 || weight->n_dims != 2)
        return err_set(err, ERR_INPUT, "tensor \"%s\": a quantised weight must be a matrix of type u32",
                       weight->name);
    snprintf(out->name, sizeof out->name, "%s", weight->name);
    out->rows = weight->shape[0];
    int64_t row_bits = weight->shape[1] * 32; /* no overflow: the bytes lie in a mapping */
    out->cols = row_bits / bits;
    if (row_bits % bits || out->cols % group)
        return err_set(err, ERR_INPUT,
                       "tensor \"%s\": rows of %lld words are no whole groups of %d times %d bits",
                       weight->name, (long long)weight->shape[1], group, bits);
    out->format = WEIGHT_MLX;
    out->bits = bits;
    out->group = group;
    int rc = check_mlx_scales(scales, out, err);
    if (!rc)
        rc = check_mlx_scales(biases, out, err);
    if (rc)
        return rc;
    if (scales->dtype != biases->dtype)
        return err_set(err, ERR_INPUT, "tensor \"%s\": type %s, but \"%s\" is %s", biases->name,
                       dtype_table[biases->dtype].name, scales->name, dtype_table[scales->dtype].name);
    out->scale_dtype = scales->dtype;
    out->data = weight->data;
    out->scales = scales->data;
    out->biases = biases->data;
    out->row_bytes = (size_t)weight->shape[1] * 4;
    return 0;
}

void matrix_synthetic(struct matrix *out, const char *name, int64_t rows, int64_t cols, enum weight_format f,
                      int bits, int group, uint64_t seed)
{
    assert(rows > 0 && cols > 0);
    *out = (struct matrix){.rows = rows, .cols = cols, .format = f, .seed = seed};
    snprintf(out->name, sizeof out->name, "%s", name);
    if (f == WEIGHT_MLX) {
        assert(mlx_bits_served(bits) && mlx_group_served(group) && cols % group == 0);
        out->bits = bits;
        out->group = group;
        out->scale_dtype = DTYPE_BF16;
        out->row_bytes = (size_t)(cols / 8) * (size_t)bits;
    } else {
        assert(cols % dtype_table[format_table[f].dtype].block_elements == 0);
        out->bits = format_table[f].bits;
        out->group = format_table[f].group;
        out->row_bytes = dtype_bytes(format_table[f].dtype, cols);
    }
}

uint64_t matrix_file_bytes(const struct matrix *m)
{
    uint64_t bytes = (uint64_t)m->rows * m->row_bytes;
    if (m->format == WEIGHT_MLX)
        bytes += 2 * (uint64_t)m->rows * dtype_bytes(m->scale_dtype, m->cols / m->group);
    return bytes;
}

bool matrix_is_native(const struct matrix *m)
{
    return m->format == WEIGHT_Q4_K || m->format == WEIGHT_Q6_K;
}

static bool is_float(const struct matrix *m)
{
    return m->format <= WEIGHT_BF16;
}

/* ---- synthetic chunks ---- */

/* The output function of splitmix64 (Steele, Lea and Flood, 2014). */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

static const uint64_t golden = 0x9e3779b97f4a7c15;

/* `base` times a factor in [0.75, 1.25), with a random sign. */
static float vary(float base, uint32_t random)
{
    float factor = 0.75f + (float)(random & 0xff) * 0x1p-9f;
    return random & 0x100 ? -base * factor : base * factor;
}

/* Turns random bytes into floats, uniform in +-amplitude. */
static void make_floats(struct chunk *c, enum weight_format f, float amplitude)
{
    uint8_t *p = c->made;
    if (f == WEIGHT_F32) {
        for (int i = 0; i < c->n; i++) {
            int32_t x;
            memcpy(&x, p + 4 * i, 4);
            store_float(p + 4 * i, DTYPE_F32, (float)x * (0x1p-31f * amplitude));
        }
    } else {
        for (int i = 0; i < c->n; i++) {
            float x = (float)(int16_t)load_u16(p + 2 * i) * (0x1p-15f * amplitude);
            store_u16(p + 2 * i, f == WEIGHT_F16 ? f32_to_f16(x) : f32_to_bf16(x));
        }
    }
}

/* Scales and mins are 32 to 63, and every min is near its scale, so that -dmin * m balances d * sc * 7.5. */
static void make_q4_k_scales(uint8_t *block, uint64_t random, float scale)
{
    float d = (0.875f + (float)(random >> 56) * 0x1p-10f) * scale / 48;
    store_u16(block, f32_to_f16(d));
    store_u16(block + 2, f32_to_f16(7.5f * d));
    uint8_t *packed = block + 4;
    memset(packed, 0, 12);
    for (int j = 0; j < 8; j++) {
        int r = (int)(random >> (7 * j)) & 0x7f;
        int sc = 32 + (r & 31), mn = sc - 2 + (r >> 5);
        if (mn > 63)
            mn = 63;
        if (j < 4) {
            packed[j] |= (uint8_t)sc;
            packed[j + 4] |= (uint8_t)mn;
        } else {
            packed[j + 4] |= (uint8_t)((sc & 15) | (mn & 15) << 4);
            packed[j - 4] |= (uint8_t)((sc >> 4) << 6);
            packed[j] |= (uint8_t)((mn >> 4) << 6);
        }
    }
}

static void make_q6_k_scales(uint8_t *block, uint64_t random, float scale)
{
    for (int j = 0; j < 16; j++) {
        uint8_t *sc = block + 192 + j; /* random bits already: make it +-(64 to 127) */
        int magnitude = 64 + (*sc & 63);
        *sc = (uint8_t)(int8_t)(*sc & 0x80 ? -magnitude : magnitude);
    }
    store_u16(block + 208, f32_to_f16(vary(scale / 96, (uint32_t)random)));
}

static void make_chunk(const struct matrix *m, int64_t row, int64_t k, size_t bytes, struct chunk *c)
{
    uint64_t counter = mix(mix(m->seed + golden) + (uint64_t)row * golden) + mix((uint64_t)k + 1);
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t x = mix(counter += golden);
        memcpy(c->made + i, &x, 8); /* the last may run over, but not out of `made` */
    }
    float deviation = 1 / sqrtf((float)m->cols);
    if (is_float(m)) {
        make_floats(c, m->format, deviation * 1.7320508f);
        return;
    }
    uint64_t codes = (uint64_t)1 << m->bits;
    float scale = deviation / sqrtf((float)(codes * codes - 1) / 12);
    if (m->format == WEIGHT_Q4_0 || m->format == WEIGHT_Q8_0) {
        for (size_t i = 0; i < bytes; i += m->format == WEIGHT_Q4_0 ? 18 : 34)
            store_u16(c->made + i, f32_to_f16(vary(scale, load_u16(c->made + i))));
    } else if (m->format == WEIGHT_Q4_K) {
        make_q4_k_scales(c->made, mix(counter + golden), scale);
    } else if (m->format == WEIGHT_Q6_K) {
        make_q6_k_scales(c->made, mix(counter + golden), scale);
    } else {
        size_t size = (size_t)dtype_table[m->scale_dtype].block_bytes;
        for (int g = 0; g < c->n / m->group; g++) {
            uint64_t x = mix(counter += golden);
            store_float(c->made_scales + (size_t)g * size, m->scale_dtype, vary(scale, (uint32_t)x));
            float s = load_float(c->made_scales + (size_t)g * size, m->scale_dtype);
            store_float(c->made_biases + (size_t)g * size, m->scale_dtype, -0.5f * (float)codes * s);
        }
    }
}

static void load_chunk(const struct matrix *m, int64_t row, int64_t k, struct chunk *c)
{
    c->n = m->cols - k < CHUNK ? (int)(m->cols - k) : CHUNK;
    size_t bytes = (size_t)c->n * m->row_bytes / (size_t)m->cols; /* exact: whole blocks */
    if (!m->data) {
        make_chunk(m, row, k, bytes, c);
        c->codes = c->made;
        c->scales = c->made_scales;
        c->biases = c->made_biases;
        return;
    }
    c->codes = m->data + (size_t)row * m->row_bytes + (size_t)k * m->row_bytes / (size_t)m->cols;
    if (m->format == WEIGHT_MLX) {
        size_t group_at = (size_t)row * (size_t)(m->cols / m->group) + (size_t)(k / m->group);
        size_t offset = group_at * (size_t)dtype_table[m->scale_dtype].block_bytes;
        c->scales = m->scales + offset;
        c->biases = m->biases + offset;
    }
}

/* ---- decoding a chunk ---- */

/* 18 bytes per 32: fp16 d, then 16 bytes whose low nibbles are elements 0-15. */
static void decode_q4_0(const struct chunk *c, struct affine_chunk *a)
{
    for (int g = 0; g < c->n / 32; g++) {
        const uint8_t *p = c->codes + (ptrdiff_t)g * 18;
        uint8_t *q = a->q + (ptrdiff_t)g * 32;
        a->s[g] = load_f16(p);
        a->b[g] = -8 * a->s[g];
        for (int i = 0; i < 16; i++) {
            q[i] = p[2 + i] & 15;
            q[i + 16] = p[2 + i] >> 4;
        }
    }
}

/* 34 bytes per 32: fp16 d, then signed bytes. */
static void decode_q8_0(const struct chunk *c, struct affine_chunk *a)
{
    for (int g = 0; g < c->n / 32; g++) {
        const uint8_t *p = c->codes + (ptrdiff_t)g * 34;
        a->s[g] = load_f16(p);
        a->b[g] = -128 * a->s[g];
        for (int i = 0; i < 32; i++)
            a->q[g * 32 + i] = p[2 + i] ^ 0x80;
    }
}

/* 144 bytes per 256: fp16 d and dmin, eight pairs of 6 bits in 12 bytes, then 32 bytes per 64 elements. */
static void decode_q4_k(const struct chunk *c, struct affine_chunk *a)
{
    const uint8_t *packed = c->codes + 4, *nibbles = c->codes + 16;
    a->d1 = load_f16(c->codes);
    a->d2 = -load_f16(c->codes + 2);
    for (int j = 0; j < 4; j++) {
        a->sc[j] = packed[j] & 63;
        a->mn[j] = packed[j + 4] & 63;
        a->sc[j + 4] = (int16_t)((packed[j + 8] & 15) | (packed[j] >> 6) << 4);
        a->mn[j + 4] = (int16_t)((packed[j + 8] >> 4) | (packed[j + 4] >> 6) << 4);
    }
    for (int j = 0; j < 8; j++) {
        a->s[j] = a->d1 * (float)a->sc[j];
        a->b[j] = a->d2 * (float)a->mn[j];
    }
    for (int j = 0; j < 4; j++) {
        for (int i = 0; i < 32; i++) {
            a->q[64 * j + i] = nibbles[32 * j + i] & 15;
            a->q[64 * j + 32 + i] = nibbles[32 * j + i] >> 4;
        }
    }
}

/* 210 bytes per 256: 128 bytes of low nibbles, 64 of high pairs, 16 signed scales, fp16 d. */
static void decode_q6_k(const struct chunk *c, struct affine_chunk *a)
{
    const uint8_t *scales = c->codes + 192;
    a->d1 = load_f16(c->codes + 208);
    a->d2 = 0;
    for (int j = 0; j < 16; j++) {
        a->sc[j] = (int8_t)scales[j];
        a->mn[j] = 0;
        a->s[j] = a->d1 * (float)a->sc[j];
        a->b[j] = -32 * a->s[j];
    }
    for (int half = 0; half < 2; half++) {
        const uint8_t *low = c->codes + (ptrdiff_t)half * 64, *high = c->codes + 128 + (ptrdiff_t)half * 32;
        uint8_t *q = a->q + (ptrdiff_t)half * 128;
        for (int i = 0; i < 32; i++) {
            q[i] = (uint8_t)((low[i] & 15) | (high[i] & 3) << 4);
            q[i + 32] = (uint8_t)((low[i + 32] & 15) | (high[i] >> 2 & 3) << 4);
            q[i + 64] = (uint8_t)(low[i] >> 4 | (high[i] >> 4 & 3) << 4);
            q[i + 96] = (uint8_t)(low[i + 32] >> 4 | (high[i] >> 6) << 4);
        }
    }
}

/* 64 bits with a 1 in the lowest `bits` of every `lane`. */
#define LANE_MASK(lane, bits) (UINT64_MAX / (((uint64_t)1 << (lane)) - 1) * (((uint64_t)1 << (bits)) - 1))

/* n elements of a little-endian bit stream, eight (in `bits` bytes) at a time: spread to 4 + 4, 2 + 2, 1 + 1.
 */
static inline __attribute__((always_inline)) void unpack(const uint8_t *p, int n, int bits, uint8_t *q)
{
    const size_t head = bits < 4 ? 2 : 4;
    const uint64_t four = ((uint64_t)1 << (4 * bits)) - 1, two = LANE_MASK(32, 2 * bits),
                   one = LANE_MASK(16, bits);
    for (int i = 0; i < n; i += 8, p += bits, q += 8) {
        uint32_t first = 0;
        uint16_t rest = 0; /* two loads of a size that the machine has, faster than one of 3, 5 or 6 bytes */
        memcpy(&first, p, head);
        memcpy(&rest, p + head, (size_t)bits - head);
        uint64_t x = first | (uint64_t)rest << (8 * head);
        x = (x & four) | (x >> (4 * bits)) << 32;
        x = (x & two) | (x >> (2 * bits) & two) << 16;
        x = (x & one) | (x >> bits & one) << 8;
        memcpy(q, &x, 8);
    }
}

static void decode_mlx(const struct matrix *m, const struct chunk *c, struct affine_chunk *a)
{
    size_t size = (size_t)dtype_table[m->scale_dtype].block_bytes;
    for (int g = 0; g < c->n / m->group; g++) {
        a->s[g] = load_float(c->scales + (size_t)g * size, m->scale_dtype);
        a->b[g] = load_float(c->biases + (size_t)g * size, m->scale_dtype);
    }
    switch (m->bits) { /* constants, so that each becomes its own loop */
    case 3:
        unpack(c->codes, c->n, 3, a->q);
        break;
    case 4:
        for (int i = 0; i < c->n / 2; i++) {
            a->q[2 * i] = c->codes[i] & 15;
            a->q[2 * i + 1] = c->codes[i] >> 4;
        }
        break;
    case 5:
        unpack(c->codes, c->n, 5, a->q);
        break;
    case 6:
        unpack(c->codes, c->n, 6, a->q);
        break;
    default:
        memcpy(a->q, c->codes, (size_t)c->n);
    }
}

static void decode_chunk(const struct matrix *m, const struct chunk *c, struct affine_chunk *a)
{
    switch (m->format) {
    case WEIGHT_Q4_0:
        decode_q4_0(c, a);
        break;
    case WEIGHT_Q8_0:
        decode_q8_0(c, a);
        break;
    case WEIGHT_Q4_K:
        decode_q4_k(c, a);
        break;
    case WEIGHT_Q6_K:
        decode_q6_k(c, a);
        break;
    case WEIGHT_MLX:
        decode_mlx(m, c, a);
        break;
    default:
        assert(!"a float matrix has no affine form");
    }
}

/* ---- rows ---- */

static void chunk_floats(const struct matrix *m, const struct chunk *c, float *out)
{
    if (m->format == WEIGHT_F32) {
        memcpy(out, c->codes, (size_t)c->n * 4);
    } else if (m->format == WEIGHT_F16) {
        for (int i = 0; i < c->n; i++)
            out[i] = load_f16(c->codes + 2 * i);
    } else {
        for (int i = 0; i < c->n; i++)
            out[i] = bf16_to_f32(load_u16(c->codes + 2 * i));
    }
}

void matrix_row_f32(const struct matrix *m, int64_t row, float *out)
{
    assert(row >= 0 && row < m->rows);
    struct chunk c;
    struct affine_chunk a;
    bool has_bias = m->format == WEIGHT_Q4_K || m->format == WEIGHT_MLX;
    for (int64_t k = 0; k < m->cols; k += CHUNK) {
        load_chunk(m, row, k, &c);
        if (is_float(m)) {
            chunk_floats(m, &c, out + k);
            continue;
        }
        decode_chunk(m, &c, &a);
        int zero = has_bias ? 0 : format_table[m->format].zero;
        for (int g = 0; g < c.n / m->group; g++) {
            const uint8_t *q = a.q + (ptrdiff_t)g * m->group;
            float *o = out + k + (ptrdiff_t)g * m->group, s = a.s[g], b = a.b[g];
            if (has_bias) {
                for (int i = 0; i < m->group; i++)
                    o[i] = s * (float)q[i] + b;
            } else {
                for (int i = 0; i < m->group; i++)
                    o[i] = s * (float)(q[i] - zero);
            }
        }
    }
}

bool matrix_row_affine(const struct matrix *m, int64_t row, const struct affine_row *out)
{
    assert(row >= 0 && row < m->rows);
    struct chunk c;
    struct affine_chunk a;
    bool finite = true, native = matrix_is_native(m) && out->d1;
    for (int64_t k = 0; k < m->cols; k += CHUNK) {
        load_chunk(m, row, k, &c);
        decode_chunk(m, &c, &a);
        size_t n_groups = (size_t)(c.n / m->group), g0 = (size_t)(k / m->group);
        memcpy(out->q + k, a.q, (size_t)c.n);
        for (size_t g = 0; g < n_groups; g++) {
            out->s[g0 + g] = a.s[g];
            out->b[g0 + g] = a.b[g];
            finite = finite && isfinite(a.s[g]) && isfinite(a.b[g]);
        }
        if (native) {
            memcpy(out->sc + g0, a.sc, n_groups * sizeof a.sc[0]);
            memcpy(out->mn + g0, a.mn, n_groups * sizeof a.mn[0]);
            out->d1[k / CHUNK] = a.d1;
            out->d2[k / CHUNK] = a.d2;
        }
    }
    return finite;
}

bool matrix_row_raw(const struct matrix *m, int64_t row, void *out)
{
    assert(is_float(m) && row >= 0 && row < m->rows);
    struct chunk c;
    int not_finite = 0;
    uint8_t *to = out;
    for (int64_t k = 0; k < m->cols; k += CHUNK) {
        load_chunk(m, row, k, &c);
        if (m->format == WEIGHT_F32) {
            memcpy(to + 4 * k, c.codes, (size_t)c.n * 4);
            for (int i = 0; i < c.n; i++)
                not_finite |= (f32_bits(load_float(c.codes + 4 * i, DTYPE_F32)) & 0x7f800000) == 0x7f800000;
        } else {
            int exponent = m->format == WEIGHT_F16 ? 0x7c00 : 0x7f80;
            memcpy(to + 2 * k, c.codes, (size_t)c.n * 2);
            for (int i = 0; i < c.n; i++)
                not_finite |= (load_u16(c.codes + 2 * i) & exponent) == exponent;
        }
    }
    return !not_finite;
}

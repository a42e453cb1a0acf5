/* pack.c - see pack.h. */
#include "ops/pack.h"

#include "base/half.h"
#include "ops/block.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

void kcut_slab_bounds(int64_t k, int64_t unit, int64_t bound[N_SLABS + 1])
{
    assert(unit > 0 && k % unit == 0);
    for (int i = 0; i <= N_SLABS; i++)
        bound[i] = i * (k / unit) / N_SLABS * unit;
}

/* Appends the blocks of [begin, end) of the whole matrix to the cut, or only counts them while blocks is
 * NULL. */
static void cut_range(struct kcut *c, int slab, int64_t begin, int64_t end, bool quantised)
{
    while (begin < end) {
        int64_t stop = quantised ? (begin / SUPER + 1) * SUPER : end;
        if (stop > end)
            stop = end;
        if (c->blocks)
            c->blocks[c->n_blocks] = (struct kblock){.k0 = (int32_t)(begin - c->k_first),
                                                     .len = (int32_t)(stop - begin),
                                                     .native = (int32_t)(begin / SUPER),
                                                     .slab = slab};
        c->n_blocks++;
        begin = stop;
    }
}

int kcut_make(struct kcut *out, int64_t k, int64_t unit, int rank, int n_ranks, bool quantised)
{
    assert(n_ranks >= 1 && n_ranks <= N_SLABS && N_SLABS % n_ranks == 0 && rank >= 0 && rank < n_ranks);
    assert(!quantised || (k % 16 == 0 && unit % 16 == 0));
    int64_t bound[N_SLABS + 1] = {0, k};
    *out = (struct kcut){.k_total = k, .slab_first = 0, .n_slabs = 1};
    if (unit > 0) {
        kcut_slab_bounds(k, unit, bound);
        out->slab_first = N_SLABS * rank / n_ranks;
        out->n_slabs = N_SLABS / n_ranks;
    }
    out->k_first = bound[out->slab_first];
    out->k = (int32_t)(bound[out->slab_first + out->n_slabs] - out->k_first);
    for (int pass = 0; pass < 2; pass++) { /* count, then fill */
        out->n_blocks = 0;
        for (int i = 0; i < out->n_slabs; i++) {
            int slab = out->slab_first + i;
            out->slab_block[i] = out->n_blocks;
            cut_range(out, slab, bound[slab], bound[slab + 1], quantised);
        }
        out->slab_block[out->n_slabs] = out->n_blocks;
        if (!out->blocks) {
            out->blocks = malloc(((size_t)out->n_blocks + 1) * sizeof *out->blocks);
            if (!out->blocks)
                return -1;
        }
    }
    return 0;
}

void kcut_free(struct kcut *c)
{
    free(c->blocks);
    c->blocks = NULL;
}

static size_t float_size(enum pack_kind kind)
{
    return kind == PACK_F32 ? 4 : 2;
}

size_t pack_header_bytes(const struct pack_format *f, int len)
{
    if (f->kind != PACK_Q)
        return 0;
    size_t planes = f->has_min ? 2 : 1;
    size_t ints = (size_t)(len / f->group) * PANEL * (size_t)f->width;
    size_t bytes = planes * (PANEL * sizeof(float) + ints);
    return (bytes + 63) / 64 * 64;
}

size_t pack_block_bytes(const struct pack_format *f, int len)
{
    if (f->kind != PACK_Q)
        return (size_t)len * PANEL * float_size(f->kind);
    return pack_header_bytes(f, len) + (size_t)len * PANEL * (size_t)f->bits / 8;
}

void packed_init(struct packed *p, const struct pack_format *f, int64_t rows, const struct kcut *cut,
                 size_t *block_offset)
{
    *p = (struct packed){.format = *f,
                         .rows = (int32_t)rows,
                         .n_panels = (int32_t)((rows + PANEL - 1) / PANEL),
                         .cut = cut,
                         .block_offset = block_offset};
    size_t at = 0;
    for (int b = 0; b < cut->n_blocks; b++) {
        assert(f->kind != PACK_Q || cut->blocks[b].len % f->group == 0);
        if (block_offset)
            block_offset[b] = at;
        at += pack_block_bytes(f, cut->blocks[b].len);
    }
    if (block_offset)
        block_offset[cut->n_blocks] = at;
    p->panel_bytes = (at + 63) / 64 * 64;
}

/* Largest |sc| and |mn| for which 256 products of 127 * sc * code (or 127 * mn) fit int32. */
static int scale_limit(const struct pack_format *f)
{
    if (f->width == 1)
        return 127;
    if (f->bits == 8)
        return f->has_min ? 255 : 510;
    return 1023;
}

static int min_limit(const struct pack_format *f)
{
    return f->width == 1 ? 127 : 32767;
}

/* value / step to the nearest integer within +-limit; 0 for a step of 0, whatever else is odd is clamped. */
static int16_t quotient(float value, float step, int limit)
{
    if (step == 0)
        return 0;
    float v = rintf(value / step), bound = (float)limit;
    v = v < bound ? v : bound;
    v = v > -bound ? v : -bound;
    return (int16_t)v;
}

void super_from_affine(const struct pack_format *f, int64_t k_total, const float *s, const float *b,
                       int16_t *sc, int16_t *mn, float *d1, float *d2)
{
    int64_t n_groups = k_total / f->group, per_super = SUPER / f->group;
    float centre = (float)(1 << (f->bits - 1));
    for (int64_t first = 0, i = 0; first < n_groups; first += per_super, i++) {
        int64_t end = first + per_super < n_groups ? first + per_super : n_groups;
        float top = 0;
        for (int64_t g = first; g < end; g++)
            top = fmaxf(top, fabsf(s[g]));
        d1[i] = top / (float)scale_limit(f);
        for (int64_t g = first; g < end; g++)
            sc[g] = quotient(s[g], d1[i], scale_limit(f));
        if (!f->has_min)
            continue;

        float centred[MAX_GROUPS];
        top = 0;
        for (int64_t g = first; g < end; g++) {
            centred[g - first] = b[g] + (s[g] - d1[i] * (float)sc[g]) * centre;
            top = fmaxf(top, fabsf(centred[g - first]));
        }
        d2[i] = top / (float)min_limit(f);
        for (int64_t g = first; g < end; g++)
            mn[g] = quotient(centred[g - first], d2[i], min_limit(f));
    }
}

static void put_int(int width, uint8_t *plane, int i, int16_t value)
{
    if (width == 1)
        plane[i] = (uint8_t)value;
    else
        memcpy(plane + 2 * (size_t)i, &value, 2);
}

/* The block's factors and integers. Rows that do not exist stay zero. */
static void put_header(const struct pack_format *f, const struct kblock *kb, int64_t group_first,
                       uint8_t *block, const struct super_row *const rows[PANEL])
{
    struct block_parts at = block_parts(f, kb->len);
    memset(block, 0, pack_header_bytes(f, kb->len));
    for (int o = 0; o < PANEL; o++) {
        const struct super_row *row = rows[o];
        if (!row)
            continue;
        memcpy(block + 4 * o, &row->d1[kb->native], sizeof(float));
        if (f->has_min)
            memcpy(block + at.d2 + 4 * o, &row->d2[kb->native], sizeof(float));
        for (int g = 0; g < kb->len / f->group; g++) {
            put_int(f->width, block + at.sc, g * PANEL + o, row->sc[group_first + g]);
            if (f->has_min)
                put_int(f->width, block + at.mn, g * PANEL + o, row->mn[group_first + g]);
        }
    }
}

/* Four inputs of all 16 outputs, from absolute input k, a code a byte. */
static void load_step(uint32_t step[PANEL], const struct super_row *const rows[PANEL], int64_t k)
{
    for (int o = 0; o < PANEL; o++) {
        step[o] = 0;
        if (rows[o])
            memcpy(&step[o], rows[o]->q + k, 4);
    }
}

/* The codes, four bytes at a time: a code stays below 2^bits, so shifts do not leave its byte. */
static void put_codes(const struct pack_format *f, int len, int64_t k, uint8_t *to,
                      const struct super_row *const rows[PANEL])
{
    int steps_at_once = f->bits == 8 ? 1 : f->bits == 4 ? 2 : 4;
    for (int i = 0; i < len / 4; i += steps_at_once) {
        uint32_t s[4][PANEL], out[3][PANEL];
        for (int j = 0; j < steps_at_once; j++)
            load_step(s[j], rows, k + 4 * (i + j));
        size_t n = f->bits == 6 ? 3 : 1;
        for (int o = 0; o < PANEL; o++) {
            if (f->bits == 8) {
                out[0][o] = s[0][o];
            } else if (f->bits == 4) {
                out[0][o] = s[0][o] | s[1][o] << 4;
            } else {
                const uint32_t low = 0x0f0f0f0f, high = 0x30303030;
                out[0][o] = (s[0][o] & low) | (s[1][o] & low) << 4;
                out[1][o] = (s[2][o] & low) | (s[3][o] & low) << 4;
                out[2][o] =
                    (s[0][o] & high) >> 4 | (s[1][o] & high) >> 2 | (s[2][o] & high) | (s[3][o] & high) << 2;
            }
        }
        memcpy(to, out, n * STEP_BYTES);
        to += n * STEP_BYTES;
    }
}

void packed_put_panel(const struct packed *p, int panel, const struct super_row *const rows[PANEL])
{
    const struct kcut *cut = p->cut;
    uint8_t *base = p->data + (size_t)panel * p->panel_bytes;
    for (int b = 0; b < cut->n_blocks; b++) {
        const struct kblock *kb = &cut->blocks[b];
        uint8_t *block = base + p->block_offset[b];
        int64_t k = cut->k_first + kb->k0;
        put_header(&p->format, kb, k / p->format.group, block, rows);
        put_codes(&p->format, kb->len, k, block + pack_header_bytes(&p->format, kb->len), rows);
    }
}

void packed_put_panel_float(const struct packed *p, int panel, const void *const rows[PANEL])
{
    const struct kcut *cut = p->cut;
    size_t size = float_size(p->format.kind), end = p->block_offset[cut->n_blocks];
    uint8_t *base = p->data + (size_t)panel * p->panel_bytes;
    memset(base + end, 0, p->panel_bytes - end);
    for (int k = 0; k < cut->k; k++) /* float blocks follow each other without headers */
        for (int o = 0; o < PANEL; o++) {
            uint8_t *to = base + ((size_t)k * PANEL + (size_t)o) * size;
            if (rows[o])
                memcpy(to, (const uint8_t *)rows[o] + (size_t)(cut->k_first + k) * size, size);
            else
                memset(to, 0, size);
        }
}

static float float_element(enum pack_kind kind, const uint8_t *at)
{
    if (kind == PACK_F32) {
        float v;
        memcpy(&v, at, 4);
        return v;
    }
    uint16_t h;
    memcpy(&h, at, 2);
    return kind == PACK_F16 ? f16_to_f32(h) : bf16_to_f32(h);
}

static void row_block_f32(const struct pack_format *f, int len, const uint8_t *block, int o, float *out)
{
    struct block_view v = block_view_at(f, len, block);
    for (int i = 0; i < len; i++) {
        int at = i / f->group * PANEL + o;
        float scale = v.d1[o] * (float)block_int(v.sc, f->width, at);
        int code = block_code(v.codes, f->bits, o, i);
        out[i] = f->has_min ? fmaf(scale, (float)code, v.d2[o] * (float)block_int(v.mn, f->width, at))
                            : scale * (float)(code - f->zero);
    }
}

void packed_row_f32(const struct packed *p, int64_t row, float *out)
{
    const struct kcut *cut = p->cut;
    const uint8_t *base = p->data + (size_t)(row / PANEL) * p->panel_bytes;
    int o = (int)(row % PANEL);
    if (p->format.kind == PACK_Q) {
        for (int b = 0; b < cut->n_blocks; b++)
            row_block_f32(&p->format, cut->blocks[b].len, base + p->block_offset[b], o,
                          out + cut->blocks[b].k0);
        return;
    }
    size_t size = float_size(p->format.kind);
    for (int k = 0; k < cut->k; k++)
        out[k] = float_element(p->format.kind, base + ((size_t)k * PANEL + (size_t)o) * size);
}

/* fixture.c - see fixture.h. */
#include "fixture.h"

#include "base/half.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint32_t rng_next(struct rng *r) /* splitmix64 */
{
    uint64_t z = (r->state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 16);
}

int rng_below(struct rng *r, int n)
{
    return (int)(rng_next(r) % (uint32_t)n);
}

float rng_uniform(struct rng *r)
{
    return (float)rng_next(r) * 0x1p-31f - 1.0f;
}

void rng_fill(struct rng *r, float *x, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++)
        x[i] = rng_uniform(r) * scale;
}

void *must_alloc(size_t bytes)
{
    void *p = calloc(1, bytes ? bytes : 1);
    if (!p) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return p;
}

int format_sc_limit(const struct pack_format *f)
{
    if (f->width == 1)
        return 127;
    return f->bits == 8 ? (f->has_min ? 255 : 510) : 1023;
}

int format_mn_limit(const struct pack_format *f)
{
    return f->width == 1 ? 127 : 32767;
}

struct pack_format q_format(int i)
{
    struct pack_format f = {.kind = PACK_Q,
                            .bits = (int[]){4, 6, 8}[i % 3],
                            .width = i / 3 % 2 + 1,
                            .has_min = i / 6 % 2,
                            .group = 16 << (i / 12 % 4)};
    f.zero = f.has_min ? 0 : 1 << (f.bits - 1);
    return f;
}

const char *format_name(const struct pack_format *f)
{
    static char name[48];
    static const char *const kinds[] = {"f32", "f16", "bf16"};
    if (f->kind != PACK_Q)
        return kinds[f->kind];
    snprintf(name, sizeof name, "q%d g%d w%d%s", f->bits, f->group, f->width, f->has_min ? " min" : "");
    return name;
}

static float flavoured(enum flavour flavour, struct rng *r)
{
    switch (flavour) {
    case ZERO:
        return 0;
    case TINY:
        return rng_uniform(r) * 0x1p-135f;
    case HUGE_:
        return rng_uniform(r) * 0x1p55f;
    default:
        return rng_uniform(r);
    }
}

static void fill_quantised(struct weights *w, const struct pack_format *f, const struct shape *s,
                           enum flavour flavour, struct rng *r)
{
    size_t k = (size_t)s->k, groups = k / (size_t)f->group, supers = (k + SUPER - 1) / SUPER;
    int top = (1 << f->bits) - 1, sc = format_sc_limit(f), mn = format_mn_limit(f);
    for (int row = 0; row < s->rows; row++) {
        int sign = row % 2 ? -1 : 1;
        size_t at = (size_t)row;
        for (size_t i = 0; i < k; i++)
            w->q[at * k + i] = (uint8_t)(flavour == EXTREME ? (row % 3 ? top : 0) : rng_below(r, top + 1));
        for (size_t i = 0; i < groups; i++) {
            w->sc[at * groups + i] =
                (int16_t)(flavour == EXTREME ? sign * sc : rng_below(r, 2 * sc + 1) - sc);
            w->mn[at * groups + i] =
                (int16_t)(flavour == EXTREME ? -sign * mn : rng_below(r, 2 * mn + 1) - mn);
        }
        for (size_t i = 0; i < supers; i++) {
            w->d1[at * supers + i] = flavoured(flavour, r) / (float)sc;
            w->d2[at * supers + i] = flavoured(flavour, r) / (float)mn;
        }
    }
}

static void fill_float(struct weights *w, const struct pack_format *f, const struct shape *s,
                       enum flavour flavour, struct rng *r)
{
    for (size_t i = 0; i < (size_t)s->rows * (size_t)s->k; i++) {
        float v = flavoured(flavour, r);
        if (f->kind == PACK_F32) {
            memcpy(w->raw + 4 * i, &v, 4);
            continue;
        }
        if (f->kind == PACK_F16)
            v = flavour == TINY    ? rng_uniform(r) * 0x1p-14f
                : flavour == HUGE_ ? rng_uniform(r) * 65504.0f
                                   : v;
        uint16_t h = f->kind == PACK_F16 ? f32_to_f16(v) : f32_to_bf16(v);
        memcpy(w->raw + 2 * i, &h, 2);
    }
}

static void put_panel(struct weights *w, const struct shape *s, int panel)
{
    const struct pack_format *f = &w->packed.format;
    size_t k = (size_t)s->k, groups = f->kind == PACK_Q ? k / (size_t)f->group : 0;
    size_t supers = (k + SUPER - 1) / SUPER, size = f->kind == PACK_F32 ? 4 : 2;
    struct super_row row[PANEL];
    const struct super_row *rows[PANEL] = {NULL};
    const void *raw[PANEL] = {NULL};
    for (int o = 0; o < PANEL && panel * PANEL + o < s->rows; o++) {
        size_t at = (size_t)(panel * PANEL + o);
        if (f->kind != PACK_Q) {
            raw[o] = w->raw + at * k * size;
            continue;
        }
        row[o] = (struct super_row){w->q + at * k, w->sc + at * groups, w->mn + at * groups,
                                    w->d1 + at * supers, w->d2 + at * supers};
        rows[o] = &row[o];
    }
    if (f->kind == PACK_Q)
        packed_put_panel(&w->packed, panel, rows);
    else
        packed_put_panel_float(&w->packed, panel, raw);
}

void weights_make(struct weights *w, const struct pack_format *f, const struct shape *s, enum flavour flavour,
                  struct rng *r)
{
    *w = (struct weights){0};
    if (kcut_make(&w->cut, s->k, s->unit, s->rank, s->n_ranks, f->kind == PACK_Q) != 0)
        abort();
    size_t *offsets = must_alloc(((size_t)w->cut.n_blocks + 1) * sizeof *offsets);
    packed_init(&w->packed, f, s->rows, &w->cut, offsets);
    size_t bytes = (size_t)w->packed.n_panels * w->packed.panel_bytes + PACK_SLACK;
    w->packed.data = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!w->packed.data)
        abort();
    memset(w->packed.data, 0xa5, bytes); /* packing must not count on zeros */
    size_t rows = (size_t)s->rows, k = (size_t)s->k, supers = (k + SUPER - 1) / SUPER;
    if (f->kind == PACK_Q) {
        size_t groups = k / (size_t)f->group;
        w->q = must_alloc(rows * k);
        w->sc = must_alloc(rows * groups * sizeof *w->sc);
        w->mn = must_alloc(rows * groups * sizeof *w->mn);
        w->d1 = must_alloc(rows * supers * sizeof *w->d1);
        w->d2 = must_alloc(rows * supers * sizeof *w->d2);
        fill_quantised(w, f, s, flavour, r);
    } else {
        w->raw = must_alloc(rows * k * 4);
        fill_float(w, f, s, flavour, r);
    }
    for (int p = 0; p < w->packed.n_panels; p++)
        put_panel(w, s, p);
}

void weights_free(struct weights *w)
{
    free(w->packed.data);
    free(w->packed.block_offset);
    kcut_free(&w->cut);
    free(w->q);
    free(w->sc);
    free(w->mn);
    free(w->d1);
    free(w->d2);
    free(w->raw);
}

void qact_alloc(struct qact *act, const struct kcut *cut, int rows)
{
    /* an odd number of cache lines: rows a power of two apart would share their sets of the L1 cache */
    *act = (struct qact){.q_stride = ((cut->k + 63) / 64 | 1) * 64,
                         .sum_stride = (cut->k / 16 + 7) / 8 * 8,
                         .n_blocks = cut->n_blocks};
    act->q = must_alloc((size_t)rows * (size_t)act->q_stride);
    act->scale = must_alloc((size_t)rows * (size_t)act->n_blocks * sizeof(float));
    for (int i = 0; i < 4; i++)
        act->sum[i] = must_alloc((size_t)rows * (size_t)(act->sum_stride >> i) * sizeof(int32_t));
}

void qact_free(struct qact *act)
{
    free(act->q);
    free(act->scale);
    for (int i = 0; i < 4; i++)
        free(act->sum[i]);
}

void activations_make(struct activations *a, const struct kcut *cut, int rows, enum flavour flavour,
                      struct rng *r, const struct kernels *k)
{
    size_t n = (size_t)rows * (size_t)cut->k;
    a->x = must_alloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        a->x[i] =
            flavour == EXTREME ? ((i / 7 + i / (size_t)cut->k) % 2 ? -1.0f : 1.0f) : flavoured(flavour, r);
    if (flavour == EXTREME) /* the first row all of one sign: the largest sums there are */
        for (int i = 0; i < cut->k; i++)
            a->x[i] = 3.0f;
    qact_alloc(&a->act, cut, rows);
    for (int row = 0; row < rows; row++)
        k->quantize(cut, a->x + (size_t)row * (size_t)cut->k, &a->act, row);
}

void activations_free(struct activations *a)
{
    free(a->x);
    qact_free(&a->act);
}

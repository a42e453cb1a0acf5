/* test_pack.c - the packed layout against an independent reader of pack.h's words, the cuts of K, and the
 * rounding of affine scales to integers. */
#include "fixture.h"

#include "base/half.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void slab_bounds(void **state)
{
    int64_t b[N_SLABS + 1];
    kcut_slab_bounds(4096, 32, b);
    for (int i = 0; i <= N_SLABS; i++)
        assert_int_equal(b[i], 512 * i);
    kcut_slab_bounds(288, 32, b); /* 9 units: 0 1 2 3 4 5 6 7 9 */
    static const int units[] = {0, 1, 2, 3, 4, 5, 6, 7, 9};
    for (int i = 0; i <= N_SLABS; i++)
        assert_int_equal(b[i], 32 * units[i]);
    kcut_slab_bounds(128, 64, b); /* fewer units than slabs: some are empty */
    static const int few[] = {0, 0, 0, 0, 1, 1, 1, 1, 2};
    for (int i = 0; i <= N_SLABS; i++)
        assert_int_equal(b[i], 64 * few[i]);
}

/* A rank's blocks lie in order, fill its range, and never cross a multiple of 256 nor a slab. */
static void check_cut(const struct kcut *c, int64_t k, int64_t unit, bool quantised)
{
    int64_t bound[N_SLABS + 1] = {0, k}, at = c->k_first;
    if (unit)
        kcut_slab_bounds(k, unit, bound);
    assert_int_equal(c->k_total, k);
    assert_int_equal(c->slab_block[0], 0);
    assert_int_equal(c->slab_block[c->n_slabs], c->n_blocks);
    for (int i = 0; i < c->n_slabs; i++) {
        int slab = c->slab_first + i;
        assert_int_equal(at, bound[slab]);
        for (int b = c->slab_block[i]; b < c->slab_block[i + 1]; b++) {
            const struct kblock *kb = &c->blocks[b];
            assert_int_equal(kb->slab, slab);
            assert_int_equal(c->k_first + kb->k0, at);
            assert_true(kb->len > 0);
            assert_int_equal(kb->native, at / SUPER);
            if (quantised)
                assert_int_equal((at + kb->len - 1) / SUPER, kb->native);
            else
                assert_int_equal(c->slab_block[i + 1] - c->slab_block[i], 1);
            at += kb->len;
        }
        assert_int_equal(at, bound[slab + 1]);
    }
    assert_int_equal(at, c->k_first + c->k);
}

/* Whatever the number of ranks, their cuts together are the one rank's cut. */
static void cuts_do_not_depend_on_ranks(void **state)
{
    static const int ks[] = {0, 16, 64, 128, 256, 288, 320, 512, 1024, 2048, 4096, 11008, 14336};
    static const int units[] = {0, 16, 32, 64, 128, 256};
    for (size_t i = 0; i < sizeof ks / sizeof *ks; i++)
        for (size_t j = 0; j < sizeof units / sizeof *units; j++)
            for (int variant = 0; variant < 8; variant++) {
                int k = ks[i], unit = units[j], n_ranks = 1 << variant / 2;
                bool quantised = variant % 2;
                if (unit && k % unit)
                    continue;
                struct kcut whole;
                assert_int_equal(kcut_make(&whole, k, unit, 0, 1, quantised), 0);
                check_cut(&whole, k, unit, quantised);
                int b = 0;
                int64_t sum = 0;
                for (int rank = 0; rank < n_ranks; rank++) {
                    struct kcut c;
                    assert_int_equal(kcut_make(&c, k, unit, rank, n_ranks, quantised), 0);
                    check_cut(&c, k, unit, quantised);
                    sum += c.k;
                    for (int m = 0; m < c.n_blocks && unit; m++, b++) {
                        assert_int_equal(c.k_first + c.blocks[m].k0, whole.blocks[b].k0);
                        assert_int_equal(c.blocks[m].len, whole.blocks[b].len);
                        assert_int_equal(c.blocks[m].slab, whole.blocks[b].slab);
                    }
                    if (!unit)
                        assert_int_equal(c.n_blocks, whole.n_blocks);
                    kcut_free(&c);
                }
                assert_int_equal(sum, unit ? k : (int64_t)k * n_ranks);
                if (unit)
                    assert_int_equal(b, whole.n_blocks);
                kcut_free(&whole);
            }
}

/* What pack.h says about a quantised block, read byte by byte. */
struct naive {
    float d1, d2;
    int sc, mn, code;
};

static int naive_int(const uint8_t *p, int width, int i)
{
    if (width == 1)
        return p[i] < 128 ? p[i] : p[i] - 256;
    int v = p[2 * i] | p[2 * i + 1] << 8;
    return v < 32768 ? v : v - 65536;
}

static struct naive naive_read(const struct pack_format *f, const uint8_t *block, int len, int output,
                               int input)
{
    struct naive n = {0};
    int groups = len / f->group, g = input / f->group, at = 0;
    memcpy(&n.d1, block + 4 * output, 4);
    at += 64;
    if (f->has_min) {
        memcpy(&n.d2, block + at + 4 * output, 4);
        at += 64;
    }
    n.sc = naive_int(block + at, f->width, 16 * g + output);
    at += groups * 16 * f->width;
    if (f->has_min) {
        n.mn = naive_int(block + at, f->width, 16 * g + output);
        at += groups * 16 * f->width;
    }
    while (at % 64)
        at++;
    const uint8_t *codes = block + at;
    int step = input / 4, byte = 4 * output + input % 4;
    if (f->bits == 8) {
        n.code = codes[64 * step + byte];
    } else if (f->bits == 4) {
        int both = codes[64 * (step / 2) + byte];
        n.code = step % 2 ? both / 16 : both % 16;
    } else {
        const uint8_t *quad = codes + 192 * (step / 4);
        int both = quad[(step % 4 < 2 ? 0 : 64) + byte], pairs = quad[128 + byte];
        for (int i = 0; i < step % 4; i++)
            pairs /= 4;
        n.code = (step % 2 ? both / 16 : both % 16) + 16 * (pairs % 4);
    }
    return n;
}

static void check_block(const struct weights *w, const struct shape *s, int panel, int b)
{
    const struct packed *p = &w->packed;
    const struct pack_format *f = &p->format;
    const struct kblock *kb = &w->cut.blocks[b];
    const uint8_t *block = p->data + (size_t)panel * p->panel_bytes + p->block_offset[b];
    size_t k = (size_t)s->k, groups = k / (size_t)f->group, supers = (k + SUPER - 1) / SUPER;
    for (int o = 0; o < PANEL; o++)
        for (int i = 0; i < kb->len; i++) {
            struct naive got = naive_read(f, block, kb->len, o, i), want = {0};
            size_t row = (size_t)(panel * PANEL + o), at = (size_t)(w->cut.k_first + kb->k0 + i);
            if ((int)row < s->rows) {
                want.d1 = w->d1[row * supers + at / SUPER];
                want.sc = w->sc[row * groups + at / (size_t)f->group];
                want.code = w->q[row * k + at];
                if (f->has_min) {
                    want.d2 = w->d2[row * supers + at / SUPER];
                    want.mn = w->mn[row * groups + at / (size_t)f->group];
                }
            }
            if (memcmp(&got, &want, sizeof got) != 0)
                fail_msg("%s: panel %d block %d output %d input %d", format_name(f), panel, b, o, i);
        }
}

/* packed_row_f32 in the words of pack.h. */
static void check_rows(const struct weights *w, const struct shape *s)
{
    const struct pack_format *f = &w->packed.format;
    size_t k = (size_t)s->k, groups = k / (size_t)f->group, supers = (k + SUPER - 1) / SUPER;
    float *out = must_alloc(k * sizeof *out);
    for (int row = 0; row < s->rows; row++) {
        packed_row_f32(&w->packed, row, out);
        for (int i = 0; i < w->cut.k; i++) {
            size_t at = (size_t)w->cut.k_first + (size_t)i, g = (size_t)row * groups + at / (size_t)f->group;
            size_t super = (size_t)row * supers + at / SUPER;
            float scale = w->d1[super] * (float)w->sc[g], q = (float)(w->q[(size_t)row * k + at] - f->zero);
            float offset = w->d2[super] * (float)w->mn[g],
                  want = f->has_min ? fmaf(scale, q, offset) : scale * q;
            if (memcmp(&want, &out[i], 4) != 0)
                fail_msg("%s: row %d input %d is %g, should be %g", format_name(f), row, i, (double)out[i],
                         (double)want);
        }
    }
    free(out);
}

static void layout_is_as_written(void **state)
{
    struct rng r = {11};
    for (int i = 0; i < 2 * N_Q_FORMATS; i++) {
        struct pack_format f = q_format(i % N_Q_FORMATS);
        struct shape s = {.rows = 1 + rng_below(&r, 40), .k = 128 * (1 + rng_below(&r, 9)), .n_ranks = 1};
        if (i % 2) {
            s.unit = f.group;
            s.n_ranks = 1 << rng_below(&r, 4);
            s.rank = rng_below(&r, s.n_ranks);
        }
        struct weights w;
        weights_make(&w, &f, &s, RANDOM, &r);
        assert_int_equal(w.packed.n_panels, (s.rows + 15) / 16);
        assert_int_equal(w.packed.panel_bytes % 64, 0);
        size_t bytes = 0;
        for (int b = 0; b < w.cut.n_blocks; b++) {
            assert_int_equal(w.packed.block_offset[b], bytes);
            bytes += pack_block_bytes(&f, w.cut.blocks[b].len);
            for (int panel = 0; panel < w.packed.n_panels; panel++)
                check_block(&w, &s, panel, b);
        }
        assert_int_equal(w.packed.panel_bytes, bytes);
        check_rows(&w, &s);
        weights_free(&w);
    }
}

static void float_layout_is_as_written(void **state)
{
    struct rng r = {12};
    for (int i = 0; i < 24; i++) {
        struct pack_format f = {.kind = (enum pack_kind)(i % 3)};
        struct shape s = {.rows = 1 + rng_below(&r, 40), .k = 6 * (1 + rng_below(&r, 40)), .n_ranks = 1};
        if (i % 2) {
            s.unit = 2;
            s.n_ranks = 4;
            s.rank = rng_below(&r, 4);
        }
        struct weights w;
        weights_make(&w, &f, &s, RANDOM, &r);
        size_t size = f.kind == PACK_F32 ? 4 : 2, k = (size_t)s.k;
        float *row = must_alloc(k * sizeof *row);
        static const uint8_t zeros[4];
        for (int o = 0; o < w.packed.n_panels * PANEL; o++) {
            const uint8_t *panel = w.packed.data + (size_t)(o / PANEL) * w.packed.panel_bytes;
            if (o < s.rows)
                packed_row_f32(&w.packed, o, row);
            for (int j = 0; j < w.cut.k; j++) {
                const uint8_t *raw = w.raw + ((size_t)o * k + (size_t)(w.cut.k_first + j)) * size;
                const uint8_t *want = o < s.rows ? raw : zeros;
                assert_memory_equal(panel + (size_t)(16 * j + o % 16) * size, want, size);
                uint32_t bits = 0;
                memcpy(&bits, want, size);
                float value = f.kind == PACK_F16 ? f16_to_f32((uint16_t)bits)
                                                 : f32_from_bits(f.kind == PACK_F32 ? bits : bits << 16);
                if (o < s.rows)
                    assert_memory_equal(&row[j], &value, 4);
            }
        }
        free(row);
        weights_free(&w);
    }
}

/* The weight after rounding its scale and bias to integers, against s * q + b, for every code:
 *   with mins: sc is off by at most d1 / 2, centred on code c = 2^(bits-1), mn by d2 / 2:
 *              |error| <= d1 / 2 * max|q - c| + d2 / 2
 *   without:   b = -zero * s and zero = c: the same without the second term. */
static void check_group(const struct pack_format *f, float s, float b, float d1, float d2, int sc, int mn)
{
    double c = 1 << (f->bits - 1), bound = (double)d1 / 2 * c + (f->has_min ? (double)d2 / 2 : 0);
    double slack = 1e-6 * (fabs((double)s) * 2 * c + fabs((double)b)) + 1e-44;
    for (int q = 0; q < 1 << f->bits; q++) {
        double exact = f->has_min ? (double)s * q + (double)b : (double)s * (q - f->zero);
        double packed = f->has_min ? (double)d1 * sc * q + (double)d2 * mn : (double)d1 * sc * (q - f->zero);
        if (!(fabs(packed - exact) <= bound + slack))
            fail_msg("%s: s %g b %g code %d: %g instead of %g, bound %g", format_name(f), (double)s,
                     (double)b, q, packed, exact, bound);
    }
}

static void affine_error_is_bounded(void **state)
{
    enum { K = 256 * 3 + 128, MAX_G = K / 16 };
    struct rng r = {13};
    for (int i = 0; i < N_Q_FORMATS * 4; i++) {
        struct pack_format f = q_format(i % N_Q_FORMATS);
        float s[MAX_G], b[MAX_G], d1[4], d2[4] = {0},
                                         scale = (float[]){1, 1e-30f, 1e30f, 1e-3f}[i / N_Q_FORMATS];
        int16_t sc[MAX_G], mn[MAX_G] = {0};
        int groups = K / f.group, per_super = SUPER / f.group;
        rng_fill(&r, s, (size_t)groups, scale);
        rng_fill(&r, b, (size_t)groups, scale * (float)(1 << f.bits));
        s[0] = 0;
        super_from_affine(&f, K, s, b, sc, mn, d1, d2);
        for (int g = 0; g < groups; g++) {
            int super = g / per_super;
            float top = 0;
            for (int j = super * per_super; j < (super + 1) * per_super && j < groups; j++)
                top = fmaxf(top, fabsf(s[j]));
            assert_true(d1[super] == top / (float)format_sc_limit(&f));
            assert_true(abs(sc[g]) <= format_sc_limit(&f) && abs(mn[g]) <= format_mn_limit(&f));
            check_group(&f, s[g], b[g], d1[super], d2[super], sc[g], mn[g]);
        }
    }
}

/* 256 of the largest products fit int32, and nothing odd in the scales makes trouble. */
static void affine_limits(void **state)
{
    for (int i = 0; i < N_Q_FORMATS; i++) {
        struct pack_format f = q_format(i);
        int64_t span = f.has_min ? (1 << f.bits) - 1 : f.zero;
        assert_true((int64_t)SUPER * 127 * format_sc_limit(&f) * span <= INT32_MAX);
        assert_true((int64_t)SUPER * 127 * format_mn_limit(&f) <= INT32_MAX);

        float s[16], b[16], d1[1], d2[1];
        int16_t sc[16], mn[16];
        static const float odd[] = {0, 1e-45f, -1e-44f, 1e-38f, 3e38f, -3.4e38f};
        for (int j = 0; j < 6; j++) {
            for (int g = 0; g < 16; g++) {
                s[g] = g % 3 ? odd[j] : -odd[j];
                b[g] = g % 2 ? odd[j] : 0;
            }
            super_from_affine(&f, 256, s, b, sc, mn, d1, d2);
            for (int g = 0; g < 256 / f.group; g++) {
                assert_true(abs(sc[g]) <= format_sc_limit(&f));
                assert_true(!f.has_min || abs(mn[g]) <= format_mn_limit(&f));
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slab_bounds),
        cmocka_unit_test(cuts_do_not_depend_on_ranks),
        cmocka_unit_test(layout_is_as_written),
        cmocka_unit_test(float_layout_is_as_written),
        cmocka_unit_test(affine_error_is_bounded),
        cmocka_unit_test(affine_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

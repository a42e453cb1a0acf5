/* test_kernels.c - every kernel of every table that this CPU can run against ref.c, by memcmp; ref.c itself
 * against plain double arithmetic. With --bench, times them instead (bench.c). */
#include "bench.h"
#include "fixture.h"

#include "base/detmath.h"
#include "base/half.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The tables to test: all but ref that this CPU and build have. */
static const struct kernels *tables[4];
static int n_tables;

static void find_tables(void)
{
    static const enum isa isas[] = {ISA_AVX2, ISA_AVX512, ISA_AMX, ISA_NEON};
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        struct err err;
        if (kernels_select(&tables[n_tables], isas[i], &err) == 0)
            n_tables++;
        else
            printf("not tested: %s\n", err.message);
    }
}

/* Fails with a name and the first differing number. */
static void assert_same(const char *what, const struct kernels *k, const float *want, const float *got,
                        size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(&want[i], &got[i], sizeof *want) != 0)
            fail_msg("%s %s: [%zu] is %a, ref has %a", k->name, what, i, (double)got[i], (double)want[i]);
}

/* Shapes that meet every kind of cut for the given group. */
static struct shape shape_number(int i, int group, struct rng *r)
{
    static const int ks[] = {256, 512, 768, 1280, 128, 384, 640, 2048, 896};
    struct shape s = {.rows = 1 + rng_below(r, 40), .k = ks[i % 9], .n_ranks = 1};
    if (i % 3) {
        s.unit = group < 64 && i % 2 ? 64 : group;
        s.n_ranks = 1 << rng_below(r, 4);
        s.rank = rng_below(r, s.n_ranks);
    }
    return s;
}

static const int row_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 33};
enum { MAX_ROWS = 34, N_ROW_COUNTS = sizeof row_counts / sizeof *row_counts };

/* One panel and block range of gemm_q in every table. */
static void compare_gemm_q(const struct weights *w, const struct activations *a, int panel, int begin,
                           int end, int x_row, int n_rows)
{
    enum { STRIDE = 19 };
    float want[MAX_ROWS * STRIDE], got[MAX_ROWS * STRIDE];
    memset(want, 0x55, sizeof want);
    kernels_ref.gemm_q(&w->packed, panel, begin, end, &a->act, x_row, n_rows, want, STRIDE);
    for (int t = 0; t < n_tables; t++) {
        memset(got, 0x55, sizeof got); /* what must not be written is compared too */
        tables[t]->gemm_q(&w->packed, panel, begin, end, &a->act, x_row, n_rows, got, STRIDE);
        assert_same(format_name(&w->packed.format), tables[t], want, got, MAX_ROWS * STRIDE);
    }
}

static void gemm_q_equals_ref(void **state)
{
    struct rng r = {1};
    for (int i = 0; i < N_Q_FORMATS; i++)
        for (int flavour = 0; flavour < N_FLAVOURS; flavour++) {
            struct pack_format f = q_format(i);
            struct shape s = shape_number(rng_below(&r, 18), f.group, &r);
            struct weights w;
            struct activations a;
            weights_make(&w, &f, &s, flavour, &r);
            activations_make(&a, &w.cut, MAX_ROWS, flavour, &r, &kernels_ref);
            int n_rows = row_counts[rng_below(&r, N_ROW_COUNTS)];
            for (int panel = 0; panel < w.packed.n_panels; panel++)
                for (int slab = 0; slab < w.cut.n_slabs; slab++)
                    compare_gemm_q(&w, &a, panel, w.cut.slab_block[slab], w.cut.slab_block[slab + 1],
                                   flavour == EXTREME ? 0 : MAX_ROWS - n_rows, n_rows);
            compare_gemm_q(&w, &a, 0, 0, w.cut.n_blocks, 0, n_rows);
            activations_free(&a);
            weights_free(&w);
        }
}

static void gemm_q_every_row_count(void **state)
{
    struct rng r = {2};
    for (int i = 0; i < 12; i++) {
        struct pack_format f = q_format(i + 12);
        struct shape s = {.rows = 16, .k = 416, .n_ranks = 1};
        struct weights w;
        struct activations a;
        weights_make(&w, &f, &s, RANDOM, &r);
        activations_make(&a, &w.cut, MAX_ROWS, RANDOM, &r, &kernels_ref);
        for (int n = 0; n < N_ROW_COUNTS; n++)
            compare_gemm_q(&w, &a, 0, 0, w.cut.n_blocks, 1, row_counts[n]);
        activations_free(&a);
        weights_free(&w);
    }
}

/* w * x of one output over the cut in double, from the rows as they were before packing; *size: sum of
 * |terms|. */
static double dot_double(const struct weights *w, int o, const struct activations *a, int row, double *size)
{
    const struct pack_format *f = &w->packed.format;
    const struct kcut *cut = &w->cut;
    size_t k = (size_t)cut->k_total, groups = k / (size_t)f->group, supers = (k + SUPER - 1) / SUPER;
    double sum = 0;
    *size = 0;
    for (int b = 0; b < cut->n_blocks; b++)
        for (int i = cut->blocks[b].k0; i < cut->blocks[b].k0 + cut->blocks[b].len; i++) {
            size_t at = (size_t)cut->k_first + (size_t)i, group = (size_t)o * groups + at / (size_t)f->group;
            size_t super = (size_t)o * supers + at / SUPER;
            double x = (double)a->act.scale[row * a->act.n_blocks + b] * a->act.q[row * a->act.q_stride + i];
            double sq = (double)w->d1[super] * w->sc[group] * (w->q[(size_t)o * k + at] - f->zero);
            double m = f->has_min ? (double)w->d2[super] * w->mn[group] : 0;
            sum += (sq + m) * x;
            *size += (fabs(sq) + fabs(m)) * fabs(x);
        }
    return sum;
}

static void gemm_q_is_right(void **state)
{
    struct rng r = {3};
    for (int i = 0; i < N_Q_FORMATS; i++)
        for (int pass = 0; pass < 2; pass++) {
            struct pack_format f = q_format(i);
            struct shape s = shape_number(i + pass, f.group, &r);
            struct weights w;
            struct activations a;
            weights_make(&w, &f, &s, pass ? EXTREME : RANDOM, &r);
            activations_make(&a, &w.cut, 3, pass ? EXTREME : RANDOM, &r, &kernels_ref);
            float out[3 * PANEL];
            for (int panel = 0; panel < w.packed.n_panels; panel++) {
                kernels_ref.gemm_q(&w.packed, panel, 0, w.cut.n_blocks, &a.act, 0, 3, out, PANEL);
                for (int j = 0; j < 3 * PANEL; j++) {
                    int o = panel * PANEL + j % PANEL;
                    double size, want = o < s.rows ? dot_double(&w, o, &a, j / PANEL, &size) : (size = 0);
                    if (!(fabs((double)out[j] - want) <= 1e-6 * size))
                        fail_msg("%s: output %d is %g, should be %g", format_name(&f), o, (double)out[j],
                                 want);
                }
            }
            activations_free(&a);
            weights_free(&w);
        }
}

static void gemm_f_equals_ref(void **state)
{
    enum { STRIDE = 17 };
    struct rng r = {4};
    for (int i = 0; i < 3 * N_FLAVOURS * 6; i++) {
        struct pack_format f = {.kind = (enum pack_kind)(i % 3)};
        struct shape s = {.rows = 1 + rng_below(&r, 40), .k = 8 * (1 + rng_below(&r, 60)), .n_ranks = 1};
        if (i % 2) {
            s.unit = 8;
            s.n_ranks = 1 << rng_below(&r, 4);
            s.rank = rng_below(&r, s.n_ranks);
        } else {
            s.k += 3;
        }
        struct weights w;
        weights_make(&w, &f, &s, (enum flavour)(i / 3 % N_FLAVOURS), &r);
        int n = row_counts[rng_below(&r, N_ROW_COUNTS)];
        size_t stride = (size_t)w.cut.k + 5;
        float *x = must_alloc((size_t)n * stride * sizeof *x), want[MAX_ROWS * STRIDE],
              got[MAX_ROWS * STRIDE];
        rng_fill(&r, x, (size_t)n * stride, 1);
        int panel = w.packed.n_panels - 1, begin = w.cut.n_blocks > 2 ? 1 : 0;
        memset(want, 0x55, sizeof want);
        kernels_ref.gemm_f(&w.packed, panel, begin, w.cut.n_blocks, x, stride, n, want, STRIDE);
        for (int t = 0; t < n_tables; t++) {
            memset(got, 0x55, sizeof got);
            tables[t]->gemm_f(&w.packed, panel, begin, w.cut.n_blocks, x, stride, n, got, STRIDE);
            assert_same(format_name(&f), tables[t], want, got, MAX_ROWS * STRIDE);
        }
        free(x);
        weights_free(&w);
    }
}

static void quantize_equals_ref(void **state)
{
    struct rng r = {5};
    for (int i = 0; i < 200; i++) {
        struct shape s = shape_number(i, 16, &r);
        struct kcut cut;
        assert_int_equal(kcut_make(&cut, s.k + 16 * (i % 2 && !s.unit), s.unit, s.rank, s.n_ranks, true), 0);
        struct activations want, got;
        activations_make(&want, &cut, 2, (enum flavour)(i % N_FLAVOURS), &r, &kernels_ref);
        for (int t = 0; t < n_tables; t++) {
            qact_alloc(&got.act, &cut, 2);
            memset(got.act.q, 0x55, 2 * (size_t)got.act.q_stride);
            for (int row = 0; row < 2; row++)
                tables[t]->quantize(&cut, want.x + row * cut.k, &got.act, row);
            assert_memory_equal(want.act.q, got.act.q, 2 * (size_t)got.act.q_stride);
            assert_same("quantize scale", tables[t], want.act.scale, got.act.scale, 2 * (size_t)cut.n_blocks);
            for (int level = 0; level < 4; level++)
                assert_memory_equal(want.act.sum[level], got.act.sum[level],
                                    2 * (size_t)(want.act.sum_stride >> level) * sizeof(int32_t));
            qact_free(&got.act);
        }
        activations_free(&want);
        kcut_free(&cut);
    }
}

static void quantize_is_right(void **state)
{
    struct kcut cut;
    assert_int_equal(kcut_make(&cut, 512, 0, 0, 1, true), 0);
    float x[512] = {0};
    for (int i = 0; i < 256; i++)
        x[i] = (float)(i - 127) / 2; /* -63.5 .. 64 */
    x[256] = 0x1p-101f;              /* below what counts */
    struct qact act;
    qact_alloc(&act, &cut, 1);
    kernels_ref.quantize(&cut, x, &act, 0);
    assert_true(act.scale[0] == 64.0f / 127.0f);
    assert_true(act.scale[1] == 0);
    assert_int_equal(act.q[0], -126);
    assert_int_equal(act.q[255], 127);
    assert_int_equal(act.q[256], 0);
    for (int i = 0; i < 256; i++)
        assert_true(fabsf((float)act.q[i] * act.scale[0] - x[i]) <= act.scale[0] * 0.50001f);
    for (int level = 0; level < 4; level++)
        for (int g = 0; g < 512 / (16 << level); g++) {
            int sum = 0;
            for (int i = 0; i < 16 << level; i++)
                sum += act.q[g * (16 << level) + i];
            assert_int_equal(act.sum[level][g], sum);
        }
    qact_free(&act);
    kcut_free(&cut);
}

/* Sizes up to 300 and the flavours, for the kernels that take plain vectors. */
enum { N_MAX = 300 };

static void fill_flavour(struct rng *r, float *x, int n, int flavour)
{
    static const float scales[] = {1, 100, 1e-40f, 1e18f, 0};
    rng_fill(r, x, (size_t)n, scales[flavour % 5]);
    for (int i = 0; flavour % 5 == 1 && i < n; i += 5)
        x[i] = i % 2 ? 0.0f : -0.0f;
}

static void vectors_equal_ref(void **state)
{
    struct rng r = {6};
    for (int n = 1; n <= N_MAX; n += n < 40 ? 1 : 13)
        for (int flavour = 0; flavour < 5; flavour++) {
            float *x = must_alloc((size_t)n * 4), *y = must_alloc((size_t)n * 4),
                  *got = must_alloc((size_t)n * 4);
            float *want = must_alloc((size_t)n * 4);
            fill_flavour(&r, x, n, flavour);
            fill_flavour(&r, y, n, flavour == 3 ? 0 : flavour);
            for (int t = 0; t < n_tables; t++) {
                const struct kernels *k = tables[t];
                size_t bytes = (size_t)n * sizeof(float);
                kernels_ref.rmsnorm(x, y, n, 1e-5f, want);
                memcpy(got, x, bytes);
                k->rmsnorm(got, y, n, 1e-5f, got);
                assert_same("rmsnorm", k, want, got, (size_t)n);
                kernels_ref.silu_mul(x, y, n, want);
                memcpy(got, x, bytes);
                k->silu_mul(got, y, n, got);
                assert_same("silu_mul", k, want, got, (size_t)n);
                memcpy(want, x, bytes);
                memcpy(got, x, bytes);
                kernels_ref.add(want, y, (size_t)n);
                k->add(got, y, (size_t)n);
                assert_same("add", k, want, got, (size_t)n);
                kernels_ref.attend_finish(x, 3.7f, n, want);
                k->attend_finish(x, 3.7f, n, got);
                assert_same("attend_finish", k, want, got, (size_t)n);
                memcpy(want, x, bytes);
                memcpy(got, x, bytes);
                kernels_ref.rope(want, y, y + n / 4, n / 2);
                k->rope(got, y, y + n / 4, n / 2);
                assert_same("rope", k, want, got, (size_t)n);
            }
            free(x);
            free(y);
            free(got);
            free(want);
        }
}

static void vectors_are_right(void **state)
{
    float x[33], w[33], out[33];
    double sum = 0;
    for (int i = 0; i < 33; i++) {
        x[i] = (float)(i - 11) * 0.37f;
        w[i] = 1 + 0.1f * (float)i;
        sum += (double)x[i] * (double)x[i];
    }
    double scale = 1 / sqrt(sum / 33 + 1e-5);
    kernels_ref.rmsnorm(x, w, 33, 1e-5f, out);
    for (int i = 0; i < 33; i++)
        assert_float_equal(out[i], (double)x[i] * scale * (double)w[i], 1e-5);
    kernels_ref.silu_mul(x, w, 33, out);
    for (int i = 0; i < 33; i++)
        assert_float_equal(out[i], (double)x[i] / (1 + det_exp(-(double)x[i])) * (double)w[i], 1e-5);
    float pair[4] = {1, 2, 3, 4}, c[2] = {0.5f, 0.25f}, s[2] = {0.75f, 2};
    kernels_ref.rope(pair, c, s, 2);
    assert_true(pair[0] == 0.5f - 2.25f && pair[1] == 0.5f - 8 && pair[2] == 0.75f + 1.5f &&
                pair[3] == 4 + 1);
}

static void exp_is_right(void **state)
{
    double worst = 0;
    for (float x = -87; x <= 88; x += 0.00137f) {
        double want = det_exp((double)x), error = fabs((double)exp_ref(x) / want - 1);
        worst = error > worst ? error : worst;
    }
    if (worst > 2e-7)
        fail_msg("exp: relative error %g", worst);
    assert_true(exp_ref(-87.1f) == 0 && exp_ref(-INFINITY) == 0 && exp_ref(NAN) == 0);
    assert_true(exp_ref(0) == 1 && exp_ref(-0.0f) == 1);
    assert_true(exp_ref(1000) == exp_ref(88) && exp_ref(88) < INFINITY);
}

/* All of fp32's exponents through the vector exp, by way of silu: 1 / (1 + exp(x)) * 1. */
static void exp_equals_ref(void **state)
{
    static float x[65536], one[65536], want[65536], got[65536];
    for (int i = 0; i < 65536; i++) {
        float v = f32_from_bits((uint32_t)i << 16 | 0x1234);
        x[i] = fabsf(v) < INFINITY ? v : 1;
        one[i] = 1;
    }
    kernels_ref.silu_mul(x, one, 65536, want);
    for (int t = 0; t < n_tables; t++) {
        tables[t]->silu_mul(x, one, 65536, got);
        assert_same("exp", tables[t], want, got, 65536);
    }
}

static size_t kv_size(enum kv_type type)
{
    return type == KV_F32 ? 4 : type == KV_F16 ? 2 : 1;
}

static void page_alloc(struct kv_page *page, enum kv_type type, int head_dim, int fill)
{
    size_t bytes = (size_t)head_dim * KV_PAGE * kv_size(type);
    page->k = must_alloc(bytes);
    page->v = must_alloc(bytes);
    page->k_scale = must_alloc(KV_PAGE * sizeof(float));
    page->v_scale = must_alloc(KV_PAGE * sizeof(float));
    memset(page->k, fill, bytes);
    memset(page->v, fill, bytes);
    memset(page->k_scale, fill, KV_PAGE * sizeof(float));
    memset(page->v_scale, fill, KV_PAGE * sizeof(float));
}

static void page_free(struct kv_page *page)
{
    free(page->k);
    free(page->v);
    free(page->k_scale);
    free(page->v_scale);
}

static const int head_dims[] = {2, 8, 10, 16, 34, 64, 80, 96, 128, 256};
enum { N_HEAD_DIMS = sizeof head_dims / sizeof *head_dims, MAX_HEAD_DIM = 256 };

static void kv_store_equals_ref(void **state)
{
    struct rng r = {7};
    float key[MAX_HEAD_DIM], value[MAX_HEAD_DIM];
    for (int i = 0; i < N_HEAD_DIMS * 3 * 5; i++) {
        int hd = head_dims[i % N_HEAD_DIMS];
        enum kv_type type = (enum kv_type)(i / N_HEAD_DIMS % 3);
        size_t bytes = (size_t)hd * KV_PAGE * kv_size(type);
        fill_flavour(&r, key, hd, i);
        fill_flavour(&r, value, hd, i / 3);
        for (int t = 0; t < n_tables; t++) {
            struct kv_page want, got;
            page_alloc(&want, type, hd, 0x31);
            page_alloc(&got, type, hd, 0x31);
            kernels_ref.kv_store(type, &want, i % KV_PAGE, hd, key, value);
            tables[t]->kv_store(type, &got, i % KV_PAGE, hd, key, value);
            assert_memory_equal(want.k, got.k, bytes);
            assert_memory_equal(want.v, got.v, bytes);
            assert_memory_equal(want.k_scale, got.k_scale, KV_PAGE * sizeof(float));
            assert_memory_equal(want.v_scale, got.v_scale, KV_PAGE * sizeof(float));
            page_free(&want);
            page_free(&got);
        }
    }
}

/* One call of attend with its running state, in one table. */
struct attend_case {
    enum kv_type type;
    int head_dim, n_rows, first;
    int n_valid[9];
    float q[9 * (MAX_HEAD_DIM + 3)];
    float max[9], sum[9], acc[9 * MAX_HEAD_DIM];
};

static void attend_run(const struct kernels *k, const struct kv_page *page, struct attend_case *c)
{
    float *scratch = must_alloc((size_t)c->n_rows * (size_t)(KV_PAGE + c->head_dim) * sizeof *scratch);
    k->attend(c->type, page, c->head_dim, c->q, (size_t)c->head_dim + 3, c->n_rows, c->n_valid, c->first,
              c->max, c->sum, c->acc, scratch);
    free(scratch);
}

static void attend_case_make(struct attend_case *c, struct rng *r, int i)
{
    memset(c, 0, sizeof *c);
    c->type = (enum kv_type)(i % 3);
    c->head_dim = head_dims[rng_below(r, N_HEAD_DIMS)];
    c->n_rows = 1 + rng_below(r, 9);
    c->first = i / 3 % 2;
    fill_flavour(r, c->q, (int)(sizeof c->q / sizeof *c->q), i % 7 == 6 ? 1 : i % 11 == 10 ? 4 : 0);
    for (int row = 0; row < c->n_rows; row++) {
        c->n_valid[row] = i % 4 ? rng_below(r, KV_PAGE + 1) : KV_PAGE;
        if (c->first && c->n_valid[row] == 0)
            c->n_valid[row] = 1;
        c->max[row] = rng_uniform(r) * 4;
        c->sum[row] = 1 + rng_uniform(r);
    }
    rng_fill(r, c->acc, sizeof c->acc / sizeof *c->acc, 1);
}

static void attend_equals_ref(void **state)
{
    struct rng r = {8};
    float key[MAX_HEAD_DIM], value[MAX_HEAD_DIM];
    for (int i = 0; i < 240; i++) {
        static struct attend_case start, want, got;
        attend_case_make(&start, &r, i);
        struct kv_page page;
        page_alloc(&page, start.type, start.head_dim, 0xff); /* unwritten slots are NaN */
        int most = 0;
        for (int row = 0; row < start.n_rows; row++)
            most = start.n_valid[row] > most ? start.n_valid[row] : most;
        for (int slot = 0; slot < most; slot++) {
            fill_flavour(&r, key, start.head_dim, i % 7 == 5 ? 4 : 0);
            fill_flavour(&r, value, start.head_dim, i % 13 == 12 ? 2 : 0);
            kernels_ref.kv_store(start.type, &page, slot, start.head_dim, key, value);
        }
        want = start;
        attend_run(&kernels_ref, &page, &want);
        for (int t = 0; t < n_tables; t++) {
            got = start;
            attend_run(tables[t], &page, &got);
            assert_same("attend max", tables[t], want.max, got.max, 9);
            assert_same("attend sum", tables[t], want.sum, got.sum, 9);
            assert_same("attend acc", tables[t], want.acc, got.acc, sizeof want.acc / sizeof *want.acc);
        }
        page_free(&page);
    }
}

/* Two pages through the reference against a softmax in double. */
static void attend_is_right(void **state)
{
    enum { HD = 64, N = KV_PAGE + 37 };
    static float keys[N][HD], vals[N][HD];
    static struct attend_case c;
    struct rng r = {9};
    struct kv_page page[2];
    rng_fill(&r, &keys[0][0], (size_t)N * HD, 1);
    rng_fill(&r, &vals[0][0], (size_t)N * HD, 1);
    attend_case_make(&c, &r, 1);
    c.type = KV_F32;
    c.head_dim = HD;
    c.n_rows = 1;
    for (int p = 0; p < 2; p++) {
        page_alloc(&page[p], KV_F32, HD, 0);
        c.n_valid[0] = p ? N - KV_PAGE : KV_PAGE;
        c.first = p == 0;
        for (int j = 0; j < c.n_valid[0]; j++)
            kernels_ref.kv_store(KV_F32, &page[p], j, HD, keys[p * KV_PAGE + j], vals[p * KV_PAGE + j]);
        attend_run(&kernels_ref, &page[p], &c);
    }
    double weight = 0, want[HD] = {0};
    for (int j = 0; j < N; j++) {
        double score = 0;
        for (int d = 0; d < HD; d++)
            score += (double)c.q[d] * (double)keys[j][d];
        weight += det_exp(score);
        for (int d = 0; d < HD; d++)
            want[d] += det_exp(score) * (double)vals[j][d];
    }
    float out[HD];
    kernels_ref.attend_finish(c.acc, c.sum[0], HD, out);
    for (int d = 0; d < HD; d++)
        assert_float_equal(out[d], want[d] / weight, 2e-6);
    page_free(&page[0]);
    page_free(&page[1]);
}

static void isa_names(void **state)
{
    struct err err;
    enum isa isa;
    const struct kernels *k;
    assert_int_equal(isa_from_name("avx2", &isa, &err), 0);
    assert_int_equal(isa, ISA_AVX2);
    assert_int_equal(isa_from_name("sse9", &isa, &err), ERR_USAGE);
    assert_non_null(strstr(err.message, "sse9"));
    assert_int_equal(kernels_select(&k, ISA_AUTO, &err), 0);
    assert_string_equal(k->name, n_tables ? tables[n_tables - 1]->name : "ref");
    assert_int_equal(kernels_select(&k, ISA_REF, &err), 0);
    assert_ptr_equal(k, &kernels_ref);
    assert_int_equal(kernels_select(&k, ISA_AMX, &err), ERR_SYSTEM);
    assert_non_null(strstr(err.message, "amx"));
}

int main(int argc, char **argv)
{
    find_tables();
    if (argc > 1 && strcmp(argv[1], "--bench") == 0)
        return bench_run(tables, n_tables);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gemm_q_is_right),     cmocka_unit_test(gemm_q_equals_ref),
        cmocka_unit_test(gemm_f_equals_ref),   cmocka_unit_test(gemm_q_every_row_count),
        cmocka_unit_test(quantize_is_right),   cmocka_unit_test(quantize_equals_ref),
        cmocka_unit_test(vectors_are_right),   cmocka_unit_test(vectors_equal_ref),
        cmocka_unit_test(exp_is_right),        cmocka_unit_test(exp_equals_ref),
        cmocka_unit_test(kv_store_equals_ref), cmocka_unit_test(attend_is_right),
        cmocka_unit_test(attend_equals_ref),   cmocka_unit_test(isa_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

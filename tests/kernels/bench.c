/* bench.c - see bench.h. Weights of the decode figures come from memory: more of them than any cache holds.
 */
#include "bench.h"

#include "fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

/* CPU time: what other processes take does not count (their memory traffic still does). */
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The formats that models come in. */
static const struct {
    const char *name;
    struct pack_format f;
} formats[] = {
    {"q4_0", {PACK_Q, 4, 32, 1, false, 8}},
    {"q4_k, mlx4 g32", {PACK_Q, 4, 32, 1, true, 0}},
    {"mlx4 g64", {PACK_Q, 4, 64, 1, true, 0}},
    {"mlx4 g128", {PACK_Q, 4, 128, 1, true, 0}},
    {"q6_k", {PACK_Q, 6, 16, 1, false, 32}},
    {"mlx6 g64", {PACK_Q, 6, 64, 2, true, 0}},
    {"q8_0", {PACK_Q, 8, 32, 2, false, 128}},
    {"mlx8 g64", {PACK_Q, 8, 64, 2, true, 0}},
    {"bf16", {.kind = PACK_BF16}},
    {"f16", {.kind = PACK_F16}},
    {"f32", {.kind = PACK_F32}},
};

enum { BENCH_K = 4096, X_STRIDE = BENCH_K + 16, BENCH_ROWS = 64, PREFILL_PANELS = 32 };
static const size_t bench_bytes = (size_t)160 << 20;

static void gemm(const struct kernels *k, const struct weights *w, const struct activations *a, int panels,
                 int n_rows, float *out)
{
    static float x[BENCH_ROWS * X_STRIDE];
    for (int p = 0; p < panels; p++) {
        if (w->packed.format.kind == PACK_Q)
            k->gemm_q(&w->packed, p, 0, w->cut.n_blocks, &a->act, 0, n_rows, out, PANEL);
        else
            k->gemm_f(&w->packed, p, 0, w->cut.n_blocks, x, X_STRIDE, n_rows, out, PANEL);
    }
}

/* Seconds of the fastest of a few calls. */
static double gemm_seconds(const struct kernels *k, const struct weights *w, const struct activations *a,
                           int panels, int n_rows)
{
    float out[BENCH_ROWS * PANEL];
    double best = 1e9;
    for (int i = 0; i < 9; i++) {
        double start = now();
        gemm(k, w, a, panels, n_rows, out);
        double t = now() - start;
        best = t < best ? t : best;
    }
    return best;
}

static void bench_gemm(const struct kernels *k, const char *name, const struct pack_format *f)
{
    struct rng r = {1};
    struct shape s = {.rows = PANEL, .k = BENCH_K, .n_ranks = 1};
    struct weights w;
    struct activations a;
    weights_make(&w, f, &s, RANDOM, &r);
    activations_make(&a, &w.cut, BENCH_ROWS, RANDOM, &r, k);
    /* the one panel over and over in a large buffer */
    uint8_t *small = w.packed.data;
    size_t panels = bench_bytes / w.packed.panel_bytes;
    uint8_t *large =
        mmap(NULL, bench_bytes + PACK_SLACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (large == MAP_FAILED)
        exit(1);
    madvise(large, bench_bytes, MADV_HUGEPAGE);
    for (size_t i = 0; i < panels; i++)
        memcpy(large + i * w.packed.panel_bytes, small, w.packed.panel_bytes);
    w.packed.data = large;

    double bytes = (double)panels * (double)w.packed.panel_bytes, operations = 2.0 * BENCH_K * PANEL;
    printf("%-7s %-15s", k->name, name);
    static const int rows[] = {1, 2, 4, 8};
    for (int i = 0; i < 4; i++) {
        double t = gemm_seconds(k, &w, &a, (int)panels, rows[i]);
        printf(" %d: %5.1f GB/s", rows[i], bytes / t * 1e-9);
    }
    double t = gemm_seconds(k, &w, &a, PREFILL_PANELS, BENCH_ROWS);
    printf("   %d: %6.1f GOP/s\n", BENCH_ROWS, operations * PREFILL_PANELS * BENCH_ROWS / t * 1e-9);
    munmap(large, bench_bytes + PACK_SLACK);
    w.packed.data = small;
    activations_free(&a);
    weights_free(&w);
}

/* Times a statement, in nanoseconds a call. */
#define NANOSECONDS(statement)                                                                               \
    ({                                                                                                       \
        double best_ = 1e9;                                                                                  \
        for (int pass_ = 0; pass_ < 5; pass_++) {                                                            \
            double start_ = now();                                                                           \
            for (int i_ = 0; i_ < 200; i_++)                                                                 \
                statement;                                                                                   \
            double t_ = (now() - start_) / 200;                                                              \
            best_ = t_ < best_ ? t_ : best_;                                                                 \
        }                                                                                                    \
        best_ * 1e9;                                                                                         \
    })

static void bench_small(const struct kernels *k)
{
    static float x[BENCH_K], y[BENCH_K], z[BENCH_K];
    struct rng r = {2};
    struct kcut cut;
    struct qact act;
    rng_fill(&r, x, BENCH_K, 1);
    rng_fill(&r, y, BENCH_K, 1);
    if (kcut_make(&cut, BENCH_K, 0, 0, 1, true) != 0)
        exit(1);
    qact_alloc(&act, &cut, 1);
    printf("%-7s 4096 numbers: quantize %.0f ns, rmsnorm %.0f, silu_mul %.0f, rope %.0f, add %.0f, finish "
           "%.0f\n",
           k->name, NANOSECONDS(k->quantize(&cut, x, &act, 0)),
           NANOSECONDS(k->rmsnorm(x, y, BENCH_K, 1e-5f, z)), NANOSECONDS(k->silu_mul(x, y, BENCH_K, z)),
           NANOSECONDS(k->rope(z, x, y, BENCH_K / 2)), NANOSECONDS(k->add(z, y, BENCH_K)),
           NANOSECONDS(k->attend_finish(x, 2, BENCH_K, z)));
    qact_free(&act);
    kcut_free(&cut);
}

static void bench_attend(const struct kernels *k)
{
    enum { HD = 128, ROWS = 8 };
    static const char *const names[] = {"f32", "f16", "q8"};
    static float q[ROWS * HD], max[ROWS], sum[ROWS], acc[ROWS * HD], scratch[ROWS * (KV_PAGE + HD)];
    static float k_scale[KV_PAGE], v_scale[KV_PAGE];
    struct kv_page page = {must_alloc(HD * KV_PAGE * 4), must_alloc(HD * KV_PAGE * 4), k_scale, v_scale};
    int n_valid[ROWS];
    struct rng r = {3};
    rng_fill(&r, q, ROWS * HD, 0.1f);
    for (int i = 0; i < ROWS; i++)
        n_valid[i] = KV_PAGE;
    for (int type = KV_F32; type <= KV_Q8; type++) {
        for (int j = 0; j < KV_PAGE; j++)
            k->kv_store(type, &page, j, HD, q, q + HD);
        printf("%-7s %s page of head 128: store %.0f ns, attend 1 row %.0f, 4 rows %.0f, 8 rows %.0f\n",
               k->name, names[type], NANOSECONDS(k->kv_store(type, &page, 5, HD, q, q + HD)),
               NANOSECONDS(k->attend(type, &page, HD, q, HD, 1, n_valid, 1, max, sum, acc, scratch)),
               NANOSECONDS(k->attend(type, &page, HD, q, HD, 4, n_valid, 1, max, sum, acc, scratch)),
               NANOSECONDS(k->attend(type, &page, HD, q, HD, 8, n_valid, 1, max, sum, acc, scratch)));
    }
    free(page.k);
    free(page.v);
}

int bench_run(const struct kernels *const *tables, int n_tables)
{
    printf("One core, K = %d. GB/s of packed weights from memory at 1 to 8 rows, GOP/s at %d rows.\n",
           BENCH_K, BENCH_ROWS);
    for (int t = 0; t < n_tables; t++) {
        for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
            bench_gemm(tables[t], formats[i].name, &formats[i].f);
        bench_small(tables[t]);
        bench_attend(tables[t]);
    }
    return 0;
}

/* cpu.c - struct ops on cores: shares each operation out among the threads of a rank and calls its kernels.
 * Rank threads only. How the work is shared never changes a result: outputs are computed whole by one thread.
 */
#include "ops/ops.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* This thread's part [*begin, *end) of n items. */
static void share(const struct lane *l, int64_t n, int64_t *begin, int64_t *end)
{
    *begin = n * l->worker->thread / l->worker->n_threads;
    *end = n * (l->worker->thread + 1) / l->worker->n_threads;
}

static void quantize_rows(const struct lane *l, const struct act *a, int64_t begin, int64_t end)
{
    for (int64_t r = begin; r < end; r++) {
        l->kernels->quantize(a->cut, a->x + (size_t)r * a->stride, &a->q, (int)r);
        worker_progress(l->worker);
    }
}

/* ---- embedding, norm, residual ---- */

static int cpu_embed(struct lane *l, const struct packed *table, int64_t first, const int32_t *tokens,
                     int rows, float *x, int dim)
{
    float *partial = reduce_buffer(l->reduce, l->worker);
    int64_t begin, end;
    share(l, rows, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        float *out = partial + (size_t)r * (size_t)dim;
        int64_t local = tokens[r] - first;
        if (local < 0 || local >= table->rows) {
            memset(out, 0, (size_t)dim * sizeof *out);
            continue;
        }
        packed_row_f32(table, local, out);
        for (int i = 0; i < dim; i++)
            out[i] += 0.0f; /* -0 becomes +0, as it does where other ranks' zeros are added */
    }
    if (reduce_meet(l->reduce, l->worker, "all-reduce of the embedding"))
        return -1;
    if (begin < end)
        reduce_sum(l->reduce, l->worker, (size_t)begin * (size_t)dim, (size_t)(end - begin) * (size_t)dim,
                   x + (size_t)begin * (size_t)dim);
    return rank_barrier(l->worker, "embedding");
}

static void norm_row(const struct lane *l, const float *x, const float *weight, int dim, float eps,
                     const struct act *out, int row)
{
    float *y = out->x + (size_t)row * out->stride;
    l->kernels->rmsnorm(x, weight, dim, eps, y);
    if (out->q.q)
        l->kernels->quantize(out->cut, y, &out->q, row);
    worker_progress(l->worker);
}

static int cpu_norm(struct lane *l, const float *x, const int32_t *pick, const float *weight, int rows,
                    int dim, float eps, const struct act *out)
{
    int64_t begin, end;
    share(l, rows, &begin, &end);
    for (int64_t r = begin; r < end; r++)
        norm_row(l, x + (size_t)(pick ? pick[r] : r) * (size_t)dim, weight, dim, eps, out, (int)r);
    return rank_barrier(l->worker, "norm");
}

static int cpu_reduce_add_norm(struct lane *l, float *x, const float *weight, int rows, int dim, float eps,
                               const struct act *out, const char *what)
{
    if (reduce_meet(l->reduce, l->worker, what))
        return -1;
    enum { CHUNK = 1024 };
    float sum[CHUNK];
    int64_t begin, end;
    share(l, rows, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        float *row = x + (size_t)r * (size_t)dim;
        for (int i = 0; i < dim; i += CHUNK) {
            int n = min_int(CHUNK, dim - i);
            reduce_sum(l->reduce, l->worker, (size_t)r * (size_t)dim + (size_t)i, (size_t)n, sum);
            l->kernels->add(row + i, sum, (size_t)n);
        }
        if (weight)
            norm_row(l, row, weight, dim, eps, out, (int)r);
    }
    return rank_barrier(l->worker, what);
}

/* ---- products ---- */

/* One panel of one product for rows [row, row + n): out[r][0..15] in tile, slabs added by the aligned tree.
 */
static void panel_rows(const struct lane *l, const struct packed *w, int panel, const struct act *in, int row,
                       int n, float *tile, float *slabs)
{
    const struct kcut *cut = w->cut;
    for (int s = 0; s < cut->n_slabs; s++) {
        float *out = cut->n_slabs == 1 ? tile : slabs + s * ROW_TILE * PANEL;
        int b0 = cut->slab_block[s], b1 = cut->slab_block[s + 1];
        if (w->format.kind == PACK_Q)
            l->kernels->gemm_q(w, panel, b0, b1, &in->q, row, n, out, PANEL);
        else
            l->kernels->gemm_f(w, panel, b0, b1, in->x + (size_t)row * in->stride, in->stride, n, out, PANEL);
    }
    for (int step = 1; step < cut->n_slabs; step *= 2) {
        for (int s = 0; s < cut->n_slabs; s += 2 * step) {
            float *left = slabs + s * ROW_TILE * PANEL;
            bool last = 2 * step == cut->n_slabs;
            l->kernels->add(left, left + step * ROW_TILE * PANEL, (size_t)n * PANEL);
            if (last)
                memcpy(tile, left, (size_t)n * PANEL * sizeof *tile);
        }
    }
}

static void product_panels(const struct lane *l, const struct product *p, int panel0, int panel1,
                           const struct act *in, int rows)
{
    float *tile = (float *)l->scratch, *slabs = tile + ROW_TILE * PANEL;
    for (int panel = panel0; panel < panel1; panel++) {
        int first = panel * PANEL;
        size_t width = p->exact_width ? (size_t)min_int(PANEL, p->w->rows - first) : PANEL;
        for (int row = 0; row < rows; row += ROW_TILE) {
            int n = min_int(ROW_TILE, rows - row);
            panel_rows(l, p->w, panel, in, row, n, tile, slabs);
            for (int r = 0; r < n; r++)
                memcpy(p->out + (size_t)(row + r) * p->out_stride + first, tile + r * PANEL,
                       width * sizeof *tile);
            worker_progress(l->worker);
        }
    }
    worker_count(l->worker, 0, 0, (uint64_t)(panel1 - panel0) * p->w->panel_bytes);
}

static int cpu_linear(struct lane *l, const struct product *products, int n, const struct act *in, int rows)
{
    int64_t total = 0, begin, end;
    for (int i = 0; i < n; i++)
        total += products[i].w->n_panels;
    share(l, total, &begin, &end);
    for (int i = 0; i < n; i++) {
        int panels = products[i].w->n_panels;
        if (begin < panels && end > 0)
            product_panels(l, &products[i], begin > 0 ? (int)begin : 0, min_int(panels, (int)end), in, rows);
        begin -= panels;
        end -= panels;
    }
    return rank_barrier(l->worker, "matrix product");
}

static int cpu_partial(struct lane *l, const struct packed *w, const struct act *in, int rows, int dim)
{
    if (w->format.kind == PACK_Q) {
        int64_t begin, end;
        share(l, rows, &begin, &end);
        quantize_rows(l, in, begin, end);
        if (rank_barrier(l->worker, "quantised activations"))
            return -1;
    }
    struct product p = {w, reduce_buffer(l->reduce, l->worker), (size_t)dim, true};
    int64_t begin, end;
    share(l, w->n_panels, &begin, &end);
    product_panels(l, &p, (int)begin, (int)end, in, rows);
    return 0; /* the reduction's meeting follows */
}

/* ---- attention ---- */

static int cpu_rope(struct lane *l, float *q, size_t q_stride, int n_q, float *k, size_t k_stride, int n_k,
                    int head_dim, const float *cosine, const float *sine, int rows)
{
    int half = head_dim / 2, heads = n_q + n_k;
    int64_t begin, end;
    share(l, (int64_t)rows * heads, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        size_t row = (size_t)(i / heads);
        int head = (int)(i % heads);
        float *x = head < n_q ? q + row * q_stride + (size_t)head * (size_t)head_dim
                              : k + row * k_stride + (size_t)(head - n_q) * (size_t)head_dim;
        l->kernels->rope(x, cosine + row * (size_t)half, sine + row * (size_t)half, half);
    }
    return rank_barrier(l->worker, "rotary embedding");
}

static struct kv_page page_of(const struct kv_view *kv, int head, int32_t page)
{
    uint8_t *base = kv->data + (size_t)head * kv->head_bytes + (size_t)page * kv->page_bytes;
    size_t element = kv->type == KV_F32 ? 4 : kv->type == KV_F16 ? 2 : 1;
    size_t bytes = (size_t)kv->head_dim * KV_PAGE * element;
    struct kv_page p = {.k = base, .v = base + bytes};
    if (kv->type == KV_Q8) {
        p.k_scale = (float *)(base + 2 * bytes);
        p.v_scale = p.k_scale + KV_PAGE;
    }
    return p;
}

static void store_rows(struct lane *l, const struct attention *a, const struct kv_view *kv,
                       const struct run *run)
{
    int64_t begin, end;
    share(l, (int64_t)run->n_rows * a->n_kv_heads, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int r = (int)(i / a->n_kv_heads), head = (int)(i % a->n_kv_heads), position = run->position + r;
        size_t row = (size_t)(run->row + r), offset = (size_t)head * (size_t)kv->head_dim;
        struct kv_page page = page_of(kv, head, run->pages[position / KV_PAGE]);
        l->kernels->kv_store(kv->type, &page, position % KV_PAGE, kv->head_dim,
                             a->k + row * a->k_stride + offset, a->v + row * a->v_stride + offset);
    }
}

/* The query heads [head0, head1) of one KV head, for rows [r0, r1) of a run: one small matrix product per
 * page. */
static void attend_tile(struct lane *l, const struct attention *a, const struct kv_view *kv,
                        const struct run *run, int kv_head, int head0, int head1, int r0, int r1)
{
    int heads = head1 - head0, n = heads * (r1 - r0), d = kv->head_dim;
    float scale = 1.0f / sqrtf((float)d);
    int capacity = heads > ROW_TILE ? heads : ROW_TILE;
    float *q = (float *)l->scratch, *acc = q + (size_t)capacity * (size_t)d,
          *work = acc + (size_t)capacity * (size_t)d;
    float *max = work + (size_t)capacity * (size_t)(KV_PAGE + d), *sum = max + capacity;
    int *n_valid = (int *)(sum + capacity);
    assert(n <= capacity);
    for (int i = 0; i < n; i++) {
        const float *from = a->q + (size_t)(run->row + r0 + i / heads) * a->q_stride +
                            (size_t)(head0 + i % heads) * (size_t)d;
        for (int j = 0; j < d; j++)
            q[(size_t)i * (size_t)d + (size_t)j] = from[j] * scale;
    }
    int last_page = (run->position + r1 - 1) / KV_PAGE;
    for (int page = 0; page <= last_page; page++) {
        struct kv_page view = page_of(kv, kv_head, run->pages[page]);
        for (int i = 0; i < n; i++) {
            int seen = run->position + r0 + i / heads + 1 - page * KV_PAGE;
            n_valid[i] = seen < 0 ? 0 : min_int(seen, KV_PAGE);
        }
        l->kernels->attend(kv->type, &view, d, q, (size_t)d, n, n_valid, page == 0, max, sum, acc, work);
        worker_progress(l->worker);
    }
    for (int i = 0; i < n; i++)
        l->kernels->attend_finish(acc + (size_t)i * (size_t)d, sum[i], d,
                                  a->out + (size_t)(run->row + r0 + i / heads) * a->out_stride +
                                      (size_t)(head0 + i % heads) * (size_t)d);
}

static int cpu_attend(struct lane *l, const struct attention *a, const struct kv_view *kv)
{
    for (int i = 0; i < a->n_runs; i++)
        store_rows(l, a, kv, &a->runs[i]);
    if (rank_barrier(l->worker, "keys and values"))
        return -1;
    int64_t task = 0; /* counted the same by every thread; thread t takes every n_threads-th */
    for (int i = 0; i < a->n_runs; i++) {
        for (int head0 = 0, head1; head0 < a->n_heads; head0 = head1) {
            for (head1 = head0 + 1; head1 < a->n_heads && a->kv_of_head[head1] == a->kv_of_head[head0];)
                head1++;
            int rows_per_tile = head1 - head0 >= ROW_TILE ? 1 : ROW_TILE / (head1 - head0);
            for (int r = 0; r < a->runs[i].n_rows; r += rows_per_tile, task++)
                if (task % l->worker->n_threads == l->worker->thread)
                    attend_tile(l, a, kv, &a->runs[i], a->kv_of_head[head0], head0, head1, r,
                                min_int(a->runs[i].n_rows, r + rows_per_tile));
        }
    }
    return rank_barrier(l->worker, "attention");
}

static int cpu_silu_mul(struct lane *l, float *gate, const float *up, size_t stride, int n, int rows)
{
    /* Whole cache lines per thread, so that one row can be shared too. */
    int64_t chunks = (n + 255) / 256, begin, end;
    share(l, chunks * rows, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        size_t offset = (size_t)(i / chunks) * stride + (size_t)(i % chunks) * 256;
        int length = min_int(256, n - (int)(i % chunks) * 256);
        l->kernels->silu_mul(gate + offset, up + offset, length, gate + offset);
        worker_progress(l->worker);
    }
    return rank_barrier(l->worker, "feed-forward activation");
}

static size_t cpu_scratch_bytes(int head_dim, int heads_per_kv)
{
    size_t rows = heads_per_kv > ROW_TILE ? (size_t)heads_per_kv : ROW_TILE, d = (size_t)head_dim;
    size_t products = (N_SLABS + 1) * ROW_TILE * PANEL * sizeof(float);
    size_t attention = rows * (3 * d + KV_PAGE + 3) * sizeof(float);
    size_t bytes = products > attention ? products : attention;
    return (bytes + 63) & ~(size_t)63;
}

const struct ops ops_cpu = {
    .device = "cpu",
    .scratch_bytes = cpu_scratch_bytes,
    .embed = cpu_embed,
    .norm = cpu_norm,
    .reduce_add_norm = cpu_reduce_add_norm,
    .linear = cpu_linear,
    .partial = cpu_partial,
    .rope = cpu_rope,
    .attend = cpu_attend,
    .silu_mul = cpu_silu_mul,
};

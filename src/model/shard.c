/* shard.c - see shard.h. */
#include "model/shard.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The vector that a matrix reads. */
static const enum input input_of[N_WEIGHT_ROLES] = {[W_O] = INPUT_HEADS, [W_DOWN] = INPUT_FFN};

/* ---- inventory ---- */

static int slot_of(const struct inventory *inv, enum weight_role role, int layer)
{
    return (layer < 0 ? inv->n_layers : layer) * N_WEIGHT_ROLES + (int)role;
}

const struct matrix *inventory_matrix(const struct inventory *inv, enum weight_role role, int layer)
{
    return &inv->matrices[slot_of(inv, role, layer)];
}

static int inventory_add(struct inventory *inv, const struct source *s, enum weight_role role, int layer,
                         struct err *err)
{
    struct matrix *m = &inv->matrices[slot_of(inv, role, layer)];
    int rc = source_matrix(s, role, layer, m, err);
    if (rc)
        return rc;
    if (m->group)
        inv->quantised[input_of[role]] = true;
    if (m->format != WEIGHT_F32)
        inv->all_f32 = false;
    if (role == W_O && m->group > inv->head_group)
        inv->head_group = m->group;
    if (role == W_DOWN && m->group > inv->ffn_group)
        inv->ffn_group = m->group;
    if (role == W_HEAD && s->config.tied_embeddings)
        return 0;
    inv->file_bytes += matrix_file_bytes(m);
    inv->n_parameters += (uint64_t)m->rows * (uint64_t)m->cols;
    return 0;
}

int inventory_make(struct inventory *out, const struct source *s, struct err *err)
{
    *out =
        (struct inventory){.n_layers = s->config.n_layers, .head_group = 1, .ffn_group = 1, .all_f32 = true};
    out->matrices = calloc((size_t)(s->config.n_layers + 1) * N_WEIGHT_ROLES, sizeof *out->matrices);
    float *vector = malloc((size_t)s->config.dim * sizeof *vector); /* read here to check it, by name */
    int rc = out->matrices && vector ? 0 : err_set(err, ERR_SYSTEM, "out of memory");
    for (int layer = -1; layer < s->config.n_layers && !rc; layer++) {
        for (int role = 0; role < N_WEIGHT_ROLES && !rc; role++) {
            const struct weight_spec *spec = &s->config.family->weights[role];
            if (spec->per_layer != (layer >= 0))
                continue;
            if (spec->vector) {
                rc = source_vector(s, role, layer, vector, err);
                out->n_parameters += (uint64_t)s->config.dim;
            } else {
                rc = inventory_add(out, s, role, layer, err);
            }
        }
    }
    free(vector);
    if (rc)
        inventory_free(out);
    return rc;
}

void inventory_free(struct inventory *inv)
{
    free(inv->matrices);
    inv->matrices = NULL;
}

static void format_name(const struct matrix *m, char *out, size_t size)
{
    static const char *const names[] = {"f32", "f16", "bf16", "q4_0", "q8_0", "q4_k", "q6_k"};
    if (m->format == WEIGHT_MLX)
        snprintf(out, size, "mlx%d g%d", m->bits, m->group);
    else
        snprintf(out, size, "%s", names[m->format]);
}

void inventory_describe(const struct inventory *inv, char *out, size_t size)
{
    struct {
        char name[24];
        uint64_t bytes;
    } kinds[16] = {0};
    int n = 0;
    for (int i = 0; i < (inv->n_layers + 1) * N_WEIGHT_ROLES; i++) {
        const struct matrix *m = &inv->matrices[i];
        if (!m->rows)
            continue;
        char name[24];
        format_name(m, name, sizeof name);
        int k = 0;
        while (k < n && strcmp(kinds[k].name, name))
            k++;
        if (k == 16)
            continue;
        if (k == n)
            memcpy(kinds[n++].name, name, sizeof name);
        kinds[k].bytes += matrix_file_bytes(m);
    }
    size_t used = 0;
    if (size)
        out[0] = 0;
    for (int printed = 0; printed < n; printed++) {
        int best = 0;
        for (int k = 1; k < n; k++)
            if (kinds[k].bytes > kinds[best].bytes)
                best = k;
        int length = snprintf(out + used, size - used, "%s%s", printed ? " + " : "", kinds[best].name);
        kinds[best].bytes = 0;
        if (length < 0 || (size_t)length >= size - used)
            return;
        used += (size_t)length;
    }
}

struct pack_format pack_format_of(const struct matrix *m)
{
    switch (m->format) {
    case WEIGHT_F32:
        return (struct pack_format){.kind = PACK_F32};
    case WEIGHT_F16:
        return (struct pack_format){.kind = PACK_F16};
    case WEIGHT_BF16:
        return (struct pack_format){.kind = PACK_BF16};
    case WEIGHT_Q4_0:
        return (struct pack_format){PACK_Q, 4, 32, 1, false, 8};
    case WEIGHT_Q8_0:
        return (struct pack_format){PACK_Q, 8, 32, 2, false, 128};
    case WEIGHT_Q4_K:
        return (struct pack_format){PACK_Q, 4, 32, 1, true, 0};
    case WEIGHT_Q6_K:
        return (struct pack_format){PACK_Q, 6, 16, 1, false, 32};
    case WEIGHT_MLX:
        break;
    }
    if (m->bits <= 4)
        return (struct pack_format){PACK_Q, 4, m->group, 1, true, 0};
    return (struct pack_format){PACK_Q, m->bits <= 6 ? 6 : 8, m->group, 2, true, 0};
}

/* ---- layout ---- */

/* Hands out pieces of one block; over no block (base == NULL) it only counts. */
struct bump {
    uint8_t *base;
    uint64_t used;
};

static void *take(struct bump *b, uint64_t count, uint64_t size)
{
    b->used = (b->used + 63) & ~(uint64_t)63;
    void *p = b->base ? b->base + b->used : NULL;
    b->used += count * size;
    return p;
}

static void take_packed(struct bump *b, struct packed *p, const struct shard *s, const struct matrix *m,
                        enum split_rule rule, enum input input)
{
    struct pack_format format = pack_format_of(m);
    const struct kcut *cut = &s->cut[input][format.kind == PACK_Q];
    int64_t first, rows;
    split_rows(&s->split, s->config, rule, &first, &rows);
    size_t *offsets = take(b, (uint64_t)cut->n_blocks + 1, sizeof *offsets);
    packed_init(p, &format, rows, cut, offsets);
    p->data = take(b, (uint64_t)p->n_panels * p->panel_bytes + PACK_SLACK, 1);
}

static void take_weights(struct bump *b, struct shard *s, const struct inventory *inv)
{
    const struct config *c = s->config;
    const struct weight_spec *spec = c->family->weights;
    s->kv_of_head = take(b, (uint64_t)s->split.n_q_heads, sizeof(int));
    s->out_norm = take(b, (uint64_t)c->dim, sizeof(float));
    take_packed(b, &s->embed, s, inventory_matrix(inv, W_EMBED, -1), SPLIT_VOCAB, INPUT_DIM);
    if (c->tied_embeddings)
        s->head = s->embed;
    else
        take_packed(b, &s->head, s, inventory_matrix(inv, W_HEAD, -1), SPLIT_VOCAB, INPUT_DIM);
    for (int i = 0; i < c->n_layers; i++) {
        struct layer *l = &s->layers[i];
        l->attn_norm = take(b, (uint64_t)c->dim, sizeof(float));
        l->ffn_norm = take(b, (uint64_t)c->dim, sizeof(float));
        struct packed *matrices[N_WEIGHT_ROLES] = {
            [W_Q] = &l->q,       [W_K] = &l->k,   [W_V] = &l->v,       [W_O] = &l->o,
            [W_GATE] = &l->gate, [W_UP] = &l->up, [W_DOWN] = &l->down,
        };
        for (int role = 0; role < N_WEIGHT_ROLES; role++)
            if (matrices[role])
                take_packed(b, matrices[role], s, inventory_matrix(inv, role, i), spec[role].split,
                            input_of[role]);
    }
}

static void take_kv(struct bump *b, struct shard *s)
{
    const struct config *c = s->config;
    static const uint64_t element[] = {[KV_F32] = 4, [KV_F16] = 2, [KV_Q8] = 1};
    uint64_t page = 2 * (uint64_t)c->head_dim * KV_PAGE * element[s->limits.kv];
    if (s->limits.kv == KV_Q8)
        page += 2 * KV_PAGE * sizeof(float);
    page = (page + 63) & ~(uint64_t)63;
    for (int i = 0; i < c->n_layers; i++) {
        struct kv_view *kv = &s->layers[i].kv;
        kv->type = s->limits.kv;
        kv->head_dim = c->head_dim;
        kv->page_bytes = (size_t)page;
        kv->head_bytes = (size_t)(page * (uint64_t)s->limits.n_pages);
        kv->data = take(b, (uint64_t)s->split.n_kv_heads * kv->head_bytes, 1);
    }
}

/* Row strides are an odd number of cache lines: rows a power of two apart would fall into the same sets of
 * the L1 cache, which halved the speed of prefill. A line holds as many floats as a panel has outputs. */
static uint64_t odd_lines(uint64_t n, uint64_t per_line)
{
    return ((n + per_line - 1) / per_line | 1) * per_line;
}

static void take_input(struct bump *b, struct shard *s, enum input input, uint64_t stride, bool quantised)
{
    struct act *a = &s->in[input];
    uint64_t rows = (uint64_t)s->limits.rows;
    a->stride = (size_t)stride;
    a->x = take(b, rows * stride, sizeof(float));
    if (!quantised)
        return;
    const struct kcut *cut = &s->cut[input][1];
    a->cut = cut;
    a->q.n_blocks = cut->n_blocks;
    a->q.q_stride = (int32_t)odd_lines((uint64_t)cut->k, 64);
    a->q.sum_stride = (a->q.q_stride / 16 + 15) / 16 * 16;
    a->q.q = take(b, rows * (uint64_t)a->q.q_stride, 1);
    a->q.scale = take(b, rows * (uint64_t)cut->n_blocks, sizeof(float));
    for (int i = 0; i < 4; i++)
        a->q.sum[i] = take(b, rows * (uint64_t)(a->q.sum_stride >> i), sizeof(int32_t));
}

static void take_step(struct bump *b, struct shard *s, const struct inventory *inv, const struct ops *ops)
{
    const struct config *c = s->config;
    uint64_t rows = (uint64_t)s->limits.rows, half = (uint64_t)c->head_dim / 2;
    s->q_stride = (size_t)odd_lines((uint64_t)s->split.n_q_heads * (uint64_t)c->head_dim, PANEL);
    s->kv_stride = (size_t)odd_lines((uint64_t)s->split.n_kv_heads * (uint64_t)c->head_dim, PANEL);
    s->ffn_stride = (size_t)odd_lines((uint64_t)s->split.n_ffn, PANEL);
    s->x = take(b, rows * (uint64_t)c->dim, sizeof(float));
    take_input(b, s, INPUT_DIM, odd_lines((uint64_t)c->dim, PANEL), inv->quantised[INPUT_DIM]);
    take_input(b, s, INPUT_HEADS, s->q_stride, inv->quantised[INPUT_HEADS]);
    take_input(b, s, INPUT_FFN, s->ffn_stride, inv->quantised[INPUT_FFN]);
    s->q = take(b, rows * s->q_stride, sizeof(float));
    s->k = take(b, rows * s->kv_stride, sizeof(float));
    s->v = take(b, rows * s->kv_stride, sizeof(float));
    s->up = take(b, rows * s->ffn_stride, sizeof(float));
    s->cosine = take(b, rows * half, sizeof(float));
    s->sine = take(b, rows * half, sizeof(float));
    s->scratch_bytes = ops->scratch_bytes(c->head_dim, c->n_heads / c->n_kv_heads);
    s->scratch = take(b, (uint64_t)s->limits.n_threads, s->scratch_bytes);
}

static void lay_out(struct shard *s, const struct inventory *inv, const struct ops *ops, uint8_t *base)
{
    struct bump b = {.base = base};
    take_weights(&b, s, inv);
    s->weight_bytes = b.used;
    take_kv(&b, s);
    s->kv_bytes = b.used - s->weight_bytes;
    take_step(&b, s, inv, ops);
    s->step_bytes = b.used - s->weight_bytes - s->kv_bytes +
                    reduce_arena_bytes((size_t)s->limits.rows * (size_t)s->config->dim);
}

int shard_plan(struct shard *out, const struct config *c, const struct inventory *inv,
               const struct limits *limits, const struct ops *ops, int rank, int n_ranks, struct err *err)
{
    *out = (struct shard){.config = c, .limits = *limits};
    split_make(&out->split, c, inv->head_group, inv->ffn_group, rank, n_ranks);
    out->layers = calloc((size_t)c->n_layers, sizeof *out->layers);
    bool failed = !out->layers;
    const int64_t k[N_INPUTS] = {c->dim, (int64_t)c->n_heads * c->head_dim, c->ffn_dim};
    const int64_t unit[N_INPUTS] = {0, out->split.head_unit, out->split.ffn_unit};
    for (int input = 0; input < N_INPUTS; input++) {
        failed |= kcut_make(&out->cut[input][0], k[input], unit[input], rank, n_ranks, false) != 0;
        if (inv->quantised[input])
            failed |= kcut_make(&out->cut[input][1], k[input], unit[input], rank, n_ranks, true) != 0;
    }
    if (failed) {
        shard_free(out);
        return err_set(err, ERR_SYSTEM, "out of memory");
    }
    lay_out(out, inv, ops, NULL);
    return 0;
}

uint64_t shard_bytes(const struct shard *s)
{
    return s->weight_bytes + s->kv_bytes + s->step_bytes;
}

void shard_place(struct shard *s, const struct inventory *inv, const struct ops *ops)
{
    uint64_t own = shard_bytes(s) - reduce_arena_bytes((size_t)s->limits.rows * (size_t)s->config->dim);
    uint8_t *base = arena_alloc(&s->arena, (size_t)own);
    assert(base);
    lay_out(s, inv, ops, base);
    int per_kv = s->config->n_heads / s->config->n_kv_heads;
    for (int i = 0; i < s->split.n_q_heads; i++)
        s->kv_of_head[i] = (s->split.q_head + i) / per_kv - s->split.kv_head;
}

void shard_free(struct shard *s)
{
    for (int input = 0; input < N_INPUTS; input++)
        for (int quantised = 0; quantised < 2; quantised++)
            kcut_free(&s->cut[input][quantised]);
    free(s->layers);
    s->layers = NULL;
    arena_close(&s->arena);
}

/* ---- loading ---- */

/* Buffers in which a thread decodes 16 rows of a matrix. */
struct decode_buffers {
    uint8_t *bytes;
    struct affine_row rows[PANEL];
};

static bool decode_open(struct decode_buffers *d, const struct matrix *m)
{
    size_t k = (size_t)m->cols, groups = m->group ? k / (size_t)m->group : 0,
           supers = (k + SUPER - 1) / SUPER;
    size_t row = m->group ? ((k + 3) & ~(size_t)3) + groups * (2 * sizeof(float) + 2 * sizeof(int16_t)) +
                                2 * supers * sizeof(float)
                          : k * sizeof(float);
    row = (row + 63) & ~(size_t)63;
    d->bytes = malloc(PANEL * row);
    if (!d->bytes)
        return false;
    for (int i = 0; i < PANEL; i++) {
        uint8_t *p = d->bytes + (size_t)i * row;
        struct affine_row *r = &d->rows[i];
        r->s = (float *)p;
        r->b = r->s + groups;
        r->d1 = r->b + groups;
        r->d2 = r->d1 + (m->group ? supers : 0);
        r->sc = (int16_t *)(r->d2 + (m->group ? supers : 0));
        r->mn = r->sc + groups;
        r->q = m->group ? (uint8_t *)(r->mn + groups) : p;
    }
    return true;
}

/* Row of the file that holds local output row i. GGUF stores the rows of a rotated head as pairs (2i, 2i +
 * 1); kernels rotate halves (i, i + head_dim / 2). */
static int64_t file_row(const struct config *c, enum weight_role role, int64_t row)
{
    if (!c->rope_rows_interleaved || (role != W_Q && role != W_K))
        return row;
    int64_t head = row / c->head_dim, i = row % c->head_dim, half = c->head_dim / 2;
    return head * c->head_dim + 2 * (i % half) + i / half;
}

static bool decode_row(const struct matrix *m, const struct pack_format *f, int64_t row,
                       const struct affine_row *out)
{
    if (f->kind != PACK_Q)
        return matrix_row_raw(m, row, out->q);
    if (!matrix_row_affine(m, row, out))
        return false;
    if (!matrix_is_native(m))
        super_from_affine(f, m->cols, out->s, out->b, out->sc, out->mn, out->d1, out->d2);
    return true;
}

static const char out_of_memory[] = "out of memory";

static void load_matrix(const struct shard *s, const struct matrix *m, struct packed *p,
                        enum weight_role role, const struct worker *w, struct shard_failure *failure)
{
    struct decode_buffers d;
    int64_t first, count;
    if (!p->n_panels || !p->panel_bytes)
        return;
    if (!decode_open(&d, m)) {
        atomic_store(&failure->name, out_of_memory);
        return;
    }
    split_rows(&s->split, s->config, s->config->family->weights[role].split, &first, &count);
    for (int panel = w->thread; panel < p->n_panels; panel += w->n_threads) {
        struct super_row supers[PANEL];
        const struct super_row *quantised[PANEL] = {0};
        const void *floats[PANEL] = {0};
        for (int i = 0; i < PANEL && (int64_t)panel * PANEL + i < count; i++) {
            int64_t row = file_row(s->config, role, first + (int64_t)panel * PANEL + i);
            if (!decode_row(m, &p->format, row, &d.rows[i]))
                atomic_store(&failure->name, m->name);
            supers[i] =
                (struct super_row){d.rows[i].q, d.rows[i].sc, d.rows[i].mn, d.rows[i].d1, d.rows[i].d2};
            quantised[i] = &supers[i];
            floats[i] = d.rows[i].q;
        }
        if (p->format.kind == PACK_Q)
            packed_put_panel(p, panel, quantised);
        else
            packed_put_panel_float(p, panel, floats);
        worker_progress((struct worker *)w);
    }
    free(d.bytes);
}

static void load_norm(const struct source *source, enum weight_role role, int layer, float *out,
                      struct shard_failure *failure)
{
    if (source_vector(source, role, layer, out, NULL))
        atomic_store(&failure->name, role == W_OUT_NORM ? "the output norm" : "a layer's norm");
}

static void load_model_wide(struct shard *s, const struct source *source, const struct inventory *inv,
                            const struct worker *w, struct shard_failure *failure)
{
    load_matrix(s, inventory_matrix(inv, W_EMBED, -1), &s->embed, W_EMBED, w, failure);
    if (!s->config->tied_embeddings)
        load_matrix(s, inventory_matrix(inv, W_HEAD, -1), &s->head, W_HEAD, w, failure);
    if (w->thread == 0)
        load_norm(source, W_OUT_NORM, 0, s->out_norm, failure);
    /* The cache and the buffers are touched now, so that no later step can run out of memory. */
    uint8_t *end = s->arena.base + s->arena.used_bytes, *begin = s->arena.base + s->weight_bytes;
    const size_t piece = (size_t)1 << 24;
    for (uint8_t *p = begin + (size_t)w->thread * piece; p < end; p += (size_t)w->n_threads * piece) {
        memset(p, 0, (size_t)(end - p) < piece ? (size_t)(end - p) : piece);
        worker_progress((struct worker *)w);
    }
}

void shard_load_layer(struct shard *s, const struct source *source, const struct inventory *inv, int layer,
                      const struct worker *w, struct shard_failure *failure)
{
    if (layer < 0) {
        load_model_wide(s, source, inv, w, failure);
        return;
    }
    struct layer *l = &s->layers[layer];
    struct packed *matrices[N_WEIGHT_ROLES] = {
        [W_Q] = &l->q,       [W_K] = &l->k,   [W_V] = &l->v,       [W_O] = &l->o,
        [W_GATE] = &l->gate, [W_UP] = &l->up, [W_DOWN] = &l->down,
    };
    for (int role = 0; role < N_WEIGHT_ROLES; role++)
        if (matrices[role])
            load_matrix(s, inventory_matrix(inv, role, layer), matrices[role], role, w, failure);
    if (w->thread == 0) {
        load_norm(source, W_ATTN_NORM, layer, l->attn_norm, failure);
        load_norm(source, W_FFN_NORM, layer, l->ffn_norm, failure);
    }
}

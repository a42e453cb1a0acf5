/* model.c - see model.h. */
#include "model/model.h"

#include "base/buf.h"
#include "model/forward.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* ---- what fits ---- */

static double gib(uint64_t bytes)
{
    return (double)bytes / (double)(1 << 30);
}

/* Bytes that the neediest rank of n_ranks needs with these limits; UINT64_MAX when it cannot be planned. */
static uint64_t needed(const struct model *m, const struct limits *limits, int n_ranks)
{
    uint64_t most = 0;
    for (int rank = 0; rank < n_ranks; rank++) {
        struct shard s;
        if (shard_plan(&s, &m->config, &m->inventory, limits, m->ops, rank, n_ranks, NULL))
            return UINT64_MAX;
        if (shard_bytes(&s) > most)
            most = shard_bytes(&s);
        shard_free(&s);
    }
    return most;
}

/* The same requests with other positions per sequence. */
static struct limits with_ctx(const struct limits *limits, int ctx)
{
    struct limits l = *limits;
    int sequences = limits->n_pages / ((limits->ctx + KV_PAGE - 1) / KV_PAGE);
    l.ctx = ctx;
    l.rows = ctx + sequences < l.rows ? ctx + sequences : l.rows; /* a chunk is no longer than the context */
    l.n_pages = sequences * ((ctx + KV_PAGE - 1) / KV_PAGE);
    return l;
}

/* Appends what would fit into `have` bytes a rank: another --tp, --ctx or --kv. */
static void suggest(const struct model *m, const struct model_options *o, uint64_t have, struct buf *text)
{
    bool any = false;
    for (int tp = m->n_ranks * 2; tp <= MAX_RANKS && !any; tp *= 2) {
        /* More ranks on the same memory do not add any, unless the limit is per rank. */
        uint64_t room = o->memory_per_rank ? have : 0;
        struct topo t;
        if (!room && !topo_open(&t, NULL, tp, o->limits.n_threads, NULL)) {
            room = UINT64_MAX;
            for (int r = 0; r < tp; r++)
                if (topo_available_bytes(&t, r) < room)
                    room = topo_available_bytes(&t, r);
            topo_close(&t);
        }
        if (needed(m, &o->limits, tp) <= room) {
            buf_printf(text, "%s --tp %d", any ? " or" : "; would fit:", tp);
            any = true;
        }
    }
    int fits = 0, too_many = (o->limits.ctx + KV_PAGE - 1) / KV_PAGE; /* pages per sequence */
    while (fits + 1 < too_many) {
        int pages = (fits + too_many) / 2;
        struct limits l = with_ctx(&o->limits, pages * KV_PAGE);
        *(needed(m, &l, m->n_ranks) <= have ? &fits : &too_many) = pages;
    }
    if (fits) {
        buf_printf(text, "%s --ctx %d", any ? " or" : "; would fit:", fits * KV_PAGE);
        any = true;
    }
    if (o->limits.kv != KV_Q8) {
        struct limits l = o->limits;
        l.kv = KV_Q8;
        if (needed(m, &l, m->n_ranks) <= have) {
            buf_printf(text, "%s --kv q8", any ? " or" : "; would fit:");
            any = true;
        }
    }
    if (!any)
        buf_puts(text,
                 "; no --tp up to 8, --ctx or --kv makes it fit: use fewer bits per weight or a machine with "
                 "more memory");
}

static int check_memory(const struct model *m, const struct model_options *o, struct err *err)
{
    for (int rank = 0; rank < m->n_ranks; rank++) {
        const struct shard *s = &m->shards[rank];
        /* The user's figure is the last word: some virtual machines get memory only when they ask for it. */
        uint64_t need = shard_bytes(s);
        uint64_t have = o->memory_per_rank ? o->memory_per_rank : topo_available_bytes(&m->topo, rank);
        if (need <= have)
            continue;
        struct buf text = {0};
        suggest(m, o, have, &text);
        err_set(err, ERR_SYSTEM,
                "does not fit: rank %d of %d needs %.3f GiB (weights %.3f + KV cache %.3f for %d positions + "
                "activations %.3f) and has %.3f GiB%s",
                rank, m->n_ranks, gib(need), gib(s->weight_bytes), gib(s->kv_bytes), o->limits.ctx,
                gib(s->step_bytes), gib(have), text.data ? text.data : "");
        buf_free(&text);
        return ERR_SYSTEM;
    }
    return 0;
}

/* ---- open ---- */

struct load_job {
    struct model *m;
    const struct source *source;
    int layer;
    struct shard_failure failure;
};

static void load_on_rank(struct worker *w, void *arg)
{
    struct load_job *job = arg;
    shard_load_layer(&job->m->shards[w->rank], job->source, &job->m->inventory, job->layer, w, &job->failure);
}

/* What went wrong in a layer, if anything did. */
static int load_failure(const struct load_job *job, struct err *err)
{
    const char *name = atomic_load(&job->failure.name);
    if (!name)
        return 0;
    if (!strcmp(name, "out of memory"))
        return err_set(err, ERR_SYSTEM, "out of memory while loading");
    return err_set(err, ERR_INPUT, "%s holds a value or scale that is not finite: the file is damaged", name);
}

static int load(struct model *m, const struct source *source, const struct model_options *o, struct err *err)
{
    struct load_job *job = calloc(1, sizeof *job);
    if (!job)
        return err_set(err, ERR_SYSTEM, "out of memory");
    *job = (struct load_job){.m = m, .source = source};
    int n_layers = m->config.n_layers, rc = 0;
    for (job->layer = -1; job->layer < n_layers && !rc; job->layer++) {
        if ((rc = team_run(m->team, load_on_rank, job, err)))
            return rc; /* a hung rank may come back to the job: it is left to it */
        rc = load_failure(job, err);
        if (!rc && o->progress &&
            o->progress(o->progress_user, (uint64_t)job->layer + 2, (uint64_t)n_layers + 1))
            rc = err_set(err, ERR_CANCELED, "loading was cancelled");
    }
    free(job);
    if (!rc && source->file)
        file_release_pages(source->file);
    team_counters_reset(m->team); /* the account is of steps, not of loading */
    return rc;
}

static int open_arenas(struct model *m, struct err *err)
{
    struct arena *arenas[MAX_RANKS];
    int rc;
    for (int rank = 0; rank < m->n_ranks; rank++) {
        struct shard *s = &m->shards[rank];
        size_t bytes = arena_bytes_for((size_t)shard_bytes(s));
        bool bound; /* a refusal shows in arena_residency() */
        if ((rc = arena_open(&s->arena, &m->topo, rank, bytes, &bound, err)))
            return rc;
        shard_place(s, &m->inventory, m->ops);
        arenas[rank] = &s->arena;
    }
    size_t elements = (size_t)m->shards[0].limits.rows * (size_t)m->config.dim;
    return reduce_open(&m->reduce, m->n_ranks, m->topo.n_threads, elements, arenas, err);
}

int model_open(struct model *m, const struct source *source, struct inventory *inventory, struct topo *topo,
               const struct model_options *options, struct err *err)
{
    *m = (struct model){.config = source->config,
                        .inventory = *inventory,
                        .topo = *topo,
                        .n_ranks = topo->n_ranks,
                        .ops = &ops_cpu};
    memset(inventory, 0, sizeof *inventory);
    memset(topo, 0, sizeof *topo);
    struct model_options o = *options;
    o.limits.n_threads = m->topo.n_threads;
    int rc;
    if ((rc = kernels_select(&m->kernels, o.isa, err)))
        goto fail;
    m->rope_frequency = calloc((size_t)m->config.head_dim / 2, sizeof(float));
    if (!m->rope_frequency) {
        rc = err_set(err, ERR_SYSTEM, "out of memory");
        goto fail;
    }
    config_rope_frequencies(&m->config, source->rope_factors, m->rope_frequency);
    for (int rank = 0; rank < m->n_ranks; rank++)
        if ((rc = shard_plan(&m->shards[rank], &m->config, &m->inventory, &o.limits, m->ops, rank, m->n_ranks,
                             err)))
            goto fail;
    if ((rc = check_memory(m, &o, err)) || (rc = open_arenas(m, err)) ||
        (rc = team_open(&m->team, &m->topo, o.stall_seconds, err)) || (rc = load(m, source, &o, err)))
        goto fail;
    return 0;
fail:
    model_close(m);
    return rc;
}

bool model_close(struct model *m)
{
    if (m->abandoned || !team_close(m->team)) {
        m->abandoned = true;
        return false;
    }
    if (m->reduce)
        reduce_close(m->reduce);
    for (int rank = 0; rank < m->n_ranks; rank++)
        shard_free(&m->shards[rank]);
    inventory_free(&m->inventory);
    free(m->rope_frequency);
    topo_close(&m->topo);
    *m = (struct model){0};
    return true;
}

/* ---- step ---- */

static void step_on_rank(struct worker *w, void *arg)
{
    struct model *m = arg;
    struct shard *s = &m->shards[w->rank];
    struct lane lane = {
        .worker = w,
        .kernels = m->kernels,
        .reduce = m->reduce,
        .scratch = s->scratch + (size_t)w->thread * s->scratch_bytes,
    };
    forward(&lane, m, s, m->batch); /* a failure is reported by team_run */
    if (w->thread == 0)
        worker_count(w, 1, 0, 0);
}

int model_step(struct model *m, const struct batch *batch, struct err *err)
{
    assert(batch->n_rows > 0 && batch->n_rows <= m->shards[0].limits.rows);
    assert(batch->n_logits <= m->shards[0].limits.logit_rows);
    m->batch = batch;
    return team_run(m->team, step_on_rank, m, err);
}

static uint64_t panels_bytes(const struct packed *p)
{
    return (uint64_t)p->n_panels * p->panel_bytes;
}

uint64_t model_weight_bytes_per_token(const struct model *m)
{
    uint64_t sum = 0;
    for (int rank = 0; rank < m->n_ranks; rank++) {
        const struct shard *s = &m->shards[rank];
        sum += panels_bytes(&s->head);
        for (int i = 0; i < m->config.n_layers; i++) {
            const struct layer *l = &s->layers[i];
            sum += panels_bytes(&l->q) + panels_bytes(&l->k) + panels_bytes(&l->v) + panels_bytes(&l->o) +
                   panels_bytes(&l->gate) + panels_bytes(&l->up) + panels_bytes(&l->down);
        }
    }
    return sum;
}

/* open.c - opening and closing a model, and what can be asked of an open one. Not concurrently with anything
 * else on the same struct yoke. */
#include "engine/engine.h"
#include "hw/probe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#ifndef YOKE_VERSION
#error "the build defines YOKE_VERSION"
#endif

const char *yoke_version(void)
{
    return YOKE_VERSION;
}

int engine_error(struct yoke_error *out, const struct err *err)
{
    if (out) {
        out->code = err->code;
        snprintf(out->message, sizeof out->message, "%s", err->message);
    }
    return err->code;
}

/* ---- names to files ---- */

int yoke_find_demo(char *out, size_t size)
{
    char exe[4096];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0)
        return YOKE_ESYSTEM;
    exe[n] = 0;
    /* In the source tree the program lies one to three folders below the root; installed, beside share/. */
    for (int up = 0; up < 4; up++) {
        char *slash = strrchr(exe, '/');
        if (!slash)
            break;
        *slash = 0;
        static const char *const places[] = {"models/demo", "share/yoke/models/demo"};
        for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
            snprintf(out, size, "%s/%s", exe, places[i]);
            if (access(out, R_OK) == 0)
                return 0;
        }
    }
    return YOKE_EINPUT;
}

int model_path(const struct yoke_options *o, char *out, size_t size, struct err *err)
{
    if (!o->model || !*o->model)
        return err_set(err, ERR_USAGE, "no model given");
    if (strcmp(o->model, "demo")) {
        snprintf(out, size, "%s", o->model);
        return 0;
    }
    if (o->demo_path) {
        snprintf(out, size, "%s", o->demo_path);
        return 0;
    }
    if (yoke_find_demo(out, size))
        return err_set(err, ERR_INPUT,
                       "demo: the model that ships with Yoke (models/demo) is not beside the program");
    return 0;
}

/* ---- options ---- */

static int device_from_name(const char *name, struct err *err)
{
    if (!name || !strcmp(name, "auto") || !strcmp(name, "cpu"))
        return 0;
    if (!strcmp(name, "cuda"))
        return err_set(err, ERR_SYSTEM, "--device cuda: this version runs on cores only; use cpu or auto");
    return err_set(err, ERR_USAGE, "--device %s: unknown device; use cpu, cuda or auto", name);
}

static int kv_from_name(const char *name, bool all_f32, enum kv_type *out, struct err *err)
{
    *out = all_f32 ? KV_F32 : KV_F16;
    if (!name || !strcmp(name, "auto"))
        return 0;
    if (!strcmp(name, "f32"))
        *out = KV_F32;
    else if (!strcmp(name, "f16"))
        *out = KV_F16;
    else if (!strcmp(name, "q8"))
        *out = KV_Q8;
    else if (!strcmp(name, "q4"))
        return err_set(err, ERR_USAGE, "--kv q4: not available in this version; use f16, q8 or f32");
    else
        return err_set(err, ERR_USAGE, "--kv %s: unknown type; use f32, f16 or q8", name);
    return 0;
}

static const char *kv_name(enum kv_type kv)
{
    return kv == KV_F32 ? "f32" : kv == KV_F16 ? "f16" : "q8";
}

static int limits_from_options(struct yoke *y, const struct yoke_options *o, const struct config *c,
                               bool all_f32, struct err *err)
{
    int rc = kv_from_name(o->kv, all_f32, &y->limits.kv, err);
    if (rc)
        return rc;
    if (o->ctx < 0 || o->chunk < 0 || o->max_requests < 0 || o->max_requests > 1024 || o->chunk > 1 << 20)
        return err_set(
            err, ERR_USAGE,
            "--ctx %d, --chunk %d or %d requests at once: a negative number, or more than 1048576 rows "
            "or 1024 requests",
            o->ctx, o->chunk, o->max_requests);
    if (o->ctx > c->max_ctx)
        return err_set(err, ERR_USAGE, "--ctx %d: the model was made for at most %d positions", o->ctx,
                       c->max_ctx);
    y->limits.ctx = o->ctx ? o->ctx : c->max_ctx < 4096 ? c->max_ctx : 4096;
    y->max_requests = o->max_requests ? o->max_requests : 1;
    y->chunk = o->chunk ? o->chunk : 512;
    if (y->chunk > y->limits.ctx)
        y->chunk = y->limits.ctx;
    y->limits.rows = y->chunk + y->max_requests;
    /* Logits of many rows are wanted only for prompts (perplexity): as many as 32 MB hold. */
    int many = (int)(((int64_t)32 << 20) / ((int64_t)c->n_vocab * 4));
    many = many > y->chunk ? y->chunk : many;
    y->limits.logit_rows = 2 * y->max_requests + (many > 1 ? many : 1);
    if (y->limits.logit_rows > y->limits.rows)
        y->limits.rows = y->limits.logit_rows;
    y->limits.n_pages = y->max_requests * ((y->limits.ctx + KV_PAGE - 1) / KV_PAGE);
    return 0;
}

/* ---- open ---- */

static void fill_info(struct yoke *y)
{
    const struct model *m = &y->model;
    const struct config *c = &m->config;
    y->info = (struct yoke_info){
        .model = y->model_name,
        .architecture = c->family->name,
        .format = y->format,
        .tp = m->n_ranks,
        .threads = m->topo.n_threads,
        .ctx = y->limits.ctx,
        .device = m->ops->device,
        .isa = m->kernels->name,
        .kv = kv_name(y->limits.kv),
        .n_layers = c->n_layers,
        .dim = c->dim,
        .n_heads = c->n_heads,
        .n_kv_heads = c->n_kv_heads,
        .head_dim = c->head_dim,
        .ffn_dim = c->ffn_dim,
        .n_vocab = c->n_vocab,
        .n_parameters = m->inventory.n_parameters,
        .weight_bytes = model_weight_bytes_per_token(m),
        .file_weight_bytes = m->inventory.file_bytes,
        .has_tokenizer = y->tokenizer != NULL,
    };
    inventory_describe(&m->inventory, y->format, sizeof y->format);
    for (int rank = 0; rank < m->n_ranks; rank++)
        y->info.predicted_bytes[rank] = shard_bytes(&m->shards[rank]);
}

static int take_step_memory(struct yoke *y, struct err *err)
{
    size_t vocab = (size_t)y->model.config.n_vocab, rows = (size_t)y->limits.rows;
    y->logits = malloc((size_t)y->limits.logit_rows * vocab * sizeof *y->logits);
    y->candidates = malloc(vocab * sizeof *y->candidates);
    y->step_tokens = malloc(rows * sizeof *y->step_tokens);
    y->step_logit_rows = malloc((size_t)y->limits.logit_rows * sizeof *y->step_logit_rows);
    y->step_runs = malloc((size_t)y->max_requests * sizeof *y->step_runs);
    y->step_pages = malloc((size_t)y->limits.n_pages * sizeof *y->step_pages);
    y->step_parts = malloc((size_t)y->max_requests * sizeof *y->step_parts);
    y->free_pages = malloc((size_t)y->limits.n_pages * sizeof *y->free_pages);
    if (!y->logits || !y->candidates || !y->step_tokens || !y->step_logit_rows || !y->step_runs ||
        !y->step_pages || !y->step_parts || !y->free_pages)
        return err_set(err, ERR_SYSTEM, "out of memory");
    for (int i = 0; i < y->limits.n_pages; i++)
        y->free_pages[y->n_free_pages++] = y->limits.n_pages - 1 - i;
    return 0;
}

struct progress_adapter {
    yoke_progress *progress;
    void *user;
};

static int forward_progress(void *user, uint64_t done, uint64_t total)
{
    const struct progress_adapter *a = user;
    return a->progress(a->user, "loading", done, total);
}

static int open_model(struct yoke *y, const struct yoke_options *o, struct source *source, struct err *err)
{
    struct inventory inventory;
    enum isa isa;
    int rc;
    if ((rc = isa_from_name(o->isa ? o->isa : "auto", &isa, err)) ||
        (rc = device_from_name(o->device, err)) || (rc = inventory_make(&inventory, source, err)))
        return rc;
    struct topo topo;
    if ((rc = limits_from_options(y, o, &source->config, inventory.all_f32, err)) ||
        (rc = topo_open(&topo, NULL, o->tp, o->threads, err))) {
        inventory_free(&inventory);
        return rc;
    }
    struct progress_adapter adapter = {o->progress, o->progress_user};
    struct model_options options = {
        .limits = y->limits,
        .memory_per_rank = o->memory_per_rank,
        .isa = isa,
        .stall_seconds = o->stall_seconds > 0 ? o->stall_seconds : 10,
        .progress = o->progress ? forward_progress : NULL,
        .progress_user = &adapter,
    };
    if ((rc = model_open(&y->model, source, &inventory, &topo, &options, err))) {
        err_prefix(err, "%s", y->model_name);
        return rc;
    }
    return 0;
}

/* A tokenizer that can name tokens the model does not have would read beyond its tables. */
static int open_tokenizer(struct yoke *y, const struct source *source, struct err *err)
{
    if (!source->file)
        return 0;
    int rc = tokenizer_open(&y->tokenizer, source->file, err);
    if (rc || !y->tokenizer)
        return rc;
    if (tokenizer_n_tokens(y->tokenizer) > source->config.n_vocab)
        return err_set(err, ERR_INPUT, "%s: the tokenizer has %d tokens, the model only %d", y->model_name,
                       tokenizer_n_tokens(y->tokenizer), source->config.n_vocab);
    return 0;
}

int yoke_open(struct yoke **out, const struct yoke_options *o, struct yoke_error *error)
{
    struct err err = {0};
    char path[4096];
    uint64_t start = engine_now_ns();
    *out = NULL;
    struct yoke *y = calloc(1, sizeof *y);
    int rc = y ? 0 : err_set(&err, ERR_SYSTEM, "out of memory");
    if (rc)
        return engine_error(error, &err);
    pthread_mutex_init(&y->lock, NULL);
    pthread_condattr_t monotonic; /* for the timed wait in engine.c */
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&y->work, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if ((rc = model_path(o, path, sizeof path, &err)))
        goto out;
    snprintf(y->model_name, sizeof y->model_name, "%s", o->model);
    if ((rc = source_open(&y->source, path, &err)) || (rc = open_tokenizer(y, &y->source, &err)) ||
        (rc = open_model(y, o, &y->source, &err)) || (rc = take_step_memory(y, &err)))
        goto out;
    fill_info(y);
    if (o->inject_stall < 0 || o->inject_stall > y->model.n_ranks) {
        rc = err_set(&err, ERR_USAGE, "--inject-stall %d: the ranks are 1 to %d", o->inject_stall,
                     y->model.n_ranks);
        goto out;
    }
    y->stall_rank = o->inject_stall;
    if (pthread_create(&y->thread, NULL, engine_main, y)) {
        rc = err_set(&err, ERR_SYSTEM, "cannot start the engine thread");
        goto out;
    }
    y->thread_started = true;
    y->info.load_seconds = (double)(engine_now_ns() - start) * 1e-9;
out:
    if (!y->model.abandoned)
        source_close(&y->source);
    if (rc) {
        yoke_close(y);
        return engine_error(error, &err);
    }
    *out = y;
    return 0;
}

void yoke_close(struct yoke *y)
{
    if (!y)
        return;
    if (y->thread_started) {
        pthread_mutex_lock(&y->lock);
        y->closing = true;
        pthread_cond_signal(&y->work);
        pthread_mutex_unlock(&y->lock);
        pthread_join(y->thread, NULL);
    }
    if (y->model.n_ranks && !model_close(&y->model))
        return; /* a rank hangs, and may come back to any of this: left to the end of the process */
    tokenizer_close(y->tokenizer);
    free(y->logits);
    free(y->candidates);
    free(y->step_tokens);
    free(y->step_logit_rows);
    free(y->step_runs);
    free(y->step_pages);
    free(y->step_parts);
    free(y->free_pages);
    pthread_cond_destroy(&y->work);
    pthread_mutex_destroy(&y->lock);
    free(y);
}

/* ---- what can be asked ---- */

const struct yoke_info *yoke_get_info(const struct yoke *y)
{
    return &y->info;
}

static void fill_cpus(struct yoke_rank_stats *out, const struct rank_counters *c)
{
    for (int cpu = 0; cpu < 1024; cpu++) {
        if (!(c->cpus_seen[cpu / 64] >> (cpu % 64) & 1))
            continue;
        if (out->n_cpus < (int)(sizeof out->cpus / sizeof *out->cpus))
            out->cpus[out->n_cpus] = cpu;
        out->n_cpus++;
    }
}

int yoke_get_rank_stats(const struct yoke *y, struct yoke_rank_stats *out, int max_ranks)
{
    const struct model *m = &y->model;
    for (int rank = 0; rank < m->n_ranks && rank < max_ranks; rank++) {
        struct rank_counters c;
        team_counters(m->team, rank, &c);
        int node = m->topo.places[rank].node;
        out[rank] = (struct yoke_rank_stats){
            .rank = rank,
            .node = node,
            .steps = c.steps,
            .all_reduces = c.all_reduces,
            .weight_bytes_read = c.weight_bytes_read,
            .busy_ms = (double)c.busy_ns * 1e-6,
            .wait_ms = (double)c.wait_ns * 1e-6,
        };
        fill_cpus(&out[rank], &c);
        arena_residency(&m->shards[rank].arena, node, &out[rank].resident_bytes, &out[rank].local_bytes,
                        &out[rank].locality_known);
    }
    return m->n_ranks;
}

uint64_t yoke_peak_rss(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)usage.ru_maxrss * 1024;
}

double yoke_measure_bandwidth(struct yoke *y)
{
    return probe_read_bandwidth(y->model.team);
}

/* tools.c - the parts of yoke.h that need no running engine: tokenizers and the machine's topology. */
#include "engine/engine.h"

#include <stdlib.h>
#include <string.h>

/* ---- tokenizer ---- */

struct yoke_tokenizer {
    struct tokenizer *tokenizer;
};

static int encode(const struct tokenizer *t, const char *text, size_t size, bool bos, bool special,
                  int32_t **ids, size_t *n, struct yoke_error *error)
{
    struct err err = {0};
    struct ids out = {0};
    *ids = NULL;
    *n = 0;
    if (!t) {
        err_set(&err, ERR_INPUT, "this model comes without a tokenizer: give token ids");
        return engine_error(error, &err);
    }
    int flags = (bos ? TOKENIZE_BOS : 0) | (special ? TOKENIZE_SPECIAL : 0);
    if (tokenizer_encode(t, text, size, flags, &out, &err)) {
        ids_free(&out);
        return engine_error(error, &err);
    }
    *ids = out.data ? out.data : malloc(sizeof **ids);
    *n = out.n;
    return 0;
}

static int decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool special, char **text,
                  size_t *size, struct yoke_error *error)
{
    struct err err = {0};
    struct buf out = {0};
    *text = NULL;
    *size = 0;
    if (!t) {
        err_set(&err, ERR_INPUT, "this model comes without a tokenizer");
        return engine_error(error, &err);
    }
    tokenizer_decode(t, ids, n, special, &out);
    buf_append(&out, "", 0);
    if (out.failed) {
        buf_free(&out);
        err_set(&err, ERR_SYSTEM, "out of memory");
        return engine_error(error, &err);
    }
    *text = out.data;
    *size = out.size;
    return 0;
}

int yoke_tokenize(const struct yoke *y, const char *text, size_t size, bool bos, bool special, int32_t **ids,
                  size_t *n, struct yoke_error *error)
{
    return encode(y->tokenizer, text, size, bos, special, ids, n, error);
}

int yoke_detokenize(const struct yoke *y, const int32_t *ids, size_t n, bool special, char **text,
                    size_t *size, struct yoke_error *error)
{
    return decode(y->tokenizer, ids, n, special, text, size, error);
}

int yoke_tokenizer_open(struct yoke_tokenizer **out, const struct yoke_options *options,
                        struct yoke_error *error)
{
    struct err err = {0};
    struct file *f = NULL;
    char path[4096];
    *out = calloc(1, sizeof **out);
    int rc = *out ? model_path(options, path, sizeof path, &err) : err_set(&err, ERR_SYSTEM, "out of memory");
    if (!rc && !strncmp(path, "synth:", 6))
        rc = err_set(&err, ERR_INPUT, "%s: a synthetic model has no tokenizer", path);
    if (!rc)
        rc = file_open(&f, path, &err);
    if (!rc)
        rc = tokenizer_open(&(*out)->tokenizer, f, &err);
    if (!rc && !(*out)->tokenizer)
        rc = err_set(&err, ERR_INPUT, "%s: there is no tokenizer.json here", path);
    if (f)
        file_close(f);
    if (rc) {
        yoke_tokenizer_close(*out);
        *out = NULL;
        return engine_error(error, &err);
    }
    return 0;
}

void yoke_tokenizer_close(struct yoke_tokenizer *t)
{
    if (t)
        tokenizer_close(t->tokenizer);
    free(t);
}

int yoke_tokenizer_encode(const struct yoke_tokenizer *t, const char *text, size_t size, bool bos,
                          bool special, int32_t **ids, size_t *n, struct yoke_error *error)
{
    return encode(t->tokenizer, text, size, bos, special, ids, n, error);
}

int yoke_tokenizer_decode(const struct yoke_tokenizer *t, const int32_t *ids, size_t n, bool special,
                          char **text, size_t *size, struct yoke_error *error)
{
    return decode(t->tokenizer, ids, n, special, text, size, error);
}

/* ---- the machine ---- */

struct yoke_topo {
    struct topo topo;
};

int yoke_topo_open(struct yoke_topo **out, const char *synthetic, int tp, int threads,
                   struct yoke_error *error)
{
    struct err err = {0};
    *out = calloc(1, sizeof **out);
    int rc = *out ? topo_open(&(*out)->topo, synthetic, tp, threads, &err)
                  : err_set(&err, ERR_SYSTEM, "out of memory");
    if (rc) {
        free(*out);
        *out = NULL;
        return engine_error(error, &err);
    }
    return 0;
}

void yoke_topo_close(struct yoke_topo *t)
{
    if (t)
        topo_close(&t->topo);
    free(t);
}

int yoke_topo_counts(const struct yoke_topo *t, int *nodes, int *l3, int *cores, int *cpus,
                     int *threads_per_rank)
{
    *nodes = t->topo.n_nodes;
    *l3 = t->topo.n_l3;
    *cores = t->topo.n_cores;
    *cpus = t->topo.n_cpus;
    *threads_per_rank = t->topo.n_threads;
    return t->topo.n_ranks;
}

int yoke_topo_place(const struct yoke_topo *t, int rank, struct yoke_place *out)
{
    if (rank < 0 || rank >= t->topo.n_ranks)
        return YOKE_EUSAGE;
    const struct place *p = &t->topo.places[rank];
    *out = (struct yoke_place){
        .rank = rank,
        .kind = place_kind_name(p->kind),
        .node = p->node,
        .n_cpus = p->n_cpus,
        .cpus = p->cpus,
        .memory_bytes = p->memory_bytes,
        .available_bytes = t->topo.synthetic ? 0 : topo_available_bytes(&t->topo, rank),
    };
    return 0;
}

const char *yoke_isa_list(void)
{
    const struct kernels *best;
    if (kernels_select(&best, ISA_AUTO, NULL))
        return "ref";
    return !strcmp(best->name, "avx512") ? "avx512 avx2 ref"
           : !strcmp(best->name, "avx2") ? "avx2 ref"
                                         : "ref";
}

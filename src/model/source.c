/* source.c - see source.h. */
#include "model/source.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void config_weight_shape(const struct config *c, enum weight_role role, int64_t *rows, int64_t *cols)
{
    int64_t q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    *cols = c->dim;
    switch (role) {
    case W_EMBED:
    case W_HEAD:
        *rows = c->n_vocab;
        break;
    case W_Q:
        *rows = q;
        break;
    case W_K:
    case W_V:
        *rows = kv;
        break;
    case W_O:
        *rows = c->dim, *cols = q;
        break;
    case W_GATE:
    case W_UP:
        *rows = c->ffn_dim;
        break;
    case W_DOWN:
        *rows = c->dim, *cols = c->ffn_dim;
        break;
    default:
        *rows = 1;
        break; /* norms */
    }
}

void weight_name(const char *pattern, int layer, char *out, size_t size)
{
    const char *number = strstr(pattern, "%d");
    if (number)
        snprintf(out, size, "%.*s%d%s", (int)(number - pattern), pattern, layer, number + 2);
    else
        snprintf(out, size, "%s", pattern);
}

/* What this source's kind of file calls a weight. */
static void name_of(const struct source *s, enum weight_role role, int layer, char *out, size_t size)
{
    const struct weight_spec *spec = &s->config.family->weights[role];
    bool gguf = s->file && file_kind(s->file) == FILE_GGUF;
    weight_name(gguf ? spec->gguf_name : spec->hf_name, layer, out, size);
}

/* ---- MLX ---- */

/* Bits and group of one matrix: config.json's "quantization" may override them by module name. */
static int mlx_parameters(const struct source *s, const char *module, int *bits, int *group, struct err *err)
{
    *bits = s->config.quant_bits;
    *group = s->config.quant_group;
    const json_t *q = json_object_get(file_config(s->file), "quantization");
    if (!json_is_object(q))
        q = json_object_get(file_config(s->file), "quantization_config");
    const json_t *own = json_object_get(q, module);
    if (json_is_object(own)) {
        int64_t b, g;
        int rc;
        if ((rc = json_get_int(own, "bits", *bits, 2, 8, &b, err)) ||
            (rc = json_get_int(own, "group_size", *group, 16, 1024, &g, err))) {
            err_prefix(err, "config.json: quantization of %s", module);
            return rc;
        }
        *bits = (int)b;
        *group = (int)g;
    }
    return 0;
}

static int mlx_matrix(const struct source *s, const char *name, const struct tensor *weight,
                      struct matrix *out, struct err *err)
{
    char module[160], part[192];
    size_t n = strlen(name) - strlen(".weight");
    snprintf(module, sizeof module, "%.*s", (int)n, name);
    snprintf(part, sizeof part, "%s.scales", module);
    const struct tensor *scales = file_tensor(s->file, part);
    snprintf(part, sizeof part, "%s.biases", module);
    const struct tensor *biases = file_tensor(s->file, part);
    if (!scales || !biases)
        return err_set(err, ERR_INPUT, "%s is packed (u32) but %s.%s is missing", name, module,
                       scales ? "biases" : "scales");
    if (!s->config.quant_bits)
        return err_set(err, ERR_INPUT, "%s is packed (u32) but config.json has no \"quantization\"", name);
    int bits, group, rc;
    if ((rc = mlx_parameters(s, module, &bits, &group, err)))
        return rc;
    return matrix_from_mlx(out, weight, scales, biases, bits, group, err);
}

/* ---- look-ups ---- */

static int find(const struct source *s, enum weight_role role, int layer, const struct tensor **out,
                char *name, size_t name_size, struct err *err)
{
    name_of(s, role, layer, name, name_size);
    *out = file_tensor(s->file, name);
    if (!*out)
        return err_set(err, ERR_INPUT, "%s: tensor %s is missing", file_path(s->file), name);
    return 0;
}

int source_matrix(const struct source *s, enum weight_role role, int layer, struct matrix *out,
                  struct err *err)
{
    if (role == W_HEAD && s->config.tied_embeddings)
        role = W_EMBED;
    int64_t rows, cols;
    char name[128];
    config_weight_shape(&s->config, role, &rows, &cols);
    if (!s->file) {
        name_of(s, role, layer, name, sizeof name);
        uint64_t seed = (uint64_t)(layer + 1) * N_WEIGHT_ROLES + (uint64_t)role;
        matrix_synthetic(out, name, rows, cols, s->synth_format, s->synth_bits, s->synth_group, seed);
        return 0;
    }
    const struct tensor *t;
    int rc = find(s, role, layer, &t, name, sizeof name, err);
    if (rc)
        return rc;
    rc = t->dtype == DTYPE_U32 ? mlx_matrix(s, name, t, out, err) : matrix_from_tensor(out, t, err);
    if (rc) {
        err_prefix(err, "%s", file_path(s->file));
        return rc;
    }
    if (out->rows != rows || out->cols != cols)
        return err_set(err, ERR_INPUT, "%s: %s is %lld x %lld, the configuration says %lld x %lld",
                       file_path(s->file), name, (long long)out->rows, (long long)out->cols, (long long)rows,
                       (long long)cols);
    return 0;
}

static int read_float_vector(const struct source *s, const struct tensor *t, int64_t n, float *out,
                             struct err *err)
{
    if (t->n_dims != 1 || t->shape[0] != n)
        return err_set(err, ERR_INPUT, "%s: %s must have %lld elements", file_path(s->file), t->name,
                       (long long)n);
    struct tensor row = *t;
    row.n_dims = 2;
    row.shape[0] = 1;
    row.shape[1] = n;
    struct matrix m;
    int rc = matrix_from_tensor(&m, &row, err);
    if (rc) {
        err_prefix(err, "%s", file_path(s->file));
        return rc;
    }
    if (m.group)
        return err_set(err, ERR_INPUT, "%s: %s must be of a float type", file_path(s->file), t->name);
    matrix_row_f32(&m, 0, out);
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(out[i]))
            return err_set(err, ERR_INPUT, "%s: %s holds a value that is not finite", file_path(s->file),
                           t->name);
    return 0;
}

int source_vector(const struct source *s, enum weight_role role, int layer, float *out, struct err *err)
{
    if (!s->file) {
        for (int i = 0; i < s->config.dim; i++)
            out[i] = 1;
        return 0;
    }
    const struct tensor *t;
    char name[128];
    int rc = find(s, role, layer, &t, name, sizeof name, err);
    return rc ? rc : read_float_vector(s, t, s->config.dim, out, err);
}

/* ---- what the file holds beyond that ---- */

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && !strcmp(s + n - m, tail);
}

/* Matches `name` against a pattern with at most one %d (a layer below n_layers). */
static bool matches(const char *name, const char *pattern, int n_layers)
{
    const char *number = strstr(pattern, "%d");
    if (!number)
        return !strcmp(name, pattern);
    size_t prefix = (size_t)(number - pattern);
    if (strncmp(name, pattern, prefix))
        return false;
    char *end;
    unsigned long layer = strtoul(name + prefix, &end, 10);
    return end != name + prefix && layer < (unsigned long)n_layers && !strcmp(end, number + 2);
}

static bool is_known(const struct source *s, const char *name)
{
    bool gguf = file_kind(s->file) == FILE_GGUF;
    char weight[256];
    snprintf(weight, sizeof weight, "%s", name);
    if (!gguf && (ends_with(name, ".scales") || ends_with(name, ".biases")) && strlen(name) < sizeof weight)
        snprintf(weight + strlen(name) - 7, sizeof weight - strlen(name) + 7, ".weight");
    for (int role = 0; role < N_WEIGHT_ROLES; role++) {
        const struct weight_spec *spec = &s->config.family->weights[role];
        if (matches(weight, gguf ? spec->gguf_name : spec->hf_name, s->config.n_layers))
            return true;
    }
    /* Tables of rotary frequencies: the factors are read, old checkpoints' inv_freq follows from the theta.
     */
    return !strcmp(name, "rope_freqs.weight") || ends_with(name, "rotary_emb.inv_freq");
}

static int check_no_unknown(const struct source *s, struct err *err)
{
    for (size_t i = 0; i < file_n_tensors(s->file); i++) {
        const struct tensor *t = file_tensor_at(s->file, i);
        if (!is_known(s, t->name))
            return err_set(err, ERR_INPUT, "%s: tensor %s is not part of a %s model as Yoke knows it",
                           file_path(s->file), t->name, s->config.family->name);
    }
    return 0;
}

static int read_rope_factors(struct source *s, struct err *err)
{
    const struct tensor *t =
        file_kind(s->file) == FILE_GGUF ? file_tensor(s->file, "rope_freqs.weight") : NULL;
    if (!t)
        return 0;
    int n = s->config.head_dim / 2;
    s->rope_factors = calloc((size_t)n, sizeof(float));
    if (!s->rope_factors)
        return err_set(err, ERR_SYSTEM, "out of memory");
    int rc = read_float_vector(s, t, n, s->rope_factors, err);
    for (int i = 0; !rc && i < n; i++)
        if (s->rope_factors[i] < 1e-3f) /* angles stay within what the range reduction can take */
            rc = err_set(err, ERR_INPUT, "%s: rope_freqs.weight holds %g, which is below 0.001",
                         file_path(s->file), (double)s->rope_factors[i]);
    return rc;
}

/* An old Llama checkpoint may say "tied" and still ship a head, or say nothing and ship none. */
static void settle_tied_embeddings(struct source *s)
{
    if (file_kind(s->file) == FILE_SAFETENSORS && !s->config.tied_embeddings) {
        char name[128];
        name_of(s, W_HEAD, 0, name, sizeof name);
        s->config.tied_embeddings = !file_tensor(s->file, name);
    }
}

int source_from_file(struct source *out, struct file *f, struct err *err)
{
    *out = (struct source){.file = f};
    int rc;
    if ((rc = config_read(&out->config, f, err)))
        goto fail;
    settle_tied_embeddings(out);
    if ((rc = check_no_unknown(out, err)) || (rc = read_rope_factors(out, err)))
        goto fail;
    return 0;
fail:
    source_close(out);
    return rc;
}

int source_open(struct source *out, const char *path, struct err *err)
{
    *out = (struct source){0};
    if (!strncmp(path, "synth:", 6))
        return config_synthetic(&out->config, path + 6, &out->synth_format, &out->synth_bits,
                                &out->synth_group, err);
    struct file *f;
    int rc = file_open(&f, path, err);
    return rc ? rc : source_from_file(out, f, err);
}

void source_close(struct source *s)
{
    if (s->file)
        file_close(s->file);
    free(s->rope_factors);
    s->file = NULL;
    s->rope_factors = NULL;
}

/* quantize.c - writes an MLX-affine checkpoint of a float one: w = scale * q + bias per group along the
 * inputs. The rule (formats: MLX's quantize): in fp32, s = max((max - min) / (2^bits - 1), 1e-7), negated
 * unless |min| > |max|; edge = the end of larger magnitude; q0 = rint(edge / s); q0 != 0: s = edge / q0, bias
 * = edge, else bias = 0; q = clip(rint((w - bias) / s)); scale and bias are rounded to the checkpoint's type
 * only afterwards. */
#include "base/half.h"
#include "engine/engine.h"
#include "file/safetensors_write.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct plan_entry {
    enum weight_role role;
    int layer;
    bool quantised;
    enum dtype dtype; /* of the scales and biases, or of the whole tensor */
    struct matrix matrix;
    char name[3][192];
};

struct job {
    const struct yoke_quantize_options *options;
    struct source source;
    struct plan_entry *entries;
    size_t n_entries, n_specs;
    struct tensor_spec *specs;
    uint64_t rows_done, rows_total;
};

/* ---- one group ---- */

static void quantize_group(const float *w, int group, int bits, uint8_t *q, float *scale, float *bias)
{
    float max = w[0], min = w[0], bins = (float)((1 << bits) - 1);
    for (int i = 1; i < group; i++) {
        max = w[i] > max ? w[i] : max;
        min = w[i] < min ? w[i] : min;
    }
    bool low = fabsf(min) > fabsf(max);
    float s = (max - min) / bins, edge = low ? min : max;
    s = s > 1e-7f ? s : 1e-7f;
    s = low ? s : -s;
    float q0 = rintf(edge / s), b = 0;
    if (q0 != 0) {
        s = edge / q0;
        b = edge;
    }
    for (int i = 0; i < group; i++) {
        float code = rintf((w[i] - b) / s);
        q[i] = (uint8_t)(code < 0 ? 0 : code > bins ? bins : code);
    }
    *scale = s;
    *bias = b;
}

static void put_float(uint8_t *out, size_t i, enum dtype t, float x)
{
    if (t == DTYPE_F32) {
        memcpy(out + 4 * i, &x, 4);
        return;
    }
    uint16_t h = t == DTYPE_F16 ? f32_to_f16(x) : f32_to_bf16(x);
    memcpy(out + 2 * i, &h, 2);
}

static bool fits(enum dtype t, float x)
{
    return isfinite(t == DTYPE_F16    ? f16_to_f32(f32_to_f16(x))
                    : t == DTYPE_BF16 ? bf16_to_f32(f32_to_bf16(x))
                                      : x);
}

/* A row's codes as one little-endian bit stream. */
static void put_codes(uint8_t *out, const uint8_t *q, int64_t n, int bits)
{
    uint32_t pending = 0;
    int filled = 0;
    for (int64_t i = 0; i < n; i++) {
        pending |= (uint32_t)q[i] << filled;
        for (filled += bits; filled >= 8; filled -= 8, pending >>= 8)
            *out++ = (uint8_t)pending;
    }
}

/* ---- plan ---- */

static enum dtype dtype_of(const struct matrix *m)
{
    return m->format == WEIGHT_F32 ? DTYPE_F32 : m->format == WEIGHT_F16 ? DTYPE_F16 : DTYPE_BF16;
}

static void add_spec(struct job *job, struct plan_entry *e, int part, const char *module, const char *suffix,
                     enum dtype dtype, int n_dims, int64_t rows, int64_t cols)
{
    snprintf(e->name[part], sizeof e->name[part], "%s%s", module, suffix);
    job->specs[job->n_specs++] =
        (struct tensor_spec){.name = e->name[part], .dtype = dtype, .n_dims = n_dims, .shape = {rows, cols}};
}

static int plan_weight(struct job *job, enum weight_role role, int layer, struct err *err)
{
    const struct config *c = &job->source.config;
    const struct weight_spec *spec = &c->family->weights[role];
    struct plan_entry *e = &job->entries[job->n_entries++];
    int bits = job->options->bits, group = job->options->group;
    *e = (struct plan_entry){.role = role, .layer = layer, .dtype = DTYPE_F32};
    char name[160];
    weight_name(spec->hf_name, layer, name, sizeof name);
    if (spec->vector) {
        const struct tensor *t = file_tensor(job->source.file, name);
        if (!t)
            return err_set(err, ERR_INPUT, "%s: tensor %s is missing", file_path(job->source.file), name);
        e->dtype = t->dtype == DTYPE_F16 || t->dtype == DTYPE_BF16 ? t->dtype : DTYPE_F32;
        add_spec(job, e, 0, name, "", e->dtype, 1, c->dim, 0);
        return 0;
    }
    int rc = source_matrix(&job->source, role, layer, &e->matrix, err);
    if (rc)
        return rc;
    const struct matrix *m = &e->matrix;
    if (m->group)
        return err_set(err, ERR_INPUT, "%s: %s is quantised already: quantize starts from float weights",
                       job->options->model, m->name);
    e->dtype = dtype_of(m);
    e->quantised = m->cols % group == 0; /* others stay as they are, as MLX does it */
    job->rows_total += (uint64_t)m->rows;
    if (!e->quantised) {
        add_spec(job, e, 0, name, "", e->dtype, 2, m->rows, m->cols);
        return 0;
    }
    name[strlen(name) - strlen(".weight")] = 0;
    add_spec(job, e, 0, name, ".weight", DTYPE_U32, 2, m->rows, m->cols * bits / 32);
    add_spec(job, e, 1, name, ".scales", e->dtype, 2, m->rows, m->cols / group);
    add_spec(job, e, 2, name, ".biases", e->dtype, 2, m->rows, m->cols / group);
    return 0;
}

static int make_plan(struct job *job, struct err *err)
{
    const struct config *c = &job->source.config;
    size_t most = (size_t)(c->n_layers + 1) * N_WEIGHT_ROLES;
    job->entries = calloc(most, sizeof *job->entries);
    job->specs = calloc(3 * most, sizeof *job->specs);
    if (!job->entries || !job->specs)
        return err_set(err, ERR_SYSTEM, "out of memory");
    for (int layer = -1; layer < c->n_layers; layer++) {
        for (int role = 0; role < N_WEIGHT_ROLES; role++) {
            if (c->family->weights[role].per_layer != (layer >= 0) || (role == W_HEAD && c->tied_embeddings))
                continue;
            int rc = plan_weight(job, role, layer, err);
            if (rc)
                return rc;
        }
    }
    return 0;
}

/* ---- writing ---- */

static int report(struct job *job, uint64_t rows, struct err *err)
{
    const struct yoke_quantize_options *o = job->options;
    job->rows_done += rows;
    if (o->progress && o->progress(o->progress_user, "quantizing", job->rows_done, job->rows_total))
        return err_set(err, ERR_CANCELED, "quantizing was cancelled");
    return 0;
}

static int check_finite(const struct matrix *m, const float *row, struct err *err)
{
    for (int64_t i = 0; i < m->cols; i++)
        if (!isfinite(row[i]))
            return err_set(err, ERR_INPUT, "%s holds a value that is not finite", m->name);
    return 0;
}

/* The three tensors follow one another in the file, so scales and biases are kept until the codes are
 * written. */
static int write_quantised(struct job *job, struct safetensors_writer *w, const struct plan_entry *e,
                           struct err *err)
{
    const struct matrix *m = &e->matrix;
    int bits = job->options->bits, group = job->options->group, rc = 0;
    size_t groups = (size_t)(m->cols / group), size = e->dtype == DTYPE_F32 ? 4 : 2;
    size_t code_bytes = (size_t)m->cols * (size_t)bits / 8;
    float *row = malloc((size_t)m->cols * sizeof *row);
    uint8_t *q = malloc((size_t)m->cols), *codes = malloc(code_bytes);
    uint8_t *scales = malloc((size_t)m->rows * groups * size),
            *biases = malloc((size_t)m->rows * groups * size);
    if (!row || !q || !codes || !scales || !biases)
        rc = err_set(err, ERR_SYSTEM, "out of memory");
    for (int64_t r = 0; r < m->rows && !rc; r++) {
        matrix_row_f32(m, r, row);
        if ((rc = check_finite(m, row, err)))
            break;
        for (size_t g = 0; g < groups; g++) {
            float scale, bias;
            quantize_group(row + g * (size_t)group, group, bits, q + g * (size_t)group, &scale, &bias);
            if (!fits(e->dtype, scale) || !fits(e->dtype, bias)) {
                rc = err_set(err, ERR_INPUT, "%s: row %lld has values too large for scales in %s", m->name,
                             (long long)r, dtype_table[e->dtype].name);
                break;
            }
            put_float(scales, (size_t)r * groups + g, e->dtype, scale);
            put_float(biases, (size_t)r * groups + g, e->dtype, bias);
        }
        if (rc)
            break;
        put_codes(codes, q, m->cols, bits);
        rc = safetensors_write(w, codes, code_bytes, err);
        if (!rc && (r % 1024 == 1023 || r + 1 == m->rows))
            rc = report(job, (uint64_t)(r % 1024 + 1), err);
    }
    if (!rc)
        rc = safetensors_write(w, scales, (size_t)m->rows * groups * size, err);
    if (!rc)
        rc = safetensors_write(w, biases, (size_t)m->rows * groups * size, err);
    free(row);
    free(q);
    free(codes);
    free(scales);
    free(biases);
    return rc;
}

static int write_float(struct job *job, struct safetensors_writer *w, const struct plan_entry *e,
                       struct err *err)
{
    int64_t cols = job->source.config.dim, rows = 1;
    if (e->matrix.rows) {
        rows = e->matrix.rows;
        cols = e->matrix.cols;
    }
    float *row = malloc((size_t)cols * sizeof *row);
    uint8_t *bytes = malloc((size_t)cols * 4);
    int rc = row && bytes ? 0 : err_set(err, ERR_SYSTEM, "out of memory");
    for (int64_t r = 0; r < rows && !rc; r++) {
        if (e->matrix.rows)
            matrix_row_f32(&e->matrix, r, row);
        else if ((rc = source_vector(&job->source, e->role, e->layer < 0 ? 0 : e->layer, row, err)))
            break;
        for (int64_t i = 0; i < cols; i++)
            put_float(bytes, (size_t)i, e->dtype, row[i]); /* exact: it was of this type */
        rc = safetensors_write(w, bytes, (size_t)cols * (e->dtype == DTYPE_F32 ? 4 : 2), err);
    }
    if (!rc && e->matrix.rows)
        rc = report(job, (uint64_t)rows, err);
    free(row);
    free(bytes);
    return rc;
}

static int write_config(struct job *job, struct err *err)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/config.json", job->options->output);
    json_t *config = json_deep_copy(file_config(job->source.file));
    json_t *q = json_pack("{s:i, s:i, s:s}", "group_size", job->options->group, "bits", job->options->bits,
                          "mode", "affine");
    /* both setters refuse NULL, and the second takes the reference to q */
    bool complete = !json_object_set(config, "quantization", q);
    complete = !json_object_set_new(config, "quantization_config", q) && complete;
    char *text = complete ? json_dumps(config, JSON_INDENT(2)) : NULL;
    json_decref(config);
    if (!text)
        return err_set(err, ERR_SYSTEM, "out of memory");
    int rc = file_write_atomically(path, text, strlen(text), err);
    free(text);
    return rc;
}

static int copy_sibling(struct job *job, const char *name, struct err *err)
{
    char *from = file_sibling(job->source.file, name);
    if (!from)
        return 0;
    char to[4096];
    snprintf(to, sizeof to, "%s/%s", job->options->output, name);
    struct buf bytes = {0};
    FILE *f = fopen(from, "rb");
    int rc = f ? 0 : err_set(err, ERR_SYSTEM, "%s: cannot open: %s", from, strerror(errno));
    if (f) {
        char piece[65536];
        size_t n;
        while ((n = fread(piece, 1, sizeof piece, f)) > 0)
            buf_append(&bytes, piece, n);
        if (ferror(f) || bytes.failed)
            rc = err_set(err, ERR_SYSTEM, "%s: cannot read: %s", from,
                         bytes.failed ? "out of memory" : strerror(errno));
        fclose(f);
    }
    if (!rc)
        rc = file_write_atomically(to, bytes.data ? bytes.data : "", bytes.size, err);
    buf_free(&bytes);
    free(from);
    return rc;
}

/* The small files are replaced once the weights are completely written, and the weights last: a full disk leaves an
 * older model in this directory as it was. */
static int write_small_files(struct job *job, struct err *err)
{
    static const char *const siblings[] = {"tokenizer.json", "tokenizer_config.json",
                                           "generation_config.json", "chat_template.jinja",
                                           "special_tokens_map.json"};
    int rc = 0;
    for (size_t i = 0; i < sizeof siblings / sizeof *siblings && !rc; i++)
        rc = copy_sibling(job, siblings[i], err);
    return rc ? rc : write_config(job, err);
}

static int write_model(struct job *job, struct err *err)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/model.safetensors", job->options->output);
    json_t *metadata = json_pack("{s:s}", "format", "mlx");
    struct safetensors_writer *w;
    int rc = safetensors_create(&w, path, job->specs, job->n_specs, metadata, err);
    json_decref(metadata);
    if (rc)
        return rc;
    for (size_t i = 0; i < job->n_entries && !rc; i++)
        rc = job->entries[i].quantised ? write_quantised(job, w, &job->entries[i], err)
                                       : write_float(job, w, &job->entries[i], err);
    if (!rc)
        rc = write_small_files(job, err);
    struct err ignored;
    int finished = safetensors_finish(w, rc == 0, rc ? &ignored : err);
    return rc ? rc : finished;
}

static bool same_directory(const char *a, const char *b)
{
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static int check_options(const struct yoke_quantize_options *o, struct err *err)
{
    if (o->bits < 3 || o->bits > 8 || o->bits == 7)
        return err_set(err, ERR_USAGE, "--bits %d: use 3, 4, 5, 6 or 8", o->bits);
    if (o->group != 32 && o->group != 64 && o->group != 128)
        return err_set(err, ERR_USAGE, "--group %d: use 32, 64 or 128", o->group);
    if (!o->output || !*o->output)
        return err_set(err, ERR_USAGE, "no output directory given (-o DIR)");
    if (same_directory(o->model, o->output))
        return err_set(err, ERR_USAGE, "%s: the output directory is the model itself", o->output);
    return 0;
}

static int run(struct job *job, struct err *err)
{
    const struct yoke_quantize_options *o = job->options;
    int rc = check_options(o, err);
    if (rc)
        return rc;
    struct yoke_options model = {.model = o->model};
    char path[4096];
    if ((rc = model_path(&model, path, sizeof path, err)) || (rc = source_open(&job->source, path, err)))
        return rc;
    if (!job->source.file || file_kind(job->source.file) != FILE_SAFETENSORS)
        return err_set(err, ERR_INPUT,
                       "%s: quantize reads checkpoint directories (config.json + safetensors) only",
                       o->model);
    if ((rc = make_plan(job, err)))
        return rc;
    if (mkdir(o->output, 0777) && errno != EEXIST)
        return err_set(err, ERR_SYSTEM, "%s: cannot create the directory: %s", o->output, strerror(errno));
    return write_model(job, err);
}

int yoke_quantize(const struct yoke_quantize_options *options, struct yoke_error *error)
{
    struct err err = {0};
    struct job job = {.options = options};
    int rc = run(&job, &err);
    source_close(&job.source);
    free(job.entries);
    free(job.specs);
    return rc ? engine_error(error, &err) : 0;
}

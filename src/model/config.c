/* config.c - see config.h. Sources of the keys: transformers' LlamaConfig, mlx-lm's "quantization", the GGUF
 * specification. */
#include "model/config.h"

#include "base/detmath.h"
#include "model/arch.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LAYERS = 1024, MAX_DIM = 1 << 18, MAX_FFN = 1 << 20, MAX_VOCAB = 1 << 22, MAX_HEADS = 4096 };
static const int64_t MAX_CTX = 1 << 27;

/* Relations between the counts, whatever they came from. `name` is the file. */
static int config_check(const struct config *c, const char *name, struct err *err)
{
    if (c->n_heads % c->n_kv_heads)
        return err_set(err, ERR_INPUT, "%s: %d attention heads are no multiple of %d KV heads", name,
                       c->n_heads, c->n_kv_heads);
    if (c->head_dim % 2)
        return err_set(err, ERR_INPUT, "%s: head size %d is odd: rotary embedding needs pairs", name,
                       c->head_dim);
    if (!(c->norm_eps >= 0 && c->norm_eps < 1))
        return err_set(err, ERR_INPUT, "%s: RMS norm epsilon %g is not in [0, 1)", name, (double)c->norm_eps);
    if (!(c->rope_theta >= 1 && c->rope_theta <= 1e12))
        return err_set(err, ERR_INPUT, "%s: rope theta %g is not in [1, 1e12]", name, c->rope_theta);
    if (c->rope_scaling != ROPE_PLAIN && !(c->rope_factor >= 1e-3 && c->rope_factor <= 1e6))
        return err_set(err, ERR_INPUT, "%s: rope scaling factor %g is not in [0.001, 1e6]", name,
                       c->rope_factor);
    if (c->rope_scaling == ROPE_LLAMA3 &&
        !(c->rope_low_freq_factor > 0 && c->rope_high_freq_factor > c->rope_low_freq_factor &&
          c->rope_original_ctx >= 1))
        return err_set(err, ERR_INPUT,
                       "%s: rope scaling llama3 needs 0 < low_freq_factor < high_freq_factor and "
                       "original_max_position_embeddings >= 1",
                       name);
    return 0;
}

/* ---- config.json ---- */

/* Heads of which only a part is rotated. `object`: the configuration, or its rope parameters. */
static int refuse_partial_rotary(const json_t *object, struct err *err)
{
    double part;
    int rc = json_get_double(object, "partial_rotary_factor", 1, &part, err);
    if (!rc && part != 1)
        rc = err_set(err, ERR_INPUT, "\"partial_rotary_factor\": %g is not supported (1 is)", part);
    return rc;
}

static int read_rope_json(struct config *c, const json_t *root, struct err *err)
{
    int rc;
    /* transformers 5 writes one object "rope_parameters" with the theta inside; before that "rope_theta"
     * stood alone, with an optional "rope_scaling". */
    const json_t *rope = json_object_get(root, "rope_parameters");
    if (!rope || json_is_null(rope))
        rope = json_object_get(root, "rope_scaling");
    if (rope && !json_is_null(rope) && !json_is_object(rope))
        return err_set(err, ERR_INPUT, "the rope parameters must be an object");
    if ((rc = json_get_double(root, "rope_theta", 10000, &c->rope_theta, err)))
        return rc;
    c->rope_scaling = ROPE_PLAIN;
    if (!json_is_object(rope))
        return 0;
    if ((rc = json_get_double(rope, "rope_theta", c->rope_theta, &c->rope_theta, err)) ||
        (rc = refuse_partial_rotary(rope, err)))
        return rc;
    const char *type, *old_type;
    if ((rc = json_get_string(rope, "type", "default", &old_type, err)) ||
        (rc = json_get_string(rope, "rope_type", old_type, &type, err)))
        return rc;
    if (!strcmp(type, "default"))
        return 0;
    if (!strcmp(type, "linear"))
        c->rope_scaling = ROPE_LINEAR;
    else if (!strcmp(type, "llama3"))
        c->rope_scaling = ROPE_LLAMA3;
    else
        return err_set(err, ERR_INPUT,
                       "rope scaling type \"%s\" is not supported (default, linear, llama3 are)", type);
    if ((rc = json_get_double(rope, "factor", 1, &c->rope_factor, err)) ||
        (rc = json_get_double(rope, "low_freq_factor", 1, &c->rope_low_freq_factor, err)) ||
        (rc = json_get_double(rope, "high_freq_factor", 4, &c->rope_high_freq_factor, err)))
        return rc;
    return json_get_double(rope, "original_max_position_embeddings", c->max_ctx, &c->rope_original_ctx, err);
}

static int read_int(const json_t *root, const char *key, int64_t fallback, int64_t max, int *out,
                    struct err *err)
{
    int64_t v;
    const json_t *value = json_object_get(root, key);
    if (fallback < 0 && (!value || json_is_null(value)))
        return err_set(err, ERR_INPUT, "\"%s\" is missing", key);
    int rc = json_get_int(root, key, fallback, 1, max, &v, err);
    *out = (int)v;
    return rc;
}

/* Switches that would change the arithmetic and are not supported: refused by name, never ignored. */
static int refuse_unsupported(const json_t *root, struct err *err)
{
    static const char *const must_be_false[] = {"attention_bias", "mlp_bias"};
    for (size_t i = 0; i < sizeof must_be_false / sizeof *must_be_false; i++) {
        int on;
        int rc = json_get_bool(root, must_be_false[i], 0, &on, err);
        if (rc)
            return rc;
        if (on)
            return err_set(err, ERR_INPUT, "\"%s\": true is not supported", must_be_false[i]);
    }
    const char *act;
    int rc = json_get_string(root, "hidden_act", "silu", &act, err);
    if (rc)
        return rc;
    if (strcmp(act, "silu"))
        return err_set(err, ERR_INPUT, "\"hidden_act\": \"%s\" is not supported (silu is)", act);
    return refuse_partial_rotary(root, err);
}

static int read_quantization_json(struct config *c, const json_t *root, struct err *err)
{
    const json_t *q = json_object_get(root, "quantization");
    if (!q || json_is_null(q)) {
        const json_t *hf = json_object_get(root, "quantization_config");
        if (!hf || json_is_null(hf))
            return 0;
        /* MLX writes the same object under both names; other tools' formats name a "quant_method". */
        const char *method;
        int rc = json_get_string(hf, "quant_method", "", &method, err);
        if (rc)
            return rc;
        if (*method)
            return err_set(err, ERR_INPUT, "quantisation method \"%s\" is not supported (MLX affine is)",
                           method);
        q = hf;
    }
    if (!json_is_object(q))
        return err_set(err, ERR_INPUT, "\"quantization\" must be an object");
    const char *mode;
    int rc;
    if ((rc = json_get_string(q, "mode", "affine", &mode, err)))
        return rc;
    if (strcmp(mode, "affine"))
        return err_set(err, ERR_INPUT, "quantization mode \"%s\" is not supported (affine is)", mode);
    if ((rc = read_int(q, "bits", 4, 8, &c->quant_bits, err)))
        return rc;
    return read_int(q, "group_size", 64, 128, &c->quant_group, err);
}

static int read_json_fields(struct config *c, const json_t *root, struct err *err)
{
    int rc;
    const char *model_type;
    if ((rc = json_get_string(root, "model_type", NULL, &model_type, err)))
        return rc;
    if (!model_type)
        return err_set(err, ERR_INPUT, "\"model_type\" is missing");
    c->family = family_by_model_type(model_type);
    if (!c->family)
        return err_set(err, ERR_INPUT, "architecture \"%s\" is not supported (llama is)", model_type);
    double eps;
    int tied;
    if ((rc = read_int(root, "num_hidden_layers", -1, MAX_LAYERS, &c->n_layers, err)) ||
        (rc = read_int(root, "hidden_size", -1, MAX_DIM, &c->dim, err)) ||
        (rc = read_int(root, "num_attention_heads", -1, MAX_HEADS, &c->n_heads, err)) ||
        (rc = read_int(root, "num_key_value_heads", c->n_heads, MAX_HEADS, &c->n_kv_heads, err)) ||
        (rc = read_int(root, "intermediate_size", -1, MAX_FFN, &c->ffn_dim, err)) ||
        (rc = read_int(root, "vocab_size", -1, MAX_VOCAB, &c->n_vocab, err)) ||
        (rc = read_int(root, "max_position_embeddings", 2048, MAX_CTX, &c->max_ctx, err)))
        return rc;
    int implied = c->dim / c->n_heads;
    if ((rc = read_int(root, "head_dim", implied > 0 ? implied : 1, 1024, &c->head_dim, err)) ||
        (rc = json_get_double(root, "rms_norm_eps", 1e-6, &eps, err)) ||
        (rc = json_get_bool(root, "tie_word_embeddings", 0, &tied, err)) ||
        (rc = refuse_unsupported(root, err)) || (rc = read_rope_json(c, root, err)))
        return rc;
    c->norm_eps = (float)eps;
    c->tied_embeddings = tied;
    return read_quantization_json(c, root, err);
}

/* ---- GGUF ---- */

/* The architecture's own key, "llama.block_count"; fallback < 0: it must be there. */
static int gguf_int(const struct file *f, const char *arch, const char *name, int64_t fallback, int64_t max,
                    int *out, struct err *err)
{
    char key[128];
    snprintf(key, sizeof key, "%s.%s", arch, name);
    if (fallback < 0 && !file_gguf_value(f, key))
        return err_set(err, ERR_INPUT, "%s: metadata key %s is missing", file_path(f), key);
    int64_t v;
    int rc = file_gguf_int(f, key, fallback, 1, max, &v, err);
    *out = (int)v;
    return rc;
}

static int gguf_double(const struct file *f, const char *arch, const char *name, double fallback, double *out,
                       struct err *err)
{
    char key[128];
    snprintf(key, sizeof key, "%s.%s", arch, name);
    return file_gguf_double(f, key, fallback, out, err);
}

static int gguf_vocab_size(const struct file *f, struct config *c, struct err *err)
{
    const struct tensor *embedding = file_tensor(f, c->family->weights[W_EMBED].gguf_name);
    if (!embedding || embedding->n_dims != 2 || embedding->shape[0] < 1 || embedding->shape[0] > MAX_VOCAB)
        return err_set(err, ERR_INPUT, "%s: %s is missing or not a matrix of at most %d rows", file_path(f),
                       c->family->weights[W_EMBED].gguf_name, MAX_VOCAB);
    c->n_vocab = (int)embedding->shape[0];
    return 0;
}

static int read_gguf(struct config *c, const struct file *f, struct err *err)
{
    int rc;
    const char *arch;
    if ((rc = file_gguf_string(f, "general.architecture", NULL, &arch, err)))
        return rc;
    if (!arch)
        return err_set(err, ERR_INPUT, "%s: metadata key general.architecture is missing", file_path(f));
    c->family = family_by_gguf_arch(arch);
    if (!c->family)
        return err_set(err, ERR_INPUT, "%s: architecture \"%s\" is not supported (llama is)", file_path(f),
                       arch);
    double eps;
    if ((rc = gguf_int(f, arch, "block_count", -1, MAX_LAYERS, &c->n_layers, err)) ||
        (rc = gguf_int(f, arch, "embedding_length", -1, MAX_DIM, &c->dim, err)) ||
        (rc = gguf_int(f, arch, "attention.head_count", -1, MAX_HEADS, &c->n_heads, err)) ||
        (rc = gguf_int(f, arch, "attention.head_count_kv", c->n_heads, MAX_HEADS, &c->n_kv_heads, err)) ||
        (rc = gguf_int(f, arch, "feed_forward_length", -1, MAX_FFN, &c->ffn_dim, err)) ||
        (rc = gguf_int(f, arch, "context_length", 2048, MAX_CTX, &c->max_ctx, err)) ||
        (rc = gguf_double(f, arch, "attention.layer_norm_rms_epsilon", 1e-5, &eps, err)) ||
        (rc = gguf_vocab_size(f, c, err)))
        return rc;
    int implied = c->dim / c->n_heads, rotated = 0;
    if ((rc =
             gguf_int(f, arch, "attention.key_length", implied > 0 ? implied : 1, 1024, &c->head_dim, err)) ||
        (rc = gguf_int(f, arch, "rope.dimension_count", c->head_dim, 1024, &rotated, err)) ||
        (rc = gguf_double(f, arch, "rope.freq_base", 10000, &c->rope_theta, err)))
        return rc;
    if (rotated != c->head_dim)
        return err_set(err, ERR_INPUT, "%s: rotary embedding of %d of %d head dimensions is not supported",
                       file_path(f), rotated, c->head_dim);
    c->norm_eps = (float)eps;
    c->tied_embeddings = !file_tensor(f, c->family->weights[W_HEAD].gguf_name);
    c->rope_rows_interleaved = true;

    char key[128];
    const char *scaling;
    snprintf(key, sizeof key, "%s.rope.scaling.type", arch);
    if ((rc = file_gguf_string(f, key, "none", &scaling, err)))
        return rc;
    if (!strcmp(scaling, "linear"))
        c->rope_scaling = ROPE_LINEAR;
    else if (strcmp(scaling, "none"))
        return err_set(err, ERR_INPUT, "%s: rope scaling type \"%s\" is not supported", file_path(f),
                       scaling);
    return gguf_double(f, arch, "rope.scaling.factor", 1, &c->rope_factor, err);
}

int config_read(struct config *out, const struct file *f, struct err *err)
{
    memset(out, 0, sizeof *out);
    int rc;
    if (file_kind(f) == FILE_GGUF) {
        if ((rc = read_gguf(out, f, err)))
            return rc;
        return config_check(out, file_path(f), err);
    }
    char name[512];
    snprintf(name, sizeof name, "%s/config.json", file_path(f));
    if ((rc = read_json_fields(out, file_config(f), err))) {
        err_prefix(err, "%s", name);
        return rc;
    }
    return config_check(out, name, err);
}

/* ---- synthetic models ---- */

/* Published hyperparameters of the models they are named after. */
static const struct {
    const char *name;
    int n_layers, dim, n_heads, n_kv_heads, head_dim, ffn_dim, n_vocab;
    bool tied;
    double theta;
} shapes[] = {
    {"tiny", 4, 512, 8, 4, 64, 1536, 4096, true, 10000},       /* for tests: 14M parameters */
    {"small", 12, 1024, 16, 8, 64, 4096, 32000, false, 10000}, /* for tests: 255M parameters */
    {"llama-3.2-1b", 16, 2048, 32, 8, 64, 8192, 128256, true, 500000},
    {"llama-3.2-3b", 28, 3072, 24, 8, 128, 8192, 128256, true, 500000},
    {"llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, false, 500000},
    {"llama-3.3-70b", 80, 8192, 64, 8, 128, 28672, 128256, false, 500000},
    {"mistral-large-123b", 88, 12288, 96, 8, 128, 28672, 32768, false, 1000000},
    {"llama-3.1-405b", 126, 16384, 128, 8, 128, 53248, 128256, false, 500000},
    {"qwen2.5-72b", 80, 8192, 64, 8, 128, 29568, 152064, false, 1000000},
    {"qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151936, false, 1000000},
};

static const struct {
    const char *name;
    enum weight_format format;
    int bits, group;
} quants[] = {
    {"q4_0", WEIGHT_Q4_0, 4, 32}, {"q4_k", WEIGHT_Q4_K, 4, 32}, {"q6_k", WEIGHT_Q6_K, 6, 16},
    {"q8_0", WEIGHT_Q8_0, 8, 32}, {"mlx4", WEIGHT_MLX, 4, 64},  {"mlx6", WEIGHT_MLX, 6, 64},
    {"mlx8", WEIGHT_MLX, 8, 64},  {"bf16", WEIGHT_BF16, 0, 0},  {"f16", WEIGHT_F16, 0, 0},
    {"f32", WEIGHT_F32, 0, 0},
};

int config_synthetic(struct config *out, const char *spec, enum weight_format *format, int *bits, int *group,
                     struct err *err)
{
    memset(out, 0, sizeof *out);
    const char *colon = strchr(spec, ':');
    size_t length = colon ? (size_t)(colon - spec) : strlen(spec);
    const char *quant = colon ? colon + 1 : "q4_0";
    size_t i = 0, n_shapes = sizeof shapes / sizeof *shapes, n_quants = sizeof quants / sizeof *quants;
    while (i < n_shapes && (strlen(shapes[i].name) != length || strncmp(shapes[i].name, spec, length)))
        i++;
    if (i == n_shapes)
        return err_set(
            err, ERR_USAGE,
            "synth:%s: unknown shape; known are llama-3.2-1b, llama-3.2-3b, llama-3.1-8b, llama-3.3-70b, "
            "mistral-large-123b, llama-3.1-405b, qwen2.5-72b, qwen3-8b, tiny, small",
            spec);
    size_t j = 0;
    while (j < n_quants && strcmp(quants[j].name, quant))
        j++;
    if (j == n_quants)
        return err_set(
            err, ERR_USAGE,
            "synth:%s: unknown quantisation \"%s\"; known are q4_0, q4_k, q6_k, q8_0, mlx4, mlx6, mlx8, "
            "bf16, f16, f32",
            spec, quant);
    out->family = family_by_model_type("llama");
    out->n_layers = shapes[i].n_layers;
    out->dim = shapes[i].dim;
    out->n_heads = shapes[i].n_heads;
    out->n_kv_heads = shapes[i].n_kv_heads;
    out->head_dim = shapes[i].head_dim;
    out->ffn_dim = shapes[i].ffn_dim;
    out->n_vocab = shapes[i].n_vocab;
    out->tied_embeddings = shapes[i].tied;
    out->max_ctx = 131072;
    out->norm_eps = 1e-5f;
    out->rope_theta = shapes[i].theta;
    *format = quants[j].format;
    *bits = quants[j].bits;
    *group = quants[j].group;
    return config_check(out, spec, err);
}

/* ---- rotary frequencies ---- */

void config_rope_frequencies(const struct config *c, const float *factors, float *out)
{
    const double two_pi = 6.283185307179586;
    for (int i = 0; i < c->head_dim / 2; i++) {
        double frequency = (double)(float)(1 / det_pow(c->rope_theta, 2.0 * i / c->head_dim));
        if (c->rope_scaling == ROPE_LINEAR) {
            frequency /= c->rope_factor;
        } else if (c->rope_scaling == ROPE_LLAMA3) {
            /* Llama 3.1: long wavelengths are stretched by the factor, short ones kept, between them a blend.
             */
            double wavelength = two_pi / frequency;
            double low = c->rope_original_ctx / c->rope_low_freq_factor;
            double high = c->rope_original_ctx / c->rope_high_freq_factor;
            if (wavelength > low) {
                frequency /= c->rope_factor;
            } else if (wavelength > high) {
                double smooth = (c->rope_original_ctx / wavelength - c->rope_low_freq_factor) /
                                (c->rope_high_freq_factor - c->rope_low_freq_factor);
                frequency = (1 - smooth) * frequency / c->rope_factor + smooth * frequency;
            }
        }
        out[i] = (float)(factors ? frequency / (double)factors[i] : frequency);
    }
}

/* config.h - a model's hyperparameters, from config.json (Hugging Face, MLX), GGUF metadata or a table of
 * well-known shapes. Plain data, filled once at open. */
#ifndef MODEL_CONFIG_H
#define MODEL_CONFIG_H

#include "base/err.h"
#include "file/file.h"
#include "file/matrix.h"

#include <stdbool.h>
#include <stdint.h>

enum rope_scaling { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3 };

struct family; /* arch.h */

struct config {
    const struct family *family;
    int n_layers, dim, n_heads, n_kv_heads, head_dim, ffn_dim, n_vocab;
    int max_ctx; /* positions the model was made for */
    float norm_eps;
    bool tied_embeddings; /* the output head is the embedding table */

    double rope_theta;
    enum rope_scaling rope_scaling;
    double rope_factor, rope_low_freq_factor, rope_high_freq_factor;
    double rope_original_ctx;
    bool rope_rows_interleaved; /* GGUF: rows of q and k are permuted for pairs (2i, 2i + 1) */

    int quant_bits,
        quant_group; /* MLX checkpoint: the default of its quantised matrices; 0 = not quantised */
};

/* Reads and checks; every count is bounded so that later products of sizes cannot overflow. */
MUST_CHECK int config_read(struct config *out, const struct file *f, struct err *err);

/* "SHAPE[:QUANT]" of a synth: model. Fills the format of its matrices, too. */
MUST_CHECK int config_synthetic(struct config *out, const char *spec, enum weight_format *format, int *bits,
                                int *group, struct err *err);

/* Rotary angles' frequencies: out (head_dim / 2), in fp32 as the reference implementations compute them.
 * factors: (head_dim / 2) divisors from a GGUF's rope_freqs.weight, or NULL. */
void config_rope_frequencies(const struct config *c, const float *factors, float *out);

#endif

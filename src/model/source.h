/* source.h - where a model's weights come from (a file, or a random generator), looked up by role. Read-only
 * after open: any thread. Released once the shards are loaded. */
#ifndef MODEL_SOURCE_H
#define MODEL_SOURCE_H

#include "file/matrix.h"
#include "model/arch.h"
#include "model/config.h"

struct source {
    struct config config;
    struct file *file; /* NULL: synthetic */
    enum weight_format synth_format;
    int synth_bits, synth_group;
    float *rope_factors; /* (head_dim / 2) divisors of the rotary frequencies, or NULL */
};

/* path: a model file or directory, or "synth:SHAPE[:QUANT]". Refuses a file that holds a tensor which Yoke
 * would have to ignore; that all needed ones are there is found out by looking them up (inventory_make). */
MUST_CHECK int source_open(struct source *out, const char *path, struct err *err);
/* The same from an open file, which it takes ownership of in every case. */
MUST_CHECK int source_from_file(struct source *out, struct file *f, struct err *err);
void source_close(struct source *s);

MUST_CHECK int source_matrix(const struct source *s, enum weight_role role, int layer, struct matrix *out,
                             struct err *err);
/* A norm's weights as fp32: out (dim). */
MUST_CHECK int source_vector(const struct source *s, enum weight_role role, int layer, float *out,
                             struct err *err);
/* A name pattern of struct weight_spec with its layer filled in. */
void weight_name(const char *pattern, int layer, char *out, size_t size);
/* Rows x columns of a weight by the configuration alone. */
void config_weight_shape(const struct config *c, enum weight_role role, int64_t *rows, int64_t *cols);

#endif

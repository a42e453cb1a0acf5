/* arch.h - the model families: one table row each, naming what a family calls its tensors and how each weight
 * is split over the ranks. Adding a family is adding a row (and what is truly new in forward.c). */
#ifndef MODEL_ARCH_H
#define MODEL_ARCH_H

#include <stdbool.h>

enum weight_role {
    W_EMBED,
    W_ATTN_NORM,
    W_Q,
    W_K,
    W_V,
    W_O,
    W_FFN_NORM,
    W_GATE,
    W_UP,
    W_DOWN,
    W_OUT_NORM,
    W_HEAD,
    N_WEIGHT_ROLES,
};

/* How a weight (rows = outputs, cols = inputs) is split. Declared here, never inferred. */
enum split_rule {
    SPLIT_NONE,      /* every rank holds all of it (vectors) */
    SPLIT_VOCAB,     /* rows, by vocabulary */
    SPLIT_Q_HEADS,   /* rows, by query head */
    SPLIT_KV_HEADS,  /* rows, by KV head; a head that several ranks' query heads need is replicated */
    SPLIT_FFN,       /* rows, by FFN channel */
    SPLIT_HEAD_COLS, /* columns, by query head: partial sums */
    SPLIT_FFN_COLS,  /* columns, by FFN channel: partial sums */
};

struct weight_spec {
    const char *hf_name; /* printf pattern with one %d for the layer (none for model-wide weights) */
    const char *gguf_name;
    bool per_layer, vector;
    enum split_rule split;
};

struct family {
    const char *name;                  /* as shown to users */
    const char *model_type;            /* config.json */
    const char *gguf_arch;             /* general.architecture, also the prefix of its keys */
    const struct weight_spec *weights; /* (N_WEIGHT_ROLES) */
};

extern const struct family families[];
extern const int n_families;

const struct family *family_by_model_type(const char *model_type);
const struct family *family_by_gguf_arch(const char *arch);

#endif

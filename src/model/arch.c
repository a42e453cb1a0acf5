/* arch.c - see arch.h. Names: Hugging Face transformers' checkpoints and llama.cpp's GGUF naming. */
#include "model/arch.h"

#include <stddef.h>
#include <string.h>

static const struct weight_spec llama_weights[N_WEIGHT_ROLES] = {
    [W_EMBED] = {"model.embed_tokens.weight", "token_embd.weight", false, false, SPLIT_VOCAB},
    [W_ATTN_NORM] = {"model.layers.%d.input_layernorm.weight", "blk.%d.attn_norm.weight", true, true,
                     SPLIT_NONE},
    [W_Q] = {"model.layers.%d.self_attn.q_proj.weight", "blk.%d.attn_q.weight", true, false, SPLIT_Q_HEADS},
    [W_K] = {"model.layers.%d.self_attn.k_proj.weight", "blk.%d.attn_k.weight", true, false, SPLIT_KV_HEADS},
    [W_V] = {"model.layers.%d.self_attn.v_proj.weight", "blk.%d.attn_v.weight", true, false, SPLIT_KV_HEADS},
    [W_O] = {"model.layers.%d.self_attn.o_proj.weight", "blk.%d.attn_output.weight", true, false,
             SPLIT_HEAD_COLS},
    [W_FFN_NORM] = {"model.layers.%d.post_attention_layernorm.weight", "blk.%d.ffn_norm.weight", true, true,
                    SPLIT_NONE},
    [W_GATE] = {"model.layers.%d.mlp.gate_proj.weight", "blk.%d.ffn_gate.weight", true, false, SPLIT_FFN},
    [W_UP] = {"model.layers.%d.mlp.up_proj.weight", "blk.%d.ffn_up.weight", true, false, SPLIT_FFN},
    [W_DOWN] = {"model.layers.%d.mlp.down_proj.weight", "blk.%d.ffn_down.weight", true, false,
                SPLIT_FFN_COLS},
    [W_OUT_NORM] = {"model.norm.weight", "output_norm.weight", false, true, SPLIT_NONE},
    [W_HEAD] = {"lm_head.weight", "output.weight", false, false, SPLIT_VOCAB},
};

const struct family families[] = {
    {"llama", "llama", "llama", llama_weights},
};
const int n_families = sizeof families / sizeof *families;

const struct family *family_by_model_type(const char *model_type)
{
    for (int i = 0; i < n_families; i++)
        if (!strcmp(families[i].model_type, model_type))
            return &families[i];
    return NULL;
}

const struct family *family_by_gguf_arch(const char *arch)
{
    for (int i = 0; i < n_families; i++)
        if (!strcmp(families[i].gguf_arch, arch))
            return &families[i];
    return NULL;
}

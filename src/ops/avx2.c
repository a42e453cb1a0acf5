/* avx2.c - the kernels for AVX2 with FMA and F16C; int8 dots go through vpmaddubsw where its 16-bit pairs
 * stay exact, 8-bit codes through vpmaddwd. Equal to ref.c bit for bit.
 * Any thread; no state. */
#include "ops/lanes_avx2.h"

#include "ops/lanes.h"
#include "ops/lanes_q.h"

const struct kernels kernels_avx2 = {
    .name = "avx2",
    .gemm_q = lanes_gemm_q,
    .gemm_f = lanes_gemm_f,
    .quantize = lanes_quantize,
    .rmsnorm = lanes_rmsnorm,
    .silu_mul = lanes_silu_mul,
    .rope = lanes_rope,
    .kv_store = lanes_kv_store,
    .attend = lanes_attend,
    .attend_finish = lanes_attend_finish,
    .add = lanes_add,
};

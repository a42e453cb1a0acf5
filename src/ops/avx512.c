/* avx512.c - the kernels for AVX-512 (F, BW, DQ, VL) with VNNI; int8 dots go through vpdpbusd. Equal to ref.c
 * bit for bit. Any thread; no state. */
#include "ops/lanes_avx512.h"

#include "ops/lanes.h"
#include "ops/lanes_q.h"

const struct kernels kernels_avx512 = {
    .name = "avx512",
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

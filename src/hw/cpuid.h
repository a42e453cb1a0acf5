/* cpuid.h - which instruction sets this CPU and this kernel offer. Cached after the first call; any thread.
 */
#ifndef HW_CPUID_H
#define HW_CPUID_H

#include <stdbool.h>

struct cpu_features {
    bool avx2_fma_f16c;
    bool avx_vnni;
    bool avx512; /* F, BW, DQ, VL, CD */
    bool avx512_vnni;
    bool avx512_bf16;
    bool amx_int8; /* the CPU has it and the kernel granted the tile state to this process */
    bool neon_dotprod, neon_i8mm;
};

const struct cpu_features *cpu_features(void);

#endif

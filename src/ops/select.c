/* select.c - which table of kernels a process uses. Called once, when an engine opens; any thread. */
#include "base/err.h"
#include "hw/cpuid.h"
#include "ops/block.h"
#include "ops/kernels.h"

#include <string.h>

static const char *const isa_names[] = {[ISA_AUTO] = "auto",     [ISA_REF] = "ref", [ISA_AVX2] = "avx2",
                                        [ISA_AVX512] = "avx512", [ISA_AMX] = "amx", [ISA_NEON] = "neon"};

#ifdef HAVE_X86_TABLES /* set by meson where it compiles them */
static const struct kernels *const table_avx2 = &kernels_avx2, *const table_avx512 = &kernels_avx512;
#else
static const struct kernels *const table_avx2, *const table_avx512;
#endif

int isa_from_name(const char *name, enum isa *out, struct err *err)
{
    for (int i = ISA_AUTO; i <= ISA_NEON; i++)
        if (strcmp(name, isa_names[i]) == 0) {
            *out = (enum isa)i;
            return 0;
        }
    return err_set(err, ERR_USAGE, "--isa %s: unknown; use auto, ref, avx2 or avx512", name);
}

int kernels_select(const struct kernels **out, enum isa isa, struct err *err)
{
    const struct cpu_features *cpu = cpu_features();
    bool avx2 = table_avx2 && cpu->avx2_fma_f16c;
    bool avx512 = avx2 && table_avx512 && cpu->avx512 && cpu->avx512_vnni;
    if (isa == ISA_AUTO)
        isa = avx512 ? ISA_AVX512 : avx2 ? ISA_AVX2 : ISA_REF;
    switch (isa) {
    case ISA_REF:
        *out = &kernels_ref;
        return 0;
    case ISA_AVX2:
        if (!avx2)
            return err_set(err, ERR_SYSTEM, "--isa avx2: this CPU lacks AVX2, FMA or F16C; use auto or ref");
        *out = table_avx2;
        return 0;
    case ISA_AVX512:
        if (!avx512)
            return err_set(err, ERR_SYSTEM,
                           "--isa avx512: this CPU lacks AVX-512 (F, BW, DQ, VL) or its VNNI; use auto%s",
                           avx2 ? ", avx2 or ref" : " or ref");
        *out = table_avx512;
        return 0;
    default:
        return err_set(err, ERR_SYSTEM,
                       "--isa %s: not available in this version; use auto, ref, avx2 or avx512",
                       isa_names[isa]);
    }
}

/* cpuid.c - see cpuid.h. Asks the CPU what it has, and the kernel (XCR0, arch_prctl, auxv) what it lets us
 * use. */
#include "hw/cpuid.h"

#include <pthread.h>
#include <stdint.h>

static struct cpu_features features;
static pthread_once_t once = PTHREAD_ONCE_INIT;

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Register state that the kernel saves at a context switch; without it an instruction set is unusable. */
static uint64_t saved_state(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Linux gives the 8 KB of tile state only to processes that ask for it (kernel:
 * Documentation/arch/x86/xstate). */
static bool tile_state_granted(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static bool has_all(uint64_t value, uint64_t bits)
{
    return (value & bits) == bits;
}

/* Bit numbers: Intel SDM volume 2, CPUID leaves 1 and 7. */
static void detect(void)
{
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX = 1 << 28, F16C = 1 << 29 };
    const uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31; /* F, DQ, CD, BW, VL */
    const uint64_t state_avx = 0x6, state_avx512 = 0xe6, state_amx = 0x60000;
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has_all(c, OSXSAVE))
        return;
    uint32_t leaf1 = c;
    uint64_t state = saved_state();
    if (!has_all(leaf1, FMA | AVX | F16C) || !has_all(state, state_avx))
        return;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return;
    uint32_t subleaf1 = 0;
    if (a >= 1) {
        uint32_t b1, c1, d1;
        __get_cpuid_count(7, 1, &subleaf1, &b1, &c1, &d1);
    }
    features.avx2_fma_f16c = b & 1u << 5;
    if (!features.avx2_fma_f16c)
        return;
    features.avx_vnni = subleaf1 & 1u << 4;
    features.avx512 = has_all(b, avx512) && has_all(state, state_avx512);
    features.avx512_vnni = features.avx512 && (c & 1u << 11);
    features.avx512_bf16 = features.avx512 && (subleaf1 & 1u << 5);
    features.amx_int8 = features.avx512 && has_all(d, 1u << 24 | 1u << 25) && has_all(state, state_amx) &&
                        tile_state_granted();
}

#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>

static void detect(void)
{
    features.neon_dotprod = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
    features.neon_i8mm = getauxval(AT_HWCAP2) & HWCAP2_I8MM;
}

#else
static void detect(void) {}
#endif

const struct cpu_features *cpu_features(void)
{
    pthread_once(&once, detect);
    return &features;
}

/* block.h - inside of ops: where the parts of one packed block lie (pack.h has the format in words), and the
 * constants that every instruction set's kernels share. Pure functions; any thread. */
#ifndef OPS_BLOCK_H
#define OPS_BLOCK_H

#include "ops/kernels.h"
#include "ops/pack.h"

#include <string.h>

enum { STEP_BYTES = 4 * PANEL }; /* 4 inputs x 16 outputs, a code a byte */

/* A quantised block taken apart. sc and mn are int8_t or int16_t as the format's width says. */
struct block_view {
    const float *d1, *d2;
    const uint8_t *sc, *mn; /* (len / group, 16) of width bytes; mn and d2 NULL without mins */
    const uint8_t *codes;
};

/* Offsets of the parts from the block's start (d1 is at 0). */
struct block_parts {
    size_t d2, sc, mn;
};

static inline struct block_parts block_parts(const struct pack_format *f, int len)
{
    size_t factors = PANEL * sizeof(float), ints = (size_t)(len / f->group) * PANEL * (size_t)f->width;
    size_t sc = f->has_min ? 2 * factors : factors;
    return (struct block_parts){.d2 = factors, .sc = sc, .mn = sc + ints};
}

static inline struct block_view block_view_at(const struct pack_format *f, int len, const uint8_t *block)
{
    struct block_parts at = block_parts(f, len);
    return (struct block_view){.d1 = (const float *)block,
                               .d2 = f->has_min ? (const float *)(block + at.d2) : NULL,
                               .sc = block + at.sc,
                               .mn = f->has_min ? block + at.mn : NULL,
                               .codes = block + pack_header_bytes(f, len)};
}

/* Integer `i` of a plane of sc or mn. */
static inline int block_int(const uint8_t *plane, int width, int i)
{
    if (width == 1)
        return (int8_t)plane[i];
    int16_t v;
    memcpy(&v, plane + 2 * (size_t)i, 2);
    return v;
}

/* The code of one (output, input) of a block. */
static inline int block_code(const uint8_t *codes, int bits, int output, int input)
{
    int step = input / 4, byte = 4 * output + input % 4;
    switch (bits) {
    case 8:
        return codes[step * STEP_BYTES + byte];
    case 4:
        return codes[step / 2 * STEP_BYTES + byte] >> (4 * (step % 2)) & 15;
    default: {
        const uint8_t *quad = codes + step / 4 * 3 * STEP_BYTES;
        int j = step % 4;
        int low = quad[j / 2 * STEP_BYTES + byte] >> (4 * (j % 2)) & 15;
        int high = quad[2 * STEP_BYTES + byte] >> (2 * j) & 3;
        return low | high << 4;
    }
    }
}

/* Which of qact.sum's arrays has the sums over `group` inputs. */
static inline int sum_level(int group)
{
    return group == 16 ? 0 : group == 32 ? 1 : group == 64 ? 2 : 3;
}

/* exp_ref: ln 2 in two parts, the first short enough that n * EXP_LN2_HI is exact, and the coefficients of
 * r^2..r^6 (interpolation of (exp(r) - 1 - r) / r^2 at Chebyshev nodes of |r| <= ln(2) / 2, error 1.1e-8). */
#define EXP_MAX    88.0f
#define EXP_MIN    -87.0f
#define EXP_LOG2E  1.44269502f
#define EXP_LN2_HI 0x1.62e4p-1f
#define EXP_LN2_LO 0x1.7f7d1cp-20f
#define EXP_C2     0.5f
#define EXP_C3     0x1.5554dcp-3f
#define EXP_C4     0x1.55551ap-5f
#define EXP_C5     0x1.120ba2p-7f
#define EXP_C6     0x1.6d113cp-10f

#define QUANT_TINY 0x1p-100f /* max|x| below this counts as 0 */
#define F16_MAX    65504.0f

extern const struct kernels kernels_avx2, kernels_avx512; /* where meson compiles them: HAVE_X86_TABLES */

#endif

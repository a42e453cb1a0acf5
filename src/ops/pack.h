/* pack.h - the layout in which kernels read weights, and how K is cut.
 *
 * A rank's slice of a matrix (rows = outputs, k = inputs) is stored as panels of 16 output rows; vector lanes
 * are outputs, so that a dot product never needs a horizontal sum. Inside a panel the inputs follow in blocks,
 * everything a kernel reads for (panel, block) in one piece, in the order it reads it: one stream per panel.
 *
 * K is cut by the model alone, never by the number of ranks (ARCHITECTURE.md "One answer"):
 *   slabs   column-split matrices (attention output, FFN down): 8, which an aligned binary tree adds up.
 *           Others: 1.
 *   blocks  a quantised block never crosses a multiple of 256 of the whole matrix's K nor a slab boundary.
 *           One int8 activation scale per (token, block); everything inside a block is exact int32.
 *           Float weights: a block is a slab.
 *
 * Quantised block in memory, len inputs, G = len / group:
 *   float  d1[16]; float d2[16] (only with mins); intW sc[G][16]; intW mn[G][16] (only with mins); zeros up to a
 *   multiple of 64 bytes; then codes, in steps of 4 inputs x 16 outputs (64 bytes when a code is a byte: byte
 *   4 * output + (input % 4), one vpdpbusd operand, and 16 of them one AMX tile):
 *     8 bits: the steps in order
 *     4 bits: 64 bytes hold steps 2i (low nibbles) and 2i + 1 (high nibbles)
 *     6 bits: per 4 steps (16 inputs) 192 bytes: low nibbles of steps 0,1 | of 2,3 | 64 bytes whose bit pairs
 *             (1..0, 3..2, 5..4, 7..6) are the upper two bits of steps 0, 1, 2, 3
 * w = d1 * sc * (q - zero)            without mins,
 * w = d1 * sc * q + d2 * mn           with mins.
 * Float block: [len][16] elements in the weight's own type.
 *
 * Rows beyond the matrix (the last panel) are zero. Pure functions; a packed matrix is read-only once filled. */
#ifndef OPS_PACK_H
#define OPS_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PANEL = 16, SUPER = 256, N_SLABS = 8, MAX_GROUPS = SUPER / 16 };

enum pack_kind { PACK_F32, PACK_F16, PACK_BF16, PACK_Q };

struct pack_format {
    enum pack_kind kind;
    /* PACK_Q only: */
    int bits;  /* 4, 6 or 8: how codes are stored (3-bit codes in 4, 5-bit in 6) */
    int group; /* 16, 32, 64 or 128 inputs share sc and mn */
    int width; /* bytes of each sc and mn: 1 or 2 */
    bool has_min;
    int zero; /* code that means 0, without mins */
};

struct kblock {
    int32_t k0, len; /* within the rank's inputs */
    int32_t native;  /* index of the 256 of the whole matrix it lies in */
    int32_t slab;    /* 0..7, absolute */
};

/* One rank's cut of K. Shared by the weights and the activations that meet them. */
struct kcut {
    int64_t k_total;             /* of the whole matrix */
    int64_t k_first;             /* absolute index of the rank's first input */
    int32_t k;                   /* the rank's inputs */
    int32_t slab_first, n_slabs; /* the rank's slabs (n_slabs = 1, slab_first = 0 for row-split matrices) */
    int32_t slab_block[N_SLABS + 1]; /* blocks [slab_block[i], slab_block[i + 1]) are slab slab_first + i */
    int32_t n_blocks;
    struct kblock *blocks; /* (n_blocks), owned */
};

/* Boundaries of the 8 slabs of K: bound[i] = floor(i * (k / unit) / 8) * unit. unit divides k. */
void kcut_slab_bounds(int64_t k, int64_t unit, int64_t bound[N_SLABS + 1]);

/* The cut of rank `rank` of `n_ranks` (1, 2, 4, 8). unit > 0: column split at multiples of unit (rank owns
 * slabs [8 rank / n, 8 (rank + 1) / n)); unit == 0: row split, the whole K in one slab. quantised: blocks as
 * above (k must be a multiple of 16), else block = slab (an empty slab has no block). Returns 0, or -1 when
 * out of memory. A rank's share may be empty (k == 0). */
int kcut_make(struct kcut *out, int64_t k, int64_t unit, int rank, int n_ranks, bool quantised);
void kcut_free(struct kcut *c);

struct packed {
    struct pack_format format;
    int32_t rows; /* of this rank; panels = ceil(rows / 16) */
    int32_t n_panels;
    const struct kcut *cut; /* borrowed */
    size_t panel_bytes;     /* multiple of 64 */
    size_t *block_offset; /* (n_blocks + 1) bytes from the panel's start; borrowed from the caller's memory */
    uint8_t *data; /* (n_panels) x panel_bytes, 64-byte aligned, + PACK_SLACK readable bytes after it */
};

enum { PACK_SLACK = 64 };

/* Bytes of one block's header (d1 .. padding) and of the whole block. */
size_t pack_header_bytes(const struct pack_format *f, int len);
size_t pack_block_bytes(const struct pack_format *f, int len);
/* Fills everything but data; block_offset has room for n_blocks + 1, or is NULL when only sizes are asked
 * for. Data needs n_panels * panel_bytes + PACK_SLACK bytes. */
void packed_init(struct packed *p, const struct pack_format *f, int64_t rows, const struct kcut *cut,
                 size_t *block_offset);

/* One matrix row's scales as the integers and block factors that kernels use. For the whole K of the matrix:
 * sc, mn (k_total / group), d1, d2 (ceil(k_total / 256)). */
struct super_row {
    const uint8_t *q; /* (k_total) codes */
    const int16_t *sc, *mn;
    const float *d1, *d2;
};

/* From exact affine scales (s, b per group; see file/matrix.h) to integers times one step per 256:
 *   d1 = max|s| / limit, sc = rint(s / d1); b' = b + (s - d1 * sc) * 2^(bits-1) (centres the rounding of sc),
 *   d2 = max|b'| / limit', mn = rint(b' / d2).
 * Limits (so that 256 products of 127 * sc * q fit int32): width 1: 127; width 2: 8 bits with mins 255,
 * without 510, 6 bits 1023; mins 32767. Without mins b is ignored (it is -zero * s). */
void super_from_affine(const struct pack_format *f, int64_t k_total, const float *s, const float *b,
                       int16_t *sc, int16_t *mn, float *d1, float *d2);

/* Writes one panel (16 rows, NULL for a row that does not exist). */
void packed_put_panel(const struct packed *p, int panel, const struct super_row *const rows[PANEL]);
/* The same for float formats: rows[i] points at k_total elements of the format's own type. */
void packed_put_panel_float(const struct packed *p, int panel, const void *const rows[PANEL]);

/* Row `row` back as fp32 (embedding look-up), out: (cut->k). Quantised:
 * fma(d1 * sc, q - zero, 0) = (d1 * sc) * (q - zero), with mins fma(d1 * sc, q, d2 * mn), products rounded
 * first. */
void packed_row_f32(const struct packed *p, int64_t row, float *out);

#endif

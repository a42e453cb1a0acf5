/* matrix.h - one 2-D weight in whatever format the file (or a random generator) holds it: a row at a time as
 * fp32, or as unsigned codes with a scale and bias per group. Views; any thread.
 *
 * Affine view: w[k] = s[k / group] * q[k] + b[k / group], q unsigned with `bits` bits. Exact for every format
 * served: Q4_0 (s = d, b = -8 d), Q8_0 (q ^ 0x80, b = -128 d), Q4_K, Q6_K (b = -32 d sc), MLX. */
#ifndef FILE_MATRIX_H
#define FILE_MATRIX_H

#include "file/file.h"

/* How the weights are coded, whatever file they come from. */
enum weight_format {
    WEIGHT_F32,
    WEIGHT_F16,
    WEIGHT_BF16,
    WEIGHT_Q4_0, /* 4 bits, group 32, scale only */
    WEIGHT_Q8_0, /* 8 bits, group 32, scale only */
    WEIGHT_Q4_K, /* 4 bits, group 32, 6-bit scale and min times two fp16 per 256 */
    WEIGHT_Q6_K, /* 6 bits, group 16, 8-bit scale times one fp16 per 256 */
    WEIGHT_MLX,  /* bits 3, 4, 5, 6, 8; group 32, 64, 128; fp16/bf16/fp32 scale and bias per group */
};

struct matrix {
    char name[128];     /* for messages */
    int64_t rows, cols; /* output rows, inputs */
    enum weight_format format;
    int bits, group;                /* of the affine formats; 0 for floats */
    enum dtype scale_dtype;         /* MLX */
    const uint8_t *data;            /* rows of row_bytes; NULL: generated from `seed` (synthetic models) */
    const uint8_t *scales, *biases; /* MLX: (rows, cols / group) */
    size_t row_bytes;
    uint64_t seed;
};

/* From a GGUF or plain float tensor of shape (rows, cols), or (cols): one row. Refuses dtypes that are not
 * served, cols that are no multiple of the block. */
MUST_CHECK int matrix_from_tensor(struct matrix *out, const struct tensor *t, struct err *err);
/* From an MLX triple (U32 weight (rows, cols * bits / 32), scales and biases (rows, cols / group)); shapes
 * and dtypes are checked against bits and group. */
MUST_CHECK int matrix_from_mlx(struct matrix *out, const struct tensor *weight, const struct tensor *scales,
                               const struct tensor *biases, int bits, int group, struct err *err);
/* Random weights of the given format, a pure function of (seed, row): for synth models. Values have standard
 * deviation about 1 / sqrt(cols), as a freshly initialised network's. bits and group: of MLX only, whose
 * scales are bf16. cols must be whole blocks or groups. */
void matrix_synthetic(struct matrix *out, const char *name, int64_t rows, int64_t cols, enum weight_format f,
                      int bits, int group, uint64_t seed);

/* Bytes that the weight occupies in the file (or would). */
uint64_t matrix_file_bytes(const struct matrix *m);

/* One row as fp32, out: (cols): exact, in the arithmetic of the formats' own implementations. */
void matrix_row_f32(const struct matrix *m, int64_t row, float *out);

/* A quantised row in affine form. For the K formats `native` is set and the scales also come as the integers
 * and block factors the format really stores: s = d1[k / 256] * sc[k / group], b = d2[k / 256] * mn[k /
 * group] (Q6_K: sc only; b = -32 s). */
struct affine_row {
    uint8_t *q;       /* (cols) */
    float *s, *b;     /* (cols / group) */
    int16_t *sc, *mn; /* (cols / group), when native; mn = 0 for Q6_K */
    float *d1, *d2;   /* (ceil(cols / 256)), when native; d2 = 0 for Q6_K. d1 NULL: none of the four wanted */
};
bool matrix_is_native(const struct matrix *m); /* Q4_K and Q6_K */
/* All arrays of *out are the caller's. Returns false when a scale or bias is not finite: a corrupted file. */
MUST_CHECK bool matrix_row_affine(const struct matrix *m, int64_t row, const struct affine_row *out);
/* Raw row of a float matrix copied out in its own dtype (2 or 4 bytes each). Returns false when a value is
 * not finite. */
MUST_CHECK bool matrix_row_raw(const struct matrix *m, int64_t row, void *out);

#endif

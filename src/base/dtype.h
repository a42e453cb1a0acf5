/* dtype.h - the element types a model file may hold, and their sizes. Pure data; any thread. */
#ifndef BASE_DTYPE_H
#define BASE_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype {
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_F64,
    DTYPE_I8,
    DTYPE_U8,
    DTYPE_I16,
    DTYPE_U16,
    DTYPE_I32,
    DTYPE_U32,
    DTYPE_I64,
    DTYPE_U64,
    DTYPE_BOOL,
    /* GGUF block formats; layouts in file/matrix.c */
    DTYPE_Q4_0,
    DTYPE_Q4_1,
    DTYPE_Q5_0,
    DTYPE_Q5_1,
    DTYPE_Q8_0,
    DTYPE_Q2_K,
    DTYPE_Q3_K,
    DTYPE_Q4_K,
    DTYPE_Q5_K,
    DTYPE_Q6_K,
    DTYPE_MXFP4,
    N_DTYPES,
};

struct dtype_info {
    const char *name;   /* as users write it: "bf16", "q4_k" */
    int block_elements; /* elements per block, 1 for plain types */
    int block_bytes;
};

extern const struct dtype_info dtype_table[N_DTYPES];

/* Bytes of n elements; n must be a multiple of block_elements. */
static inline size_t dtype_bytes(enum dtype t, int64_t n)
{
    return (size_t)(n / dtype_table[t].block_elements) * (size_t)dtype_table[t].block_bytes;
}

#endif

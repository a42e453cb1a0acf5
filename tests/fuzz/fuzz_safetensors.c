/* fuzz_safetensors.c - any bytes at all as a safetensors file: opened and used to the last byte, or refused.
 */
#include "file/file.h"
#include "file/matrix.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const int bits[] = {3, 4, 5, 6, 8};
    struct file *f;
    struct err err;
    if (file_open_safetensors_memory(&f, data, size, NULL, 0, &err)) {
        if (f || !err.message[0])
            abort();
        return 0;
    }
    volatile uint8_t last = 0; /* volatile: the reading is the point */
    const struct tensor *t = NULL;
    for (size_t i = 0; i < file_n_tensors(f); i++) {
        struct matrix m;
        const struct tensor *previous = t;
        t = file_tensor_at(f, i);
        last = t->data[0];
        last = t->data[t->bytes - 1];
        if (!previous || matrix_from_mlx(&m, t, previous, previous, bits[size % 5], 32, NULL) ||
            m.cols > 1 << 20)
            continue;
        float *row = malloc((size_t)m.cols * sizeof *row);
        if (row)
            matrix_row_f32(&m, m.rows - 1, row);
        free(row);
    }
    (void)last;
    file_close(f);
    return 0;
}

/* fuzz_gguf.c - any bytes at all as a GGUF file: opened and used to the last byte, or refused. */
#include "file/file.h"
#include "file/matrix.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Reads all that the file promises; volatile, since the reading is the point. */
static void use_tensors(const struct file *f)
{
    volatile uint8_t last = 0;
    for (size_t i = 0; i < file_n_tensors(f); i++) {
        const struct tensor *t = file_tensor_at(f, i);
        struct matrix m;
        last = t->data[0];
        last = t->data[t->bytes - 1];
        if (matrix_from_tensor(&m, t, NULL) || m.cols > 1 << 20)
            continue;
        float *row = malloc((size_t)m.cols * sizeof *row);
        if (row)
            matrix_row_f32(&m, m.rows - 1, row);
        free(row);
    }
    (void)last;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct file *f;
    struct err err;
    if (file_open_gguf_memory(&f, data, size, &err)) {
        if (f || !err.message[0])
            abort();
        return 0;
    }
    use_tensors(f);
    const struct gguf_value *v = file_gguf_value(f, "tokenizer.ggml.tokens");
    volatile char last = 0;
    if (v && v->type == GGUF_ARRAY && v->item_type == GGUF_STRING) {
        for (uint64_t i = 0; i < v->n_items; i++)
            last = v->strings[i][v->string_lengths[i]];
    }
    (void)last;
    file_close(f);
    return 0;
}

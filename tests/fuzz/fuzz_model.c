/* fuzz_model.c - any bytes as a whole model: a GGUF file, or a safetensors file with a config.json behind it.
 * It is refused, or every rank's share can be planned and every weight's first row be read.
 *
 * Input: a GGUF file; or a 32-bit little-endian length, so many bytes of safetensors, the rest config.json.
 */
#include "model/shard.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int open_file(struct file **f, const uint8_t *data, size_t size, struct err *err)
{
    if (size >= 4 && !memcmp(data, "GGUF", 4))
        return file_open_gguf_memory(f, data, size, err);
    uint32_t n;
    if (size < 4)
        return err_set(err, ERR_INPUT, "too short");
    memcpy(&n, data, 4);
    if (n > size - 4)
        return err_set(err, ERR_INPUT, "the length is beyond the end");
    return file_open_safetensors_memory(f, data + 4, n, (const char *)data + 4 + n, size - 4 - n, err);
}

static void plan_and_read(const struct source *s, const struct inventory *inv)
{
    const struct limits limits = {
        .rows = 17, .logit_rows = 3, .ctx = 300, .n_pages = 3, .kv = KV_F16, .n_threads = 1};
    for (int n_ranks = 1; n_ranks <= MAX_RANKS; n_ranks *= 2) {
        struct shard shard;
        if (shard_plan(&shard, &s->config, inv, &limits, &ops_cpu, n_ranks - 1, n_ranks, NULL) == 0)
            shard_free(&shard);
    }
    for (int i = 0; i < (inv->n_layers + 1) * N_WEIGHT_ROLES; i++) {
        const struct matrix *m = &inv->matrices[i];
        float *row = m->rows ? malloc((size_t)m->cols * sizeof *row) : NULL;
        if (row)
            matrix_row_f32(m, m->rows - 1, row);
        free(row);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct file *f;
    struct source source;
    struct inventory inventory;
    struct err err = {0};
    if (open_file(&f, data, size, &err) == 0 && source_from_file(&source, f, &err) == 0) {
        if (inventory_make(&inventory, &source, &err) == 0) {
            char text[64];
            inventory_describe(&inventory, text, sizeof text);
            plan_and_read(&source, &inventory);
            inventory_free(&inventory);
        }
        source_close(&source);
    }
    if (err.code && !err.message[0])
        abort(); /* refused without saying why */
    return 0;
}

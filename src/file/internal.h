/* internal.h - what file.c, gguf.c and safetensors.c share. Private to src/file.
 *
 * A struct file owns its parts (mappings), an index from names to tensors and, for GGUF, one from keys to
 * values, and every string and array that it handed out (the `owned` list). Only the thread inside
 * file_open() writes to it. */
#ifndef FILE_INTERNAL_H
#define FILE_INTERNAL_H

#include "file/file.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "the formats are little-endian and are read in place");

/* One file, mapped read-only (fd >= 0) or lent by a caller (fd < 0). */
struct part {
    char *path;
    const uint8_t *data;
    size_t size;
    int fd;
};

/* Names to positions: open addressing, at most half full. The names are borrowed. */
struct name_index {
    struct name_slot {
        const char *name;
        size_t at;
    } * slots;
    size_t n, capacity;
};

struct owned {
    struct owned *next;
    max_align_t memory[];
};

/* The key-values of one GGUF file. */
struct gguf_table {
    struct gguf_value *values;
    size_t n, capacity;
    struct name_index index;
};

struct file {
    enum file_kind kind;
    char *path; /* as given to file_open() */
    struct part *parts;
    size_t n_parts;
    struct tensor *tensors;
    size_t n_tensors, tensor_capacity;
    struct name_index tensor_index;
    struct gguf_table metadata;
    json_t *config;
    struct owned *owned;
};

/* Memory that lives as long as the file; NULL when there is none. */
void *file_own(struct file *f, size_t bytes);
/* A NUL-terminated copy, owned by the file. */
char *file_own_string(struct file *f, const void *bytes, size_t n);
int file_out_of_memory(const char *path, struct err *err);

/* Maps a file and appends it to f->parts. */
MUST_CHECK int file_add_part(struct file *f, const char *path, struct err *err);
MUST_CHECK int file_add_memory(struct file *f, const char *name, const void *data, size_t size,
                               struct err *err);

/* Appends a tensor of `part`, whose name and shape are checked here. t->data is set from `offset`, counted
 * from data_start. Refuses a name that exists, a bad shape, and bytes outside of the part. */
MUST_CHECK int file_add_tensor(struct file *f, const struct part *part, struct tensor *t, uint64_t data_start,
                               uint64_t offset, struct err *err);
/* Puts the tensors from `first` on, all of one part, into the order of their bytes; refuses overlaps. */
MUST_CHECK int file_order_tensors(struct file *f, const struct part *part, size_t first, struct err *err);
/* To be called by each way of opening once all tensors are there, before any file_tensor(). */
MUST_CHECK int file_index_tensors(struct file *f, struct err *err);

/* false: the name is there already, or (n unchanged as well) out of memory, which *no_memory tells. */
bool name_index_add(struct name_index *index, const char *name, size_t at, bool *no_memory);
/* SIZE_MAX when absent. */
size_t name_index_find(const struct name_index *index, const char *name);

void gguf_table_free(struct gguf_table *table);

/* "BF16" for DTYPE_BF16; NULL for the types that safetensors cannot hold. */
const char *safetensors_dtype_name(enum dtype t);

bool utf8_valid(const uint8_t *s, size_t n);

/* f->path is the file (or directory); these add the parts. */
MUST_CHECK int gguf_open(struct file *f, struct err *err);
MUST_CHECK int safetensors_open(struct file *f, struct err *err);
/* The one part is there. */
MUST_CHECK int gguf_open_memory(struct file *f, struct err *err);
MUST_CHECK int safetensors_open_memory(struct file *f, const char *config_json, size_t config_size,
                                       struct err *err);

#endif

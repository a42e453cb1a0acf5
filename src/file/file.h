/* file.h - the bytes of a model on disk as named tensors: GGUF (one file or split) and safetensors
 * directories (one file or sharded; Hugging Face and MLX checkpoints).
 *
 * Everything in a file is hostile until checked: counts, offsets, overlaps, sizes against shapes, UTF-8.
 * After file_open() succeeded every tensor's bytes lie inside the mapping and have exactly the size that its
 * dtype and shape imply. A `struct file` is read-only after open and may be read by any thread; tensors are
 * views and never outlive it. */
#ifndef FILE_FILE_H
#define FILE_FILE_H

#include "base/dtype.h"
#include "base/err.h"
#include "base/json.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TENSOR_MAX_DIMS = 4 };

struct tensor {
    const char *name; /* valid UTF-8 */
    enum dtype dtype;
    int n_dims;                     /* 0 (a scalar) to 4 */
    int64_t shape[TENSOR_MAX_DIMS]; /* row-major: shape[0] slowest (GGUF's order is reversed on reading) */
    const uint8_t *data;            /* no alignment promised */
    size_t bytes;
};

enum file_kind { FILE_GGUF, FILE_SAFETENSORS };

struct file;

/* path: a .gguf file (for a split model: any of its parts, all are opened), or a directory with config.json
 * and model.safetensors or model.safetensors.index.json + shards (index entries may only name plain file
 * names inside the directory). */
MUST_CHECK int file_open(struct file **out, const char *path, struct err *err);
void file_close(struct file *f);

enum file_kind file_kind(const struct file *f);
const char *file_path(const struct file *f);
size_t file_n_tensors(const struct file *f);
const struct tensor *file_tensor_at(const struct file *f, size_t i); /* in file order */
/* NULL when absent; hashed lookup. */
const struct tensor *file_tensor(const struct file *f, const char *name);
uint64_t file_bytes(const struct file *f); /* of all parts, for progress and memory sums */

/* Safetensors: the parsed config.json (borrowed). NULL for GGUF. */
const json_t *file_config(const struct file *f);
/* Safetensors: path of a sibling such as "tokenizer.json", to be freed by the caller; NULL when it does not
 * exist (or for GGUF). */
char *file_sibling(const struct file *f, const char *name);

/* The kernel may drop the file's pages from this process and the page cache: they are not read again. */
void file_release_pages(const struct file *f);

/* ---- GGUF metadata ---- */
enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
};

struct gguf_value {
    const char *key;
    enum gguf_type type;
    enum gguf_type item_type; /* of an array (never GGUF_ARRAY: nested arrays are refused) */
    uint64_t n_items;         /* of an array */
    union {
        int64_t i; /* integers and bool; u64 above INT64_MAX is refused */
        double f;
    };
    const char *string;         /* GGUF_STRING: NUL-terminated copy */
    size_t string_bytes;        /* may contain NUL */
    const void *items;          /* numeric array: packed items, unaligned, little-endian, in the mapping */
    const char *const *strings; /* array of strings: NUL-terminated copies */
    const uint32_t *string_lengths;
};

/* NULL when absent, or when the file is not GGUF. */
const struct gguf_value *file_gguf_value(const struct file *f, const char *key);
/* Typed look-ups with a fallback; a value of the wrong type or range is an error naming file and key. */
MUST_CHECK int file_gguf_int(const struct file *f, const char *key, int64_t fallback, int64_t min,
                             int64_t max, int64_t *out, struct err *err);
MUST_CHECK int file_gguf_double(const struct file *f, const char *key, double fallback, double *out,
                                struct err *err);
MUST_CHECK int file_gguf_string(const struct file *f, const char *key, const char *fallback, const char **out,
                                struct err *err);

/* ---- parsers on memory, for the fuzzers ---- */
/* Parse a whole GGUF / safetensors header held in memory (which must outlive the file). */
MUST_CHECK int file_open_gguf_memory(struct file **out, const void *data, size_t size, struct err *err);
MUST_CHECK int file_open_safetensors_memory(struct file **out, const void *data, size_t size,
                                            const char *config_json, size_t config_size, struct err *err);

#endif

/* safetensors_write.h - writes a safetensors file: names, dtypes and shapes first, then the bytes of each
 * tensor in that order. The new file appears under its name only when it is complete (temporary file in the
 * same directory, fsync, rename): a full disk leaves the old file as it was. One thread. */
#ifndef FILE_SAFETENSORS_WRITE_H
#define FILE_SAFETENSORS_WRITE_H

#include "file/file.h"

struct safetensors_writer;

struct tensor_spec {
    const char *name;
    enum dtype dtype;
    int n_dims;
    int64_t shape[TENSOR_MAX_DIMS];
};

/* metadata: JSON object of strings for "__metadata__", or NULL. */
MUST_CHECK int safetensors_create(struct safetensors_writer **out, const char *path,
                                  const struct tensor_spec *specs, size_t n_specs, const json_t *metadata,
                                  struct err *err);
/* The bytes of the next tensor(s), in the order of specs, in pieces of any size. */
MUST_CHECK int safetensors_write(struct safetensors_writer *w, const void *bytes, size_t n, struct err *err);
/* Completes and renames, or (commit == false) removes the temporary file. Frees w in every case. */
MUST_CHECK int safetensors_finish(struct safetensors_writer *w, bool commit, struct err *err);

/* Writes a whole small file the same careful way. */
MUST_CHECK int file_write_atomically(const char *path, const void *bytes, size_t n, struct err *err);

#endif

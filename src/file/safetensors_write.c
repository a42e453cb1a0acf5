/* safetensors_write.c - see safetensors_write.h. */
#include "file/safetensors_write.h"

#include "base/buf.h"
#include "file/internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A file that is being written under a name of its own. */
struct pending {
    FILE *stream;
    char *path, *temporary;
};

struct safetensors_writer {
    struct pending pending;
    uint64_t left; /* bytes of tensors still to come */
    bool failed;
};

/* ---- one file, all or nothing ---- */

static int write_fault(const char *path, struct err *err)
{
    return err_set(err, ERR_SYSTEM, "%s: cannot write: %s", path, strerror(errno));
}

/* Frees p's members; removes the temporary file unless it has been renamed. */
static void pending_drop(struct pending *p)
{
    if (p->stream)
        fclose(p->stream);
    if (p->temporary)
        unlink(p->temporary);
    free(p->temporary);
    free(p->path);
    *p = (struct pending){0};
}

static int pending_open(struct pending *p, const char *path, struct err *err)
{
    *p = (struct pending){.path = strdup(path)};
    int fd = -1;
    for (int i = 0; i < 100 && fd < 0 && p->path; i++) {
        free(p->temporary);
        if (asprintf(&p->temporary, "%s.tmp-%ld-%d", path, (long)getpid(), i) < 0) {
            p->temporary = NULL;
            break;
        }
        /* Not mkstemp(): the mode shall follow the umask. */
        fd = open(p->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST)
            break;
    }
    if (fd >= 0)
        p->stream = fdopen(fd, "wb");
    if (p->stream)
        return 0;
    int rc = p->path && p->temporary ? write_fault(path, err) : file_out_of_memory(path, err);
    if (fd >= 0) {
        close(fd);
    } else { /* what has this name, if anything, is not ours */
        free(p->temporary);
        p->temporary = NULL;
    }
    pending_drop(p);
    return rc;
}

static int pending_write(struct pending *p, const void *bytes, size_t n, struct err *err)
{
    return fwrite(bytes, 1, n, p->stream) == n ? 0 : write_fault(p->path, err);
}

/* So that the new name survives a crash; a file system that cannot do it is no reason to fail. */
static void sync_directory(const char *path)
{
    char *copy = strdup(path);
    if (!copy)
        return;
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    free(copy);
}

static int pending_commit(struct pending *p, struct err *err)
{
    int rc = 0;
    if (fflush(p->stream) || fsync(fileno(p->stream)))
        rc = write_fault(p->path, err);
    int failed = fclose(p->stream);
    p->stream = NULL;
    if (!rc && (failed || rename(p->temporary, p->path)))
        rc = write_fault(p->path, err);
    if (!rc) {
        free(p->temporary);
        p->temporary = NULL;
        sync_directory(p->path);
    }
    pending_drop(p);
    return rc;
}

int file_write_atomically(const char *path, const void *bytes, size_t n, struct err *err)
{
    struct pending p;
    int rc = pending_open(&p, path, err);
    if (rc)
        return rc;
    rc = pending_write(&p, bytes, n, err);
    if (!rc)
        return pending_commit(&p, err);
    pending_drop(&p);
    return rc;
}

/* ---- safetensors ---- */

static uint64_t spec_bytes(const struct tensor_spec *s)
{
    int64_t elements = 1;
    assert(s->n_dims >= 0 && s->n_dims <= TENSOR_MAX_DIMS);
    for (int i = 0; i < s->n_dims; i++)
        elements *= s->shape[i];
    return dtype_bytes(s->dtype, elements);
}

/* The header entry of a tensor whose bytes begin at `offset`; NULL: no memory, or a name that is no UTF-8. */
static json_t *spec_json(const struct tensor_spec *s, uint64_t offset)
{
    const char *dtype = safetensors_dtype_name(s->dtype);
    assert(dtype);
    json_t *shape = json_array();
    for (int i = 0; i < s->n_dims; i++) {
        if (json_array_append_new(shape, json_integer(s->shape[i]))) {
            json_decref(shape);
            return NULL;
        }
    }
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype, "shape", shape, "data_offsets",
                     (json_int_t)offset, (json_int_t)(offset + spec_bytes(s)));
}

/* The header as text, padded with spaces to a multiple of 8 so that the data are aligned. */
static int make_header(struct buf *out, const char *path, const struct tensor_spec *specs, size_t n_specs,
                       const json_t *metadata, uint64_t *total, struct err *err)
{
    json_t *header = json_object();
    int rc = 0;
    *total = 0;
    if (metadata && json_object_set(header, "__metadata__", (json_t *)(uintptr_t)metadata))
        rc = file_out_of_memory(path, err);
    for (size_t i = 0; i < n_specs && !rc; i++) {
        if (json_object_get(header, specs[i].name) ||
            !utf8_valid((const uint8_t *)specs[i].name, strlen(specs[i].name)))
            rc = err_set(err, ERR_INPUT, "%s: tensor \"%s\": there are two of this name, or it is not UTF-8",
                         path, specs[i].name);
        else if (json_object_set_new(header, specs[i].name, spec_json(&specs[i], *total)))
            rc = file_out_of_memory(path, err);
        *total += spec_bytes(&specs[i]);
    }
    char *text = rc ? NULL : json_dumps(header, JSON_COMPACT);
    if (text)
        buf_puts(out, text);
    while (text && !out->failed && out->size % 8)
        buf_puts(out, " ");
    if (!rc && (!text || out->failed))
        rc = file_out_of_memory(path, err);
    free(text);
    json_decref(header);
    return rc;
}

int safetensors_create(struct safetensors_writer **out, const char *path, const struct tensor_spec *specs,
                       size_t n_specs, const json_t *metadata, struct err *err)
{
    struct buf header = {0};
    uint64_t total;
    *out = NULL;
    int rc = make_header(&header, path, specs, n_specs, metadata, &total, err);
    struct safetensors_writer *w = rc ? NULL : calloc(1, sizeof *w);
    if (!rc)
        rc = w ? pending_open(&w->pending, path, err) : file_out_of_memory(path, err);
    if (!rc) {
        w->left = total;
        uint64_t size = header.size;
        rc = pending_write(&w->pending, &size, 8, err);
        if (!rc)
            rc = pending_write(&w->pending, header.data, header.size, err);
        if (rc)
            pending_drop(&w->pending);
    }
    buf_free(&header);
    if (rc)
        free(w);
    else
        *out = w;
    return rc;
}

int safetensors_write(struct safetensors_writer *w, const void *bytes, size_t n, struct err *err)
{
    assert(n <= w->left);
    w->left -= n;
    int rc = pending_write(&w->pending, bytes, n, err);
    w->failed = w->failed || rc;
    return rc;
}

int safetensors_finish(struct safetensors_writer *w, bool commit, struct err *err)
{
    int rc = 0;
    if (commit && w->failed) {
        rc = err_set(err, ERR_SYSTEM, "%s: not written: an earlier write failed", w->pending.path);
    } else if (commit) {
        assert(w->left == 0);
        rc = pending_commit(&w->pending, err);
    }
    pending_drop(&w->pending); /* nothing is left of it after a commit */
    free(w);
    return rc;
}

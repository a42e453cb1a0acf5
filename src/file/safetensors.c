/* safetensors.c - reads a model directory: config.json and one safetensors file, or an index and its shards.
 * Part of a struct file (internal.h), written by the thread in file_open() only.
 *
 * The format: https://huggingface.co/docs/safetensors */
#include "file/internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    MAX_HEADER_BYTES = 100000000, /* what the format's own implementation accepts */
    MAX_CONFIG_BYTES = 16 << 20,
    MAX_INDEX_BYTES = 64 << 20,
};

static const struct {
    const char *name;
    enum dtype dtype;
} dtype_names[] = {
    {"F32", DTYPE_F32}, {"F16", DTYPE_F16}, {"BF16", DTYPE_BF16}, {"F64", DTYPE_F64}, {"I8", DTYPE_I8},
    {"U8", DTYPE_U8},   {"I16", DTYPE_I16}, {"U16", DTYPE_U16},   {"I32", DTYPE_I32}, {"U32", DTYPE_U32},
    {"I64", DTYPE_I64}, {"U64", DTYPE_U64}, {"BOOL", DTYPE_BOOL},
};

const char *safetensors_dtype_name(enum dtype t)
{
    for (size_t i = 0; i < sizeof dtype_names / sizeof dtype_names[0]; i++) {
        if (dtype_names[i].dtype == t)
            return dtype_names[i].name;
    }
    return NULL;
}

static bool find_dtype(const char *name, enum dtype *out)
{
    for (size_t i = 0; i < sizeof dtype_names / sizeof dtype_names[0]; i++) {
        if (strcmp(dtype_names[i].name, name) == 0) {
            *out = dtype_names[i].dtype;
            return true;
        }
    }
    return false;
}

/* ---- one file ---- */

/* A non-negative integer, or -1. */
static int64_t natural(const json_t *v)
{
    return json_is_integer(v) && json_integer_value(v) >= 0 ? json_integer_value(v) : -1;
}

static int read_entry(struct file *f, const struct part *part, const char *name, const json_t *entry,
                      uint64_t data_start, struct err *err)
{
    const json_t *shape = json_object_get(entry, "shape"), *offsets = json_object_get(entry, "data_offsets");
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    int64_t begin = natural(json_array_get(offsets, 0)), end = natural(json_array_get(offsets, 1));
    if (!dtype || !json_is_array(shape) || json_array_size(offsets) != 2 || begin < 0 || end < begin)
        return err_set(err, ERR_INPUT,
                       "%s: tensor \"%s\": needs a \"dtype\", a \"shape\" and two ascending \"data_offsets\"",
                       part->path, name);
    struct tensor t = {.n_dims = (int)json_array_size(shape)};
    if (!find_dtype(dtype, &t.dtype))
        return err_set(err, ERR_INPUT, "%s: tensor \"%s\": type %s is not served", part->path, name, dtype);
    if (json_array_size(shape) > TENSOR_MAX_DIMS)
        return err_set(err, ERR_INPUT, "%s: tensor \"%s\": %zu dimensions, more than %d", part->path, name,
                       json_array_size(shape), TENSOR_MAX_DIMS);
    for (int i = 0; i < t.n_dims; i++)
        t.shape[i] = natural(json_array_get(shape, (size_t)i)); /* -1 is refused with the other bad shapes */
    t.name = file_own_string(f, name, strlen(name));
    if (!t.name)
        return file_out_of_memory(part->path, err);
    int rc = file_add_tensor(f, part, &t, data_start, (uint64_t)begin, err);
    if (!rc && (uint64_t)(end - begin) != t.bytes)
        rc = err_set(err, ERR_INPUT,
                     "%s: tensor \"%s\": its offsets span %lld bytes, its shape and type need %zu",
                     part->path, name, (long long)(end - begin), t.bytes);
    return rc;
}

/* Reads the tensors of the last part. */
static int read_part(struct file *f, struct err *err)
{
    const struct part *part = &f->parts[f->n_parts - 1];
    uint64_t header_bytes;
    if (part->size < 8)
        return err_set(err, ERR_INPUT, "%s: not a safetensors file: only %zu bytes", part->path, part->size);
    memcpy(&header_bytes, part->data, 8);
    if (header_bytes > part->size - 8)
        return err_set(err, ERR_INPUT,
                       "%s: not a safetensors file, or cut short: a header of %" PRIu64
                       " bytes in a file of %zu",
                       part->path, header_bytes, part->size);
    if (header_bytes > MAX_HEADER_BYTES)
        return err_set(err, ERR_INPUT, "%s: its header of %" PRIu64 " bytes is larger than the %d allowed",
                       part->path, header_bytes, MAX_HEADER_BYTES);
    json_error_t where;
    json_t *header = json_loadb((const char *)part->data + 8, header_bytes,
                                JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &where);
    if (!header)
        return err_set(err, ERR_INPUT, "%s: bad header: line %d, column %d: %s", part->path, where.line,
                       where.column, where.text);
    int rc = 0;
    size_t first = f->n_tensors;
    const char *name;
    json_t *entry;
    if (!json_is_object(header)) {
        rc = err_set(err, ERR_INPUT, "%s: bad header: it must be a JSON object", part->path);
        goto out;
    }
    json_object_foreach(header, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue; /* whatever it holds: MLX writes null */
        if (!json_is_object(entry))
            rc = err_set(err, ERR_INPUT, "%s: header entry \"%s\" must be a JSON object", part->path, name);
        else
            rc = read_entry(f, part, name, entry, 8 + header_bytes, err);
        if (rc)
            goto out;
    }
    rc = file_order_tensors(f, part, first, err);
out:
    json_decref(header);
    return rc;
}

/* ---- a directory ---- */

/* "directory/name", or NULL when there is no memory. */
static char *join(const struct file *f, const char *name)
{
    char *path;
    return asprintf(&path, "%s/%s", f->path, name) < 0 ? NULL : path;
}

static int open_shard(struct file *f, const char *name, struct err *err)
{
    char *path = join(f, name);
    if (!path)
        return file_out_of_memory(f->path, err);
    int rc = file_add_part(f, path, err);
    free(path);
    return rc ? rc : read_part(f, err);
}

static bool is_plain_name(const char *name)
{
    return name[0] && strlen(name) <= 255 && !strchr(name, '/') && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}

/* Opens every shard that the map names, once each. */
static int open_shards(struct file *f, const char *path, const json_t *map, struct name_index *shards,
                       struct err *err)
{
    const char *tensor;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)map, tensor, v)
    {
        const char *shard = json_string_value(v);
        if (!shard || strlen(shard) != json_string_length(v) || !is_plain_name(shard))
            return err_set(err, ERR_INPUT,
                           "%s: tensor \"%s\": its file must be a plain name in the same directory%s%s", path,
                           tensor, shard ? ", not " : "", shard ? shard : "");
        bool no_memory;
        if (name_index_add(shards, shard, f->n_parts, &no_memory)) {
            int rc = open_shard(f, shard, err);
            if (rc) {
                err_prefix(err, "shard of tensor \"%s\"", tensor);
                return rc;
            }
        } else if (no_memory) {
            return file_out_of_memory(path, err);
        }
    }
    return 0;
}

/* Every tensor of the map must be in the shard that it names. */
static int check_map(const struct file *f, const char *path, const json_t *map,
                     const struct name_index *shards, struct err *err)
{
    const char *name;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)map, name, v)
    {
        const struct part *part = &f->parts[name_index_find(shards, json_string_value(v))];
        const struct tensor *t = file_tensor(f, name);
        if (!t || t->data < part->data || t->data >= part->data + part->size)
            return err_set(err, ERR_INPUT, "%s: tensor \"%s\" is not in %s", path, name, part->path);
    }
    return 0;
}

static int open_index(struct file *f, const char *path, struct err *err)
{
    json_t *index = NULL;
    struct name_index shards = {0};
    int rc = json_read_file(&index, path, MAX_INDEX_BYTES, err);
    if (rc)
        return rc;
    const json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0) {
        rc = err_set(err, ERR_INPUT, "%s: needs a \"weight_map\" that names the file of each tensor", path);
        goto out;
    }
    rc = open_shards(f, path, map, &shards, err);
    if (!rc)
        rc = file_index_tensors(f, err);
    if (!rc)
        rc = check_map(f, path, map, &shards, err);
out:
    free(shards.slots);
    json_decref(index);
    return rc;
}

int safetensors_open(struct file *f, struct err *err)
{
    char *config = join(f, "config.json"), *single = join(f, "model.safetensors"),
         *index = join(f, "model.safetensors.index.json");
    int rc;
    if (!config || !single || !index)
        rc = file_out_of_memory(f->path, err);
    else if (access(config, F_OK))
        rc = err_set(err, ERR_INPUT, "%s: no config.json here: not a model directory", f->path);
    else if (access(single, F_OK) && access(index, F_OK))
        rc = err_set(err, ERR_INPUT, "%s: neither model.safetensors nor model.safetensors.index.json here",
                     f->path);
    else
        rc = json_read_file(&f->config, config, MAX_CONFIG_BYTES, err);
    if (!rc && access(single, F_OK) == 0) {
        rc = open_shard(f, "model.safetensors", err);
        if (!rc)
            rc = file_index_tensors(f, err);
    } else if (!rc) {
        rc = open_index(f, index, err);
    }
    free(config);
    free(single);
    free(index);
    return rc;
}

int safetensors_open_memory(struct file *f, const char *config_json, size_t config_size, struct err *err)
{
    int rc =
        config_json ? json_parse(&f->config, config_json, config_size, "(config.json in memory)", err) : 0;
    if (!rc)
        rc = read_part(f, err);
    return rc ? rc : file_index_tensors(f, err);
}

/* gguf.c - reads GGUF versions 2 and 3, one file or a split set, and answers questions about its metadata.
 * Part of a struct file (internal.h), written by the thread in file_open() only.
 *
 * The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
#include "file/internal.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_ALIGNMENT = 65536,
    DEFAULT_ALIGNMENT = 32,
    MAX_KEY_BYTES = 65535,
    MAX_STRING_BYTES = 1 << 28,
    MIN_PAIR_BYTES = 8 + 4 + 1,     /* key length, type, value */
    MIN_INFO_BYTES = 8 + 4 + 4 + 8, /* name length, dimensions, type, offset */
    N_GGUF_TYPES = GGUF_F64 + 1,
};

static const uint8_t type_bytes[N_GGUF_TYPES] = {
    [GGUF_U8] = 1,  [GGUF_I8] = 1,   [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
    [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
};

/* ggml's tensor types by number. N_DTYPES: known by name only. Numbers that are missing were withdrawn. */
static const struct {
    const char *name;
    enum dtype dtype;
} ggml_types[] = {
    [0] = {"F32", DTYPE_F32},    [1] = {"F16", DTYPE_F16},      [2] = {"Q4_0", DTYPE_Q4_0},
    [3] = {"Q4_1", DTYPE_Q4_1},  [6] = {"Q5_0", DTYPE_Q5_0},    [7] = {"Q5_1", DTYPE_Q5_1},
    [8] = {"Q8_0", DTYPE_Q8_0},  [9] = {"Q8_1", N_DTYPES},      [10] = {"Q2_K", DTYPE_Q2_K},
    [11] = {"Q3_K", DTYPE_Q3_K}, [12] = {"Q4_K", DTYPE_Q4_K},   [13] = {"Q5_K", DTYPE_Q5_K},
    [14] = {"Q6_K", DTYPE_Q6_K}, [15] = {"Q8_K", N_DTYPES},     [16] = {"IQ2_XXS", N_DTYPES},
    [17] = {"IQ2_XS", N_DTYPES}, [18] = {"IQ3_XXS", N_DTYPES},  [19] = {"IQ1_S", N_DTYPES},
    [20] = {"IQ4_NL", N_DTYPES}, [21] = {"IQ3_S", N_DTYPES},    [22] = {"IQ2_S", N_DTYPES},
    [23] = {"IQ4_XS", N_DTYPES}, [24] = {"I8", DTYPE_I8},       [25] = {"I16", DTYPE_I16},
    [26] = {"I32", DTYPE_I32},   [27] = {"I64", DTYPE_I64},     [28] = {"F64", DTYPE_F64},
    [29] = {"IQ1_M", N_DTYPES},  [30] = {"BF16", DTYPE_BF16},   [34] = {"TQ1_0", N_DTYPES},
    [35] = {"TQ2_0", N_DTYPES},  [39] = {"MXFP4", DTYPE_MXFP4},
};

/* The unread rest of a header. */
struct reader {
    struct file *f;
    const char *path;
    const uint8_t *at;
    size_t left;
};

/* ---- reading ---- */

static int truncated(const struct reader *r, const char *what, struct err *err)
{
    return err_set(err, ERR_INPUT, "%s: the file ends inside of %s (incomplete download?)", r->path, what);
}

static bool take(struct reader *r, void *to, size_t n)
{
    if (n > r->left)
        return false;
    memcpy(to, r->at, n);
    r->at += n;
    r->left -= n;
    return true;
}

/* A string in place: false when it reaches past the end. */
static bool take_string(struct reader *r, const uint8_t **s, uint64_t *n)
{
    if (!take(r, n, 8) || *n > r->left)
        return false;
    *s = r->at;
    r->at += *n;
    r->left -= *n;
    return true;
}

static int value_fault(const struct reader *r, const char *key, const char *fault, struct err *err)
{
    return err_set(err, ERR_INPUT, "%s: key \"%s\": %s", r->path, key, fault);
}

/* Length and encoding of a string value that starts at `s`. */
static int check_string(const struct reader *r, const char *key, const uint8_t *s, uint64_t n,
                        struct err *err)
{
    if (n > MAX_STRING_BYTES)
        return value_fault(r, key, "a string is over 256 MiB long", err);
    if (!utf8_valid(s, n))
        return value_fault(r, key, "a string is not valid UTF-8", err);
    return 0;
}

static int read_strings(struct reader *r, struct gguf_value *v, struct err *err)
{
    if (v->n_items > r->left / 8)
        return value_fault(r, v->key, "an array longer than the file", err);
    struct reader start = *r;
    const uint8_t *s;
    uint64_t n, total = 0;
    for (uint64_t i = 0; i < v->n_items; i++) {
        if (!take_string(r, &s, &n))
            return value_fault(r, v->key, "a string longer than the file", err);
        int rc = check_string(r, v->key, s, n, err);
        if (rc)
            return rc;
        total += n + 1;
    }
    const char **strings = file_own(r->f, v->n_items * sizeof *strings);
    uint32_t *lengths = file_own(r->f, v->n_items * sizeof *lengths);
    char *text = file_own(r->f, total);
    if (!strings || !lengths || !text)
        return file_out_of_memory(r->path, err);
    for (uint64_t i = 0; i < v->n_items; i++) {
        bool inside = take_string(&start, &s, &n);
        assert(inside);
        (void)inside;
        memcpy(text, s, n);
        text[n] = 0;
        strings[i] = text;
        lengths[i] = (uint32_t)n;
        text += n + 1;
    }
    v->strings = strings;
    v->string_lengths = lengths;
    return 0;
}

static int read_array(struct reader *r, struct gguf_value *v, struct err *err)
{
    uint32_t type;
    if (!take(r, &type, 4) || !take(r, &v->n_items, 8))
        return truncated(r, "the metadata", err);
    if (type >= N_GGUF_TYPES)
        return err_set(err, ERR_INPUT, "%s: key \"%s\": unknown array type %" PRIu32, r->path, v->key, type);
    if (type == GGUF_ARRAY)
        return value_fault(r, v->key, "arrays of arrays are not served", err);
    v->item_type = (enum gguf_type)type;
    if (type == GGUF_STRING)
        return read_strings(r, v, err);
    if (v->n_items > r->left / type_bytes[type])
        return value_fault(r, v->key, "an array longer than the file", err);
    v->items = r->at;
    r->at += v->n_items * type_bytes[type];
    r->left -= v->n_items * type_bytes[type];
    return 0;
}

static int read_number(struct reader *r, struct gguf_value *v, struct err *err)
{
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
        float f32;
        double f64;
    } x;
    if (!take(r, &x, type_bytes[v->type]))
        return truncated(r, "the metadata", err);
    switch (v->type) {
    case GGUF_U8:
        v->i = x.u8;
        break;
    case GGUF_I8:
        v->i = x.i8;
        break;
    case GGUF_U16:
        v->i = x.u16;
        break;
    case GGUF_I16:
        v->i = x.i16;
        break;
    case GGUF_U32:
        v->i = x.u32;
        break;
    case GGUF_I32:
        v->i = x.i32;
        break;
    case GGUF_F32:
        v->f = x.f32;
        break;
    case GGUF_BOOL:
        if (x.u8 > 1)
            return value_fault(r, v->key, "a boolean that is neither 0 nor 1", err);
        v->i = x.u8;
        break;
    case GGUF_U64:
        if (x.u64 > INT64_MAX)
            return value_fault(r, v->key, "an integer above 2^63 - 1", err);
        v->i = (int64_t)x.u64;
        break;
    case GGUF_I64:
        v->i = x.i64;
        break;
    default:
        v->f = x.f64;
    }
    return 0;
}

static int read_value(struct reader *r, struct gguf_value *v, struct err *err)
{
    if (v->type == GGUF_ARRAY)
        return read_array(r, v, err);
    if (v->type != GGUF_STRING)
        return read_number(r, v, err);
    const uint8_t *s;
    uint64_t n;
    if (!take_string(r, &s, &n))
        return value_fault(r, v->key, "a string longer than the file", err);
    int rc = check_string(r, v->key, s, n, err);
    if (rc)
        return rc;
    v->string = file_own_string(r->f, s, n);
    v->string_bytes = n;
    return v->string ? 0 : file_out_of_memory(r->path, err);
}

static int append_value(struct reader *r, struct gguf_table *table, const struct gguf_value *v,
                        struct err *err)
{
    if (table->n == table->capacity) {
        size_t capacity = table->capacity ? table->capacity * 2 : 64;
        struct gguf_value *values = realloc(table->values, capacity * sizeof *values);
        if (!values)
            return file_out_of_memory(r->path, err);
        table->values = values;
        table->capacity = capacity;
    }
    bool no_memory;
    if (!name_index_add(&table->index, v->key, table->n, &no_memory))
        return no_memory ? file_out_of_memory(r->path, err)
                         : value_fault(r, v->key, "there are two of it", err);
    table->values[table->n++] = *v;
    return 0;
}

static int read_pairs(struct reader *r, uint64_t n_pairs, struct gguf_table *table, struct err *err)
{
    for (uint64_t i = 0; i < n_pairs; i++) {
        struct gguf_value v = {0};
        const uint8_t *key;
        uint64_t n;
        uint32_t type;
        if (!take_string(r, &key, &n))
            return truncated(r, "the metadata", err);
        if (n == 0 || n > MAX_KEY_BYTES || memchr(key, 0, n) || !utf8_valid(key, n))
            return err_set(err, ERR_INPUT, "%s: metadata key %" PRIu64 " is empty, over-long or not UTF-8",
                           r->path, i);
        v.key = file_own_string(r->f, key, n);
        if (!v.key)
            return file_out_of_memory(r->path, err);
        if (!take(r, &type, 4))
            return truncated(r, "the metadata", err);
        if (type >= N_GGUF_TYPES)
            return err_set(err, ERR_INPUT, "%s: key \"%s\": unknown type %" PRIu32, r->path, v.key, type);
        v.type = (enum gguf_type)type;
        int rc = read_value(r, &v, err);
        if (!rc)
            rc = append_value(r, table, &v, err);
        if (rc)
            return rc;
    }
    return 0;
}

/* ---- tensors ---- */

/* Steps over one tensor's description, to find out where the data starts. */
static bool skip_info(struct reader *r)
{
    const uint8_t *name;
    uint64_t n;
    uint32_t n_dims;
    if (!take_string(r, &name, &n) || !take(r, &n_dims, 4))
        return false;
    uint64_t rest = (uint64_t)n_dims * 8 + 4 + 8;
    if (rest > r->left)
        return false;
    r->at += rest;
    r->left -= rest;
    return true;
}

/* After skip_info() has seen that it is all there. */
static int read_info(struct reader *r, struct tensor *t, uint64_t *offset, struct err *err)
{
    const uint8_t *name = NULL;
    uint64_t n = 0, dims[TENSOR_MAX_DIMS] = {0};
    uint32_t n_dims = 0, type = 0;
    bool inside = take_string(r, &name, &n) && take(r, &n_dims, 4);
    assert(inside);
    if (memchr(name, 0, n))
        return err_set(err, ERR_INPUT, "%s: a tensor's name contains a NUL byte", r->path);
    *t = (struct tensor){.name = file_own_string(r->f, name, n)};
    if (!t->name)
        return file_out_of_memory(r->path, err);
    if (n_dims > TENSOR_MAX_DIMS)
        return err_set(err, ERR_INPUT, "%s: tensor \"%s\": %" PRIu32 " dimensions, more than %d", r->path,
                       t->name, n_dims, TENSOR_MAX_DIMS);
    inside = take(r, dims, n_dims * 8) && take(r, &type, 4) && take(r, offset, 8);
    assert(inside);
    (void)inside;
    t->n_dims = (int)n_dims;
    for (uint32_t i = 0; i < n_dims; i++)
        t->shape[n_dims - 1 - i] = (int64_t)dims[i]; /* above INT64_MAX: negative, refused as such */
    const char *type_name = type < sizeof ggml_types / sizeof ggml_types[0] ? ggml_types[type].name : NULL;
    if (!type_name)
        return err_set(err, ERR_INPUT, "%s: tensor \"%s\": unknown type %" PRIu32, r->path, t->name, type);
    if (ggml_types[type].dtype == N_DTYPES)
        return err_set(err, ERR_INPUT, "%s: tensor \"%s\": type %s is not served", r->path, t->name,
                       type_name);
    t->dtype = ggml_types[type].dtype;
    return 0;
}

static int table_int(const struct gguf_table *table, const char *path, const char *key, int64_t fallback,
                     int64_t min, int64_t max, int64_t *out, struct err *err);

static int read_tensors(struct reader *r, uint64_t n_tensors, const struct gguf_table *table, struct err *err)
{
    const struct part *part = &r->f->parts[r->f->n_parts - 1];
    int64_t alignment;
    int rc =
        table_int(table, r->path, "general.alignment", DEFAULT_ALIGNMENT, 1, MAX_ALIGNMENT, &alignment, err);
    if (rc)
        return rc;
    if (alignment & (alignment - 1))
        return err_set(err, ERR_INPUT, "%s: key \"general.alignment\": %lld is no power of two", r->path,
                       (long long)alignment);
    struct reader ahead = *r;
    for (uint64_t i = 0; i < n_tensors; i++) {
        if (!skip_info(&ahead))
            return truncated(r, "the list of tensors", err);
    }
    uint64_t mask = (uint64_t)alignment - 1, data_start = ((part->size - ahead.left) + mask) & ~mask;
    size_t first = r->f->n_tensors;
    for (uint64_t i = 0; i < n_tensors; i++) {
        struct tensor t;
        uint64_t offset = 0;
        rc = read_info(r, &t, &offset, err);
        if (!rc && offset & mask)
            rc = err_set(err, ERR_INPUT, "%s: tensor \"%s\": its offset %" PRIu64 " is not aligned to %lld",
                         r->path, t.name, offset, (long long)alignment);
        if (!rc)
            rc = file_add_tensor(r->f, part, &t, data_start, offset, err);
        if (rc)
            return rc;
    }
    return file_order_tensors(r->f, part, first, err);
}

/* ---- files ---- */

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

static int read_version(struct reader *r, struct err *err)
{
    uint8_t magic[4];
    uint32_t version;
    if (!take(r, magic, 4) || memcmp(magic, "GGUF", 4) != 0) {
        if (ends_with(r->path, ".safetensors"))
            return err_set(err, ERR_INPUT, "%s: give the directory that holds it and its config.json",
                           r->path);
        return err_set(err, ERR_INPUT, "%s: not a GGUF file", r->path);
    }
    if (!take(r, &version, 4))
        return truncated(r, "the header", err);
    if (version == 2 || version == 3)
        return 0;
    if (version != 0 && (version & 0xffff) == 0)
        return err_set(err, ERR_INPUT, "%s: big-endian GGUF is not served", r->path);
    return err_set(err, ERR_INPUT, "%s: GGUF version %" PRIu32 " is not served (2 and 3 are)%s", r->path,
                   version, version == 1 ? ": convert the model anew" : "");
}

/* Reads the last part of f: its tensors into f, its metadata into *table. */
static int read_part(struct file *f, struct gguf_table *table, struct err *err)
{
    const struct part *part = &f->parts[f->n_parts - 1];
    struct reader r = {.f = f, .path = part->path, .at = part->data, .left = part->size};
    uint64_t n_tensors, n_pairs;
    int rc = read_version(&r, err);
    if (rc)
        return rc;
    if (!take(&r, &n_tensors, 8) || !take(&r, &n_pairs, 8))
        return truncated(&r, "the header", err);
    if (n_pairs > r.left / MIN_PAIR_BYTES || n_tensors > r.left / MIN_INFO_BYTES)
        return err_set(err, ERR_INPUT,
                       "%s: announces %" PRIu64 " keys and %" PRIu64
                       " tensors, more than its %zu bytes can hold",
                       r.path, n_pairs, n_tensors, part->size);
    rc = read_pairs(&r, n_pairs, table, err);
    return rc ? rc : read_tensors(&r, n_tensors, table, err);
}

/* For "…-00002-of-00005.gguf": the count of parts, and the length of what comes before. 0: no such name. */
static int split_name(const char *path, size_t *prefix)
{
    static const char pattern[] = "-00000-of-00000.gguf";
    size_t n = strlen(path), m = sizeof pattern - 1;
    if (n < m)
        return 0;
    const char *end = path + n - m;
    for (size_t i = 0; i < m; i++) {
        bool digit = end[i] >= '0' && end[i] <= '9';
        if (pattern[i] == '0' ? !digit : end[i] != pattern[i])
            return 0;
    }
    *prefix = n - m;
    return atoi(end + 10);
}

static int check_split(const struct gguf_table *table, const char *path, int number, int count,
                       struct err *err)
{
    int64_t n, of;
    int rc = table_int(table, path, "split.no", -1, 0, INT64_MAX, &n, err);
    if (!rc)
        rc = table_int(table, path, "split.count", -1, 0, INT64_MAX, &of, err);
    if (rc)
        return rc;
    if (n != number - 1 || of != count)
        return err_set(
            err, ERR_INPUT,
            "%s: keys \"split.no\" and \"split.count\" say part %lld of %lld, the name says part %d of %d",
            path, (long long)n + 1, (long long)of, number, count);
    return 0;
}

static int open_split(struct file *f, size_t prefix, int count, struct err *err)
{
    for (int i = 1; i <= count; i++) {
        char *path;
        if (asprintf(&path, "%.*s-%05d-of-%05d.gguf", (int)prefix, f->path, i, count) < 0)
            return file_out_of_memory(f->path, err);
        int rc = file_add_part(f, path, err);
        free(path);
        if (rc) {
            err_prefix(err, "part %d of %d of a split model", i, count);
            return rc;
        }
        struct gguf_table other = {0}, *table = i == 1 ? &f->metadata : &other;
        rc = read_part(f, table, err);
        if (!rc)
            rc = check_split(table, f->parts[f->n_parts - 1].path, i, count, err);
        gguf_table_free(&other);
        if (rc)
            return rc;
    }
    int64_t n_tensors;
    int rc = table_int(&f->metadata, f->parts[0].path, "split.tensors.count", (int64_t)f->n_tensors, 0,
                       INT64_MAX, &n_tensors, err);
    if (!rc && (uint64_t)n_tensors != f->n_tensors)
        rc = err_set(err, ERR_INPUT,
                     "%s: key \"split.tensors.count\" says %lld tensors, the %d parts hold %zu",
                     f->parts[0].path, (long long)n_tensors, count, f->n_tensors);
    return rc ? rc : file_index_tensors(f, err);
}

int gguf_open_memory(struct file *f, struct err *err)
{
    int64_t count = 1;
    int rc = read_part(f, &f->metadata, err);
    if (!rc)
        rc = table_int(&f->metadata, f->path, "split.count", 1, 0, INT64_MAX, &count, err);
    if (!rc && count > 1)
        rc = err_set(err, ERR_INPUT,
                     "%s: key \"split.count\" says that this is one of %lld parts: give it back its name "
                     "(…-00001-of-%05lld.gguf), with the others beside it",
                     f->path, (long long)count, (long long)count);
    return rc ? rc : file_index_tensors(f, err);
}

int gguf_open(struct file *f, struct err *err)
{
    size_t prefix;
    int count = split_name(f->path, &prefix);
    if (count > 1)
        return open_split(f, prefix, count, err);
    int rc = file_add_part(f, f->path, err);
    return rc ? rc : gguf_open_memory(f, err);
}

void gguf_table_free(struct gguf_table *table)
{
    free(table->values);
    free(table->index.slots);
}

/* ---- metadata ---- */

static const struct gguf_value *table_value(const struct gguf_table *table, const char *key)
{
    size_t i = name_index_find(&table->index, key);
    return i == SIZE_MAX ? NULL : &table->values[i];
}

static bool is_integer(enum gguf_type t)
{
    return t <= GGUF_I32 || t == GGUF_U64 || t == GGUF_I64;
}

static int table_int(const struct gguf_table *table, const char *path, const char *key, int64_t fallback,
                     int64_t min, int64_t max, int64_t *out, struct err *err)
{
    const struct gguf_value *v = table_value(table, key);
    *out = fallback;
    if (!v)
        return 0;
    if (!is_integer(v->type))
        return err_set(err, ERR_INPUT, "%s: key \"%s\" must be an integer", path, key);
    if (v->i < min || v->i > max)
        return err_set(err, ERR_INPUT, "%s: key \"%s\" is %lld, outside [%lld, %lld]", path, key,
                       (long long)v->i, (long long)min, (long long)max);
    *out = v->i;
    return 0;
}

const struct gguf_value *file_gguf_value(const struct file *f, const char *key)
{
    return table_value(&f->metadata, key);
}

int file_gguf_int(const struct file *f, const char *key, int64_t fallback, int64_t min, int64_t max,
                  int64_t *out, struct err *err)
{
    return table_int(&f->metadata, f->path, key, fallback, min, max, out, err);
}

int file_gguf_double(const struct file *f, const char *key, double fallback, double *out, struct err *err)
{
    const struct gguf_value *v = file_gguf_value(f, key);
    *out = fallback;
    if (!v)
        return 0;
    if (v->type != GGUF_F32 && v->type != GGUF_F64 && !is_integer(v->type))
        return err_set(err, ERR_INPUT, "%s: key \"%s\" must be a number", f->path, key);
    *out = is_integer(v->type) ? (double)v->i : v->f;
    if (!isfinite(*out))
        return err_set(err, ERR_INPUT, "%s: key \"%s\" is not a finite number", f->path, key);
    return 0;
}

int file_gguf_string(const struct file *f, const char *key, const char *fallback, const char **out,
                     struct err *err)
{
    const struct gguf_value *v = file_gguf_value(f, key);
    *out = fallback;
    if (!v)
        return 0;
    if (v->type != GGUF_STRING)
        return err_set(err, ERR_INPUT, "%s: key \"%s\" must be a string", f->path, key);
    *out = v->string;
    return 0;
}

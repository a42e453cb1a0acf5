/* file.c - see file.h: opening, mapping, the tensor index; what GGUF and safetensors have in common. */
#include "file/internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_NAME_BYTES = 512 };

/* ---- memory ---- */

void *file_own(struct file *f, size_t bytes)
{
    if (bytes > SIZE_MAX / 2)
        return NULL;
    struct owned *o = malloc(sizeof *o + bytes);
    if (!o)
        return NULL;
    o->next = f->owned;
    f->owned = o;
    return o->memory;
}

char *file_own_string(struct file *f, const void *bytes, size_t n)
{
    char *s = file_own(f, n + 1);
    if (s) {
        if (n)
            memcpy(s, bytes, n);
        s[n] = 0;
    }
    return s;
}

int file_out_of_memory(const char *path, struct err *err)
{
    return err_set(err, ERR_SYSTEM, "%s: out of memory", path);
}

/* ---- names ---- */

bool utf8_valid(const uint8_t *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint8_t c = s[i];
        size_t more = c < 0x80                 ? 0
                      : c >= 0xc2 && c <= 0xdf ? 1
                      : (c & 0xf0) == 0xe0     ? 2
                      : c >= 0xf0 && c <= 0xf4 ? 3
                                               : 4;
        if (more == 4 || more >= n - i)
            return false;
        for (size_t j = 1; j <= more; j++) {
            if ((s[i + j] & 0xc0) != 0x80)
                return false;
        }
        uint8_t second =
            more >= 2 ? s[i + 1] : 0; /* no overlong forms, surrogates or code points over 10ffff */
        if ((c == 0xe0 && second < 0xa0) || (c == 0xed && second > 0x9f) || (c == 0xf0 && second < 0x90) ||
            (c == 0xf4 && second > 0x8f))
            return false;
        i += more + 1;
    }
    return true;
}

/* FNV-1a. */
static uint64_t hash(const char *name)
{
    uint64_t h = 0xcbf29ce484222325;
    for (; *name; name++)
        h = (h ^ (uint8_t)*name) * 0x100000001b3;
    return h ^ h >> 32;
}

/* The slot that holds the name, or the empty one where it belongs. */
static struct name_slot *find_slot(const struct name_index *index, const char *name)
{
    size_t i = hash(name) & (index->capacity - 1);
    while (index->slots[i].name && strcmp(index->slots[i].name, name) != 0)
        i = (i + 1) & (index->capacity - 1);
    return &index->slots[i];
}

static bool grow_index(struct name_index *index)
{
    struct name_index larger = {.n = index->n, .capacity = index->capacity ? index->capacity * 2 : 64};
    larger.slots = calloc(larger.capacity, sizeof *larger.slots);
    if (!larger.slots)
        return false;
    for (size_t i = 0; i < index->capacity; i++) {
        if (index->slots[i].name)
            *find_slot(&larger, index->slots[i].name) = index->slots[i];
    }
    free(index->slots);
    *index = larger;
    return true;
}

bool name_index_add(struct name_index *index, const char *name, size_t at, bool *no_memory)
{
    *no_memory = false;
    if ((index->n + 1) * 2 > index->capacity && !grow_index(index)) {
        *no_memory = true;
        return false;
    }
    struct name_slot *slot = find_slot(index, name);
    if (slot->name)
        return false;
    *slot = (struct name_slot){name, at};
    index->n++;
    return true;
}

size_t name_index_find(const struct name_index *index, const char *name)
{
    if (!index->n)
        return SIZE_MAX;
    const struct name_slot *slot = find_slot(index, name);
    return slot->name ? slot->at : SIZE_MAX;
}

/* ---- parts ---- */

static struct part *new_part(struct file *f, const char *path, struct err *err)
{
    struct part *parts = realloc(f->parts, (f->n_parts + 1) * sizeof *parts);
    if (parts)
        f->parts = parts;
    char *copy = strdup(path);
    if (!parts || !copy) {
        free(copy);
        file_out_of_memory(path, err);
        return NULL;
    }
    struct part *p = &f->parts[f->n_parts++];
    *p = (struct part){.path = copy, .fd = -1};
    return p;
}

int file_add_memory(struct file *f, const char *name, const void *data, size_t size, struct err *err)
{
    struct part *p = new_part(f, name, err);
    if (!p)
        return ERR_SYSTEM;
    p->data = data;
    p->size = size;
    return 0;
}

static int cannot_open(const char *path, struct err *err)
{
    int code = errno == ENOENT || errno == ENOTDIR ? ERR_INPUT : ERR_SYSTEM;
    return err_set(err, code, "%s: cannot open: %s", path, strerror(errno));
}

int file_add_part(struct file *f, const char *path, struct err *err)
{
    struct part *p = new_part(f, path, err);
    if (!p)
        return ERR_SYSTEM;
    p->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* not to hang on a pipe; refused below */
    if (p->fd < 0)
        return cannot_open(path, err);
    struct stat st;
    if (fstat(p->fd, &st))
        return cannot_open(path, err);
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_INPUT, "%s: not a regular file", path);
    if (st.st_size == 0)
        return err_set(err, ERR_INPUT, "%s: the file is empty", path);
    void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, p->fd, 0);
    if (data == MAP_FAILED)
        return err_set(err, ERR_SYSTEM, "%s: cannot map: %s", path, strerror(errno));
    p->data = data;
    p->size = (size_t)st.st_size;
    return 0;
}

/* ---- tensors ---- */

static int tensor_fault(const struct part *part, const struct tensor *t, struct err *err, const char *fault)
{
    return err_set(err, ERR_INPUT, "%s: tensor \"%s\": %s", part->path, t->name, fault);
}

/* Sets t->bytes from dtype and shape. */
static int measure(const struct part *part, struct tensor *t, struct err *err)
{
    const struct dtype_info *d = &dtype_table[t->dtype];
    int64_t elements = 1;
    for (int i = 0; i < t->n_dims; i++) {
        if (t->shape[i] <= 0)
            return tensor_fault(part, t, err, "a dimension is zero or negative");
        /* Far from overflow in bytes too: no element takes more than 8. */
        if (__builtin_mul_overflow(elements, t->shape[i], &elements) || elements > INT64_MAX / 16)
            return tensor_fault(part, t, err, "the product of its dimensions overflows");
    }
    int64_t row = t->n_dims ? t->shape[t->n_dims - 1] : 1;
    if (row % d->block_elements)
        return err_set(err, ERR_INPUT, "%s: tensor \"%s\": rows of %lld are no multiple of %s's block of %d",
                       part->path, t->name, (long long)row, d->name, d->block_elements);
    t->bytes = dtype_bytes(t->dtype, elements);
    return 0;
}

int file_add_tensor(struct file *f, const struct part *part, struct tensor *t, uint64_t data_start,
                    uint64_t offset, struct err *err)
{
    assert(t->n_dims >= 0 && t->n_dims <= TENSOR_MAX_DIMS);
    size_t name_bytes = strlen(t->name);
    if (name_bytes == 0 || name_bytes > MAX_NAME_BYTES || !utf8_valid((const uint8_t *)t->name, name_bytes))
        return err_set(err, ERR_INPUT,
                       "%s: tensor %zu has a name that is empty, over %d bytes or not UTF-8: \"%s\"",
                       part->path, f->n_tensors, MAX_NAME_BYTES, t->name);
    int rc = measure(part, t, err);
    if (rc)
        return rc;
    if (data_start > part->size || offset > part->size - data_start ||
        t->bytes > part->size - data_start - offset)
        return err_set(
            err, ERR_INPUT,
            "%s: tensor \"%s\": its %zu bytes at %llu reach past the end of the file (incomplete download?)",
            part->path, t->name, t->bytes, (unsigned long long)offset);
    t->data = part->data + data_start + offset;
    if (f->n_tensors == f->tensor_capacity) {
        size_t capacity = f->tensor_capacity ? f->tensor_capacity * 2 : 64;
        struct tensor *tensors = realloc(f->tensors, capacity * sizeof *tensors);
        if (!tensors)
            return file_out_of_memory(part->path, err);
        f->tensors = tensors;
        f->tensor_capacity = capacity;
    }
    f->tensors[f->n_tensors++] = *t;
    return 0;
}

static int compare_place(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;
    return (x->data > y->data) - (x->data < y->data);
}

int file_order_tensors(struct file *f, const struct part *part, size_t first, struct err *err)
{
    if (first == f->n_tensors)
        return 0;
    qsort(f->tensors + first, f->n_tensors - first, sizeof *f->tensors, compare_place);
    for (size_t i = first + 1; i < f->n_tensors; i++) {
        const struct tensor *a = &f->tensors[i - 1], *b = &f->tensors[i];
        if (a->data + a->bytes > b->data)
            return err_set(err, ERR_INPUT, "%s: tensors \"%s\" and \"%s\" overlap", part->path, a->name,
                           b->name);
    }
    return 0;
}

static const char *part_path_of(const struct file *f, const struct tensor *t)
{
    for (size_t i = 0; i < f->n_parts; i++) {
        if (t->data >= f->parts[i].data && t->data < f->parts[i].data + f->parts[i].size)
            return f->parts[i].path;
    }
    return f->path;
}

int file_index_tensors(struct file *f, struct err *err)
{
    for (size_t i = 0; i < f->n_tensors; i++) {
        bool no_memory;
        const struct tensor *t = &f->tensors[i];
        if (name_index_add(&f->tensor_index, t->name, i, &no_memory))
            continue;
        if (no_memory)
            return file_out_of_memory(f->path, err);
        return err_set(err, ERR_INPUT, "%s: tensor \"%s\": there are two of this name", part_path_of(f, t),
                       t->name);
    }
    return 0;
}

/* ---- opening ---- */

static struct file *new_file(enum file_kind kind, const char *path, struct err *err)
{
    struct file *f = calloc(1, sizeof *f);
    char *copy = strdup(path);
    if (!f || !copy) {
        free(f);
        free(copy);
        file_out_of_memory(path, err);
        return NULL;
    }
    f->kind = kind;
    f->path = copy;
    return f;
}

/* Hands the file out, or closes it when rc tells of a failure. */
static int finish_open(struct file **out, struct file *f, int rc)
{
    if (rc) {
        file_close(f);
        f = NULL;
    }
    *out = f;
    return rc;
}

int file_open(struct file **out, const char *path, struct err *err)
{
    *out = NULL;
    struct stat st;
    if (stat(path, &st))
        return cannot_open(path, err);
    bool directory = S_ISDIR(st.st_mode);
    struct file *f = new_file(directory ? FILE_SAFETENSORS : FILE_GGUF, path, err);
    if (!f)
        return ERR_SYSTEM;
    return finish_open(out, f, directory ? safetensors_open(f, err) : gguf_open(f, err));
}

int file_open_gguf_memory(struct file **out, const void *data, size_t size, struct err *err)
{
    *out = NULL;
    struct file *f = new_file(FILE_GGUF, "(memory)", err);
    if (!f)
        return ERR_SYSTEM;
    int rc = file_add_memory(f, f->path, data, size, err);
    return finish_open(out, f, rc ? rc : gguf_open_memory(f, err));
}

int file_open_safetensors_memory(struct file **out, const void *data, size_t size, const char *config_json,
                                 size_t config_size, struct err *err)
{
    *out = NULL;
    struct file *f = new_file(FILE_SAFETENSORS, "(memory)", err);
    if (!f)
        return ERR_SYSTEM;
    int rc = file_add_memory(f, f->path, data, size, err);
    return finish_open(out, f, rc ? rc : safetensors_open_memory(f, config_json, config_size, err));
}

void file_close(struct file *f)
{
    if (!f)
        return;
    for (size_t i = 0; i < f->n_parts; i++) {
        struct part *p = &f->parts[i];
        if (p->fd >= 0) {
            if (p->data)
                munmap((void *)(uintptr_t)p->data, p->size);
            close(p->fd);
        }
        free(p->path);
    }
    for (struct owned *o = f->owned; o;) {
        struct owned *next = o->next;
        free(o);
        o = next;
    }
    json_decref(f->config);
    free(f->tensor_index.slots);
    free(f->parts);
    free(f->tensors);
    gguf_table_free(&f->metadata);
    free(f->path);
    free(f);
}

/* ---- asking ---- */

enum file_kind file_kind(const struct file *f)
{
    return f->kind;
}

const char *file_path(const struct file *f)
{
    return f->path;
}

size_t file_n_tensors(const struct file *f)
{
    return f->n_tensors;
}

const struct tensor *file_tensor_at(const struct file *f, size_t i)
{
    assert(i < f->n_tensors);
    return &f->tensors[i];
}

const struct tensor *file_tensor(const struct file *f, const char *name)
{
    size_t i = name_index_find(&f->tensor_index, name);
    return i == SIZE_MAX ? NULL : &f->tensors[i];
}

uint64_t file_bytes(const struct file *f)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < f->n_parts; i++)
        sum += f->parts[i].size;
    return sum;
}

const json_t *file_config(const struct file *f)
{
    return f->config;
}

char *file_sibling(const struct file *f, const char *name)
{
    char *path;
    if (f->kind == FILE_GGUF || asprintf(&path, "%s/%s", f->path, name) < 0)
        return NULL;
    if (access(path, F_OK) == 0)
        return path;
    free(path);
    return NULL;
}

void file_release_pages(const struct file *f)
{
    for (size_t i = 0; i < f->n_parts; i++) {
        const struct part *p = &f->parts[i];
        if (p->fd < 0)
            continue;
        /* Advice: that it may fail changes nothing. The page cache only lets go of pages that nobody maps. */
        (void)madvise((void *)(uintptr_t)p->data, p->size, MADV_DONTNEED);
        (void)posix_fadvise(p->fd, 0, 0, POSIX_FADV_DONTNEED);
    }
}

/* reduce.c - see reduce.h. */
#include "hw/reduce.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* How many reductions a thread has met for; alone on its cache line because every thread writes its own. */
struct reduce_count {
    _Alignas(64) uint64_t meets;
};

struct reduce {
    int n_ranks, n_threads;
    float *partial[2][MAX_RANKS]; /* (elements) each: by parity of the reduction, then by rank */
    struct reduce_count *counts;  /* (n_ranks * n_threads) */
};

/* Bytes of one buffer. */
static size_t buffer_bytes(size_t elements)
{
    return (elements * sizeof(float) + 63) / 64 * 64;
}

size_t reduce_arena_bytes(size_t elements)
{
    return arena_bytes_for(2 * buffer_bytes(elements));
}

int reduce_open(struct reduce **out, int n_ranks, int n_threads, size_t elements,
                struct arena *const arenas[], struct err *err)
{
    assert(n_ranks == 1 || n_ranks == 2 || n_ranks == 4 || n_ranks == 8);
    assert(n_threads >= 1);
    *out = NULL;
    struct reduce *r = calloc(1, sizeof *r);
    size_t counts_bytes = (size_t)(n_ranks * n_threads) * sizeof(struct reduce_count);
    struct reduce_count *counts = aligned_alloc(64, counts_bytes);
    if (!r || !counts) {
        free(r);
        free(counts);
        return err_set(err, ERR_SYSTEM, "out of memory for the all-reduce");
    }
    memset(counts, 0, counts_bytes);
    r->n_ranks = n_ranks;
    r->n_threads = n_threads;
    r->counts = counts;
    for (int rank = 0; rank < n_ranks; rank++) {
        /* One piece for both buffers: at most one hole before it where it starts a huge page. */
        uint8_t *both = arena_alloc(arenas[rank], 2 * buffer_bytes(elements));
        assert(both && "the memory plan counts reduce_arena_bytes()");
        r->partial[0][rank] = (float *)both;
        r->partial[1][rank] = (float *)(both + buffer_bytes(elements));
    }
    *out = r;
    return 0;
}

void reduce_close(struct reduce *r)
{
    if (r)
        free(r->counts);
    free(r);
}

static struct reduce_count *count_of(const struct reduce *r, const struct worker *w)
{
    return &r->counts[w->rank * r->n_threads + w->thread];
}

float *reduce_buffer(struct reduce *r, const struct worker *w)
{
    return r->partial[count_of(r, w)->meets & 1][w->rank];
}

int reduce_meet(struct reduce *r, struct worker *w, const char *what)
{
    count_of(r, w)->meets++;
    if (w->thread == 0 && w->n_ranks > 1) /* a rank alone has nothing to reduce */
        worker_count(w, 0, 1, 0);
    return team_meet(w, what);
}

static void sum_2(const float *p0, const float *p1, size_t n, float *restrict out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = p0[i] + p1[i];
}

static void sum_4(const float *p0, const float *p1, const float *p2, const float *p3, size_t n,
                  float *restrict out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (p0[i] + p1[i]) + (p2[i] + p3[i]);
}

static void sum_8(float *const p[], size_t offset, size_t n, float *restrict out)
{
    const float *p0 = p[0] + offset, *p1 = p[1] + offset, *p2 = p[2] + offset, *p3 = p[3] + offset;
    const float *p4 = p[4] + offset, *p5 = p[5] + offset, *p6 = p[6] + offset, *p7 = p[7] + offset;
    for (size_t i = 0; i < n; i++)
        out[i] = ((p0[i] + p1[i]) + (p2[i] + p3[i])) + ((p4[i] + p5[i]) + (p6[i] + p7[i]));
}

void reduce_sum(const struct reduce *r, const struct worker *w, size_t offset, size_t n, float *out)
{
    float *const *p = r->partial[(count_of(r, w)->meets - 1) & 1];
    switch (r->n_ranks) {
    case 1:
        memcpy(out, p[0] + offset, n * sizeof(float));
        break;
    case 2:
        sum_2(p[0] + offset, p[1] + offset, n, out);
        break;
    case 4:
        sum_4(p[0] + offset, p[1] + offset, p[2] + offset, p[3] + offset, n, out);
        break;
    default:
        sum_8(p, offset, n, out);
        break;
    }
}

/* probe.c - see probe.h. */
#include "hw/probe.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { PASSES = 5 };
static const size_t BYTES = (size_t)64 << 20;

struct probe {
    _Atomic uint64_t ns[PASSES]; /* longest thread of each pass */
    _Atomic int n_threads;
    atomic_bool failed;
    _Atomic uint64_t sink;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t read_all(const uint64_t *p, size_t n)
{
    uint64_t sum[8] = {0};
    for (size_t i = 0; i < n; i += 8) {
        __builtin_prefetch(p + i + 1024); /* 8 KB ahead; beyond the end it is ignored */
        for (int j = 0; j < 8; j++)
            sum[j] += p[i + (size_t)j];
    }
    return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

static void probe_on_rank(struct worker *w, void *arg)
{
    struct probe *probe = arg;
    uint64_t *memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        atomic_store(&probe->failed, true);
    } else {
        madvise(memory, BYTES, MADV_HUGEPAGE);
        for (size_t i = 0; i < BYTES / 8; i++)
            memory[i] = i;
    }
    atomic_fetch_add(&probe->n_threads, 1);
    for (int pass = 0; pass < PASSES; pass++) {
        if (team_meet(w, "bandwidth probe"))
            break;
        if (atomic_load(&probe->failed))
            continue;
        uint64_t start = now_ns();
        atomic_fetch_add(&probe->sink, read_all(memory, BYTES / 8));
        uint64_t took = now_ns() - start, longest = atomic_load(&probe->ns[pass]);
        while (took > longest && !atomic_compare_exchange_weak(&probe->ns[pass], &longest, took))
            ;
    }
    if (memory != MAP_FAILED)
        munmap(memory, BYTES);
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

double probe_read_bandwidth(struct team *team)
{
    struct probe probe = {0};
    if (team_run(team, probe_on_rank, &probe, NULL) || atomic_load(&probe.failed))
        return 0;
    uint64_t ns[PASSES];
    for (int i = 0; i < PASSES; i++)
        ns[i] = atomic_load(&probe.ns[i]);
    qsort(ns, PASSES, sizeof *ns, compare);
    return (double)BYTES * atomic_load(&probe.n_threads) / ((double)ns[PASSES / 2] * 1e-9);
}

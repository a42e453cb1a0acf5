/* arena.c - see arena.h. The reservation is anonymous memory without swap reservation, so address space costs
 * nothing and pages come from the node at the first touch. */
#include "hw/arena.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* Soft binding on purpose: without HWLOC_MEMBIND_STRICT the kernel takes pages from elsewhere when the node
 * is full, which is slow and shows in arena_residency(), instead of killing the process. */
static bool bind_to_node(const struct topo *t, int node, void *base, size_t bytes)
{
    hwloc_nodeset_t nodes = hwloc_bitmap_alloc();
    if (!nodes)
        return false;
    hwloc_bitmap_only(nodes, (unsigned)node);
    bool bound = hwloc_set_area_membind(t->hwloc, base, bytes, nodes, HWLOC_MEMBIND_BIND,
                                        HWLOC_MEMBIND_BYNODESET) == 0;
    hwloc_bitmap_free(nodes);
    return bound;
}

int arena_open(struct arena *a, const struct topo *t, int rank, size_t bytes, bool *bound, struct err *err)
{
    assert(rank >= 0 && rank < t->n_ranks);
    memset(a, 0, sizeof *a);
    *bound = false;
    if (t->synthetic)
        return err_set(err, ERR_USAGE, "this machine is only described: no memory can be taken from it");
    if (bytes > SIZE_MAX / 2)
        return err_set(err, ERR_SYSTEM, "rank %d: cannot reserve %zu bytes of memory", rank, bytes);
    size_t reserved = round_up(bytes ? bytes : 1, ARENA_HUGE_PAGE);
    uint8_t *mapped = mmap(NULL, reserved + ARENA_HUGE_PAGE, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED)
        return err_set(err, ERR_SYSTEM, "rank %d: cannot reserve %zu bytes of memory: %s", rank, reserved,
                       strerror(errno));
    uint8_t *base = (uint8_t *)round_up((size_t)mapped, ARENA_HUGE_PAGE);
    size_t before = (size_t)(base - mapped);
    if (before)
        munmap(mapped, before);
    if (before < ARENA_HUGE_PAGE)
        munmap(base + reserved, ARENA_HUGE_PAGE - before);
    a->base = base;
    a->reserved_bytes = reserved;
    *bound = bind_to_node(t, t->places[rank].node, base, reserved);
    madvise(base, reserved, MADV_HUGEPAGE); /* a wish: kernels without huge pages refuse it */
    return 0;
}

void *arena_alloc(struct arena *a, size_t bytes)
{
    size_t start = bytes >= ARENA_HUGE_PAGE ? round_up(a->used_bytes, ARENA_HUGE_PAGE) : a->used_bytes;
    if (start > a->reserved_bytes || bytes > a->reserved_bytes - start)
        return NULL;
    a->used_bytes = start + round_up(bytes, 64);
    return a->base + start;
}

void arena_close(struct arena *a)
{
    if (a->base)
        munmap(a->base, a->reserved_bytes);
    memset(a, 0, sizeof *a);
}

/* Residency without nodes, for kernels that do not tell them. */
static uint64_t resident_by_mincore(const struct arena *a, size_t page)
{
    enum { CHUNK = 4096 };
    unsigned char present[CHUNK];
    uint64_t pages = 0;
    size_t total = round_up(a->used_bytes, page) / page;
    for (size_t first = 0; first < total; first += CHUNK) {
        size_t n = total - first < CHUNK ? total - first : CHUNK;
        if (mincore(a->base + first * page, n * page, present) != 0)
            continue;
        for (size_t i = 0; i < n; i++)
            pages += present[i] & 1;
    }
    return pages * page;
}

/* The page to ask about among `stride` neighbours. A hash rather than the first one, so that a regular
 * pattern of touched pages (blocks of a KV pool) does not bias the sample. */
static size_t sampled_page(size_t sample, size_t stride)
{
    uint64_t h = ((uint64_t)sample + 1) * 0x9e3779b97f4a7c15u;
    return sample * stride + (size_t)(h >> 32) % stride;
}

void arena_residency(const struct arena *a, int node, uint64_t *resident_bytes, uint64_t *local_bytes,
                     bool *known)
{
    /* Up to 1 GiB every page is asked. Above, one page of each 16 stands for its neighbours: exact where
     * whole stretches are alike, as they are after loading, and within 1 % (two standard deviations of such a
     * sample of at least 16384 pages) even where touched pages are scattered at random. */
    enum { CHUNK = 1024 };
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), total = round_up(a->used_bytes, page) / page;
    const size_t stride = a->used_bytes > (size_t)1 << 30 ? 16 : 1, samples = total / stride;
    void *pages[CHUNK];
    int status[CHUNK];
    uint64_t resident = 0, local = 0;
    *known = true;
    for (size_t first = 0; first < samples; first += CHUNK) {
        size_t n = samples - first < CHUNK ? samples - first : CHUNK;
        for (size_t i = 0; i < n; i++)
            pages[i] = a->base + sampled_page(first + i, stride) * page;
        if (syscall(SYS_move_pages, 0, n, pages, NULL, status, 0) != 0) {
            *known = false;
            *resident_bytes = *local_bytes = resident_by_mincore(a, page);
            return;
        }
        for (size_t i = 0; i < n; i++) {
            resident += status[i] >= 0; /* else a negative errno: no page there */
            local += status[i] == node;
        }
    }
    *resident_bytes = resident * stride * page;
    *local_bytes = local * stride * page;
}

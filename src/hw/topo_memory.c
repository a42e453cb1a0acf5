/* topo_memory.c - how much memory a place can still take: topo_available_bytes() of topo.h. Reads the
 * kernel's own accounts: /proc/meminfo, each node's meminfo, the limits of this process's cgroups (version 1
 * and 2). */
#include "hw/topo.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Reads a small text file of the kernel; false when it is not there. */
static bool read_text(const char *path, char *text, size_t size)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    size_t n = fread(text, 1, size - 1, f);
    fclose(f);
    text[n] = 0;
    return n > 0;
}

/* The number behind `label`, where the label starts a word; false when it is absent. */
static bool find_number(const char *text, const char *label, uint64_t *out)
{
    for (const char *p = text; (p = strstr(p, label)); p++) {
        if (p != text && p[-1] != ' ' && p[-1] != '\n')
            continue;
        char *end;
        const char *digits = p + strlen(label);
        *out = strtoull(digits, &end, 10);
        if (end != digits)
            return true;
    }
    return false;
}

static uint64_t number_or_zero(const char *text, const char *label)
{
    uint64_t n;
    return find_number(text, label, &n) ? n : 0;
}

static uint64_t difference(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Free and reclaimable bytes of a node, UINT64_MAX when the kernel does not tell. */
static uint64_t node_available(int node)
{
    char path[64], text[8192];
    snprintf(path, sizeof path, "/sys/devices/system/node/node%d/meminfo", node);
    uint64_t free_kb;
    if (!read_text(path, text, sizeof text) || !find_number(text, "MemFree:", &free_kb))
        return UINT64_MAX;
    /* File pages are given up on demand, except those of shared memory and those still to be written. */
    uint64_t kept_kb =
        number_or_zero(text, "Shmem:") + number_or_zero(text, "Dirty:") + number_or_zero(text, "Writeback:");
    uint64_t file_kb = difference(number_or_zero(text, "FilePages:"), kept_kb);
    return (free_kb + file_kb + number_or_zero(text, "SReclaimable:")) * 1024;
}

static uint64_t machine_available(void)
{
    char text[8192];
    uint64_t kb;
    if (!read_text("/proc/meminfo", text, sizeof text) || !find_number(text, "MemAvailable:", &kb))
        return UINT64_MAX;
    return kb * 1024;
}

/* Names of the files that a version of cgroups keeps its memory account in. */
struct cgroup_files {
    const char *root, *limit, *usage, *inactive, *active, *dirty;
};
static const struct cgroup_files cgroup_v1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                              "memory.usage_in_bytes", "total_inactive_file ",
                                              "total_active_file ",    "total_dirty "};
static const struct cgroup_files cgroup_v2 = {"/sys/fs/cgroup", "memory.max",   "memory.current",
                                              "inactive_file ", "active_file ", "file_dirty "};

/* What one cgroup's limit leaves, UINT64_MAX without a limit. */
static uint64_t cgroup_left(const struct cgroup_files *files, const char *group)
{
    char path[4352], text[8192];
    uint64_t limit, usage;
    snprintf(path, sizeof path, "%s%s/%s", files->root, group, files->limit);
    if (!read_text(path, text, sizeof text) || !find_number(text, "", &limit)) /* version 2 writes "max" */
        return UINT64_MAX;
    snprintf(path, sizeof path, "%s%s/%s", files->root, group, files->usage);
    if (!read_text(path, text, sizeof text) || !find_number(text, "", &usage))
        return UINT64_MAX;
    snprintf(path, sizeof path, "%s%s/memory.stat", files->root, group);
    uint64_t file = 0;
    if (read_text(path, text, sizeof text))
        file = difference(number_or_zero(text, files->inactive) + number_or_zero(text, files->active),
                          number_or_zero(text, files->dirty));
    return difference(limit, difference(usage, file));
}

/* The tightest limit from `group` up to the root. In a container the path may be the host's, with the
 * container's own group mounted as root; levels that are not there do not limit. */
static uint64_t cgroup_path_left(const struct cgroup_files *files, const char *group)
{
    char path[4096];
    snprintf(path, sizeof path, "%s", strcmp(group, "/") == 0 ? "" : group);
    uint64_t left = cgroup_left(files, path);
    for (char *slash; (slash = strrchr(path, '/'));) {
        *slash = 0;
        left = smaller(left, cgroup_left(files, path));
    }
    return left;
}

static uint64_t cgroups_available(void)
{
    char text[8192], *save = NULL;
    uint64_t left = UINT64_MAX;
    if (!read_text("/proc/self/cgroup", text, sizeof text))
        return left;
    /* Lines are "0::/path" for version 2 and "8:memory:/path" for version 1. */
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        *controllers++ = 0;
        *group++ = 0;
        if (*controllers == 0)
            left = smaller(left, cgroup_path_left(&cgroup_v2, group));
        else if (strcmp(controllers, "memory") == 0)
            left = smaller(left, cgroup_path_left(&cgroup_v1, group));
    }
    return left;
}

uint64_t topo_available_bytes(const struct topo *t, int rank)
{
    assert(rank >= 0 && rank < t->n_ranks);
    if (t->synthetic)
        return t->places[rank].memory_bytes;
    uint64_t sharers = 0;
    for (int r = 0; r < t->n_ranks; r++)
        sharers += t->places[r].node == t->places[rank].node;
    uint64_t shared_by_all = smaller(machine_available(), cgroups_available());
    uint64_t available = node_available(t->places[rank].node);
    /* What limits all ranks together is divided evenly: each may count on its part whatever the others take.
     */
    if (available != UINT64_MAX)
        available /= sharers;
    if (shared_by_all != UINT64_MAX)
        available = smaller(available, shared_by_all / (uint64_t)t->n_ranks);
    return available != UINT64_MAX ? available : t->places[rank].memory_bytes;
}

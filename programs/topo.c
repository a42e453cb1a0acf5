/* topo.c - `yoke topo`: the parts of this machine, or of a described one, and which rank would get what. */
#include "command.h"
#include "options.h"
#include "report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct topo_args {
    const char *synthetic, *tp;
    int threads;
    bool json;
};

struct counts {
    int ranks, nodes, l3, cores, cpus, threads_per_rank;
};

static const char ABOUT[] = "Shows the parts of this machine and which rank would get what.\n";
static const char EXAMPLES[] = "  yoke topo\n"
                               "  yoke topo --tp 2\n"
                               "  yoke topo --synthetic \"numa:2 l3:2 core:8 pu:2\" --json\n";

static enum options_result parse(int argc, char **argv, struct topo_args *a)
{
    *a = (struct topo_args){.tp = "auto"};
    const struct option options[] = {
        {"synthetic", 0, OPTION_STRING, &a->synthetic, "TEXT",
         .help = "a described machine in hwloc's syntax instead of this\none: \"numa:2 l3:2 core:8 pu:1\""},
        {"tp", 0, OPTION_CHOICE, &a->tp, "N", .help = "ranks: 1, 2, 4, 8 or auto (default: auto)",
         .choices = "auto|1|2|4|8"},
        {"threads", 0, OPTION_INT, &a->threads, "N", .help = "threads per rank (default: one per core)",
         .min = 1, .max = 4096},
        {"json", 0, OPTION_FLAG, &a->json, NULL, .help = "one JSON object on stdout"},
    };
    const struct option_group groups[] = {{"Options", options, sizeof options / sizeof *options}};
    const struct command_line line = {"topo", "", ABOUT, EXAMPLES, groups, 1};
    return options_parse(&line, argc, argv, NULL);
}

static const char *plural(int n)
{
    return n == 1 ? "" : "s";
}

static void format_available(const struct yoke_place *place, char out[REPORT_BYTES_SIZE])
{
    if (place->available_bytes)
        report_bytes(place->available_bytes, out);
    else
        snprintf(out, REPORT_BYTES_SIZE, "-");
}

static int print_table(const struct yoke_topo *topo, const struct counts *c)
{
    struct yoke_place place;
    char cpus[REPORT_CPUS_SIZE], memory[REPORT_BYTES_SIZE], available[REPORT_BYTES_SIZE];
    int width = 4;

    for (int i = 0; i < c->ranks; i++) {
        yoke_topo_place(topo, i, &place);
        report_cpus(place.cpus, place.n_cpus, place.n_cpus, cpus);
        if ((int)strlen(cpus) > width)
            width = (int)strlen(cpus);
    }
    printf("%d NUMA node%s, %d L3 domain%s, %d core%s, %d CPU%s; instruction sets of this machine: %s\n",
           c->nodes, plural(c->nodes), c->l3, plural(c->l3), c->cores, plural(c->cores), c->cpus,
           plural(c->cpus), yoke_isa_list());
    printf("%d rank%s of %d thread%s\n\n", c->ranks, plural(c->ranks), c->threads_per_rank,
           plural(c->threads_per_rank));
    printf("rank  part     node  %-*s      memory        free\n", width, "cpus");
    for (int i = 0; i < c->ranks; i++) {
        yoke_topo_place(topo, i, &place);
        report_cpus(place.cpus, place.n_cpus, place.n_cpus, cpus);
        report_bytes(place.memory_bytes, memory);
        format_available(&place, available);
        printf("%4d  %-7s  %4d  %-*s  %10s  %10s\n", place.rank, place.kind, place.node, width, cpus, memory,
               available);
    }
    return EXIT_DONE;
}

static json_t *place_json(const struct yoke_place *place)
{
    json_t *cpus = json_array();

    for (int i = 0; i < place->n_cpus; i++) {
        if (json_array_append_new(cpus, json_integer(place->cpus[i])) < 0) {
            json_decref(cpus);
            return NULL;
        }
    }
    return json_pack("{s:i s:s s:i s:o s:I s:I}", "rank", place->rank, "kind", place->kind, "node",
                     place->node, "cpus", cpus, "memory_bytes", (json_int_t)place->memory_bytes,
                     "available_bytes", (json_int_t)place->available_bytes);
}

static int print_json(const struct yoke_topo *topo, const struct counts *c)
{
    json_t *ranks = json_array();

    for (int i = 0; i < c->ranks; i++) {
        struct yoke_place place;
        yoke_topo_place(topo, i, &place);
        if (json_array_append_new(ranks, place_json(&place)) < 0) {
            json_decref(ranks);
            return report_json_print(NULL);
        }
    }
    return report_json_print(json_pack("{s:i s:i s:i s:i s:i s:i s:s s:o}", "nodes", c->nodes, "l3", c->l3,
                                       "cores", c->cores, "cpus", c->cpus, "tp", c->ranks, "threads",
                                       c->threads_per_rank, "isa", yoke_isa_list(), "ranks", ranks));
}

int command_topo(int argc, char **argv)
{
    struct topo_args args;
    struct counts c;
    struct yoke_topo *topo;
    struct yoke_error error = {0};

    switch (parse(argc, argv, &args)) {
    case OPTIONS_HELP:
        return EXIT_DONE;
    case OPTIONS_BAD:
        return EXIT_USAGE;
    case OPTIONS_OK:
        break;
    }
    int tp = strcmp(args.tp, "auto") == 0 ? 0 : atoi(args.tp);
    int code = yoke_topo_open(&topo, args.synthetic, tp, args.threads, &error);
    if (code < 0)
        return report_failure(code, &error);
    c.ranks = yoke_topo_counts(topo, &c.nodes, &c.l3, &c.cores, &c.cpus, &c.threads_per_rank);
    int status = args.json ? print_json(topo, &c) : print_table(topo, &c);
    yoke_topo_close(topo);
    return status;
}

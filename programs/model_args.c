/* model_args.c - see model_args.h. */
#include "model_args.h"
#include "command.h"
#include "progress.h"
#include "report.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

struct option_group model_args_group(struct model_args *args, struct option table[MODEL_ARGS_OPTIONS])
{
    *args = (struct model_args){.tp = "auto", .device = "auto", .isa = "auto", .kv = "auto"};
    const struct option options[MODEL_ARGS_OPTIONS] = {
        {"tp", 0, OPTION_CHOICE, &args->tp, "N",
         .help = "ranks to split the model over: 1, 2, 4, 8 or auto\n(default: auto, one per part of the "
                 "machine)",
         .choices = "auto|1|2|4|8"},
        {"threads", 0, OPTION_INT, &args->threads, "N", .help = "threads per rank (default: one per core)",
         .min = 1, .max = 4096},
        {"device", 0, OPTION_CHOICE, &args->device, "NAME", .help = "cpu or auto (default: auto)",
         .choices = "auto|cpu"},
        {"ctx", 0, OPTION_INT, &args->ctx, "N",
         .help = "positions a sequence may have (default: the model's,\nat most 4096, unless said otherwise "
                 "above)",
         .min = 1, .max = INT_MAX},
        {"kv", 0, OPTION_CHOICE, &args->kv, "TYPE",
         .help = "type of the KV cache: f32, f16, q8 or auto (default:\nauto, f32 for fp32 checkpoints, else "
                 "f16)",
         .choices = "auto|f32|f16|q8"},
        {"memory-per-rank", 0, OPTION_SIZE, &args->memory_per_rank, "SIZE",
         .help = "what one rank may use, as 800M or 1.5G (default:\nwhat its part of the machine has free)"},
        {"isa", 0, OPTION_CHOICE, &args->isa, "NAME",
         .help = "kernels: auto, ref, avx2 or avx512; amx and neon are\nnot in this version (default: auto, "
                 "the best there is)",
         .choices = "auto|ref|avx2|avx512|amx|neon"},
        {"chunk", 0, OPTION_INT, &args->chunk, "N", .help = "prompt positions per step (default: 512)",
         .min = 1, .max = 65536},
        {"stall-seconds", 0, OPTION_DOUBLE, &args->stall_seconds, "S",
         .help = "a rank without progress for so long fails the run\n(default: 10)", .min = 0.01,
         .max = 86400},
        {"inject-stall", 0, OPTION_INT, &args->inject_stall, "R",
         .help = "for testing: rank R, counted from 1, hangs in its\nsecond step (default: none)", .min = 1,
         .max = 8},
        {"quiet", 0, OPTION_FLAG, &args->quiet, NULL, .help = "no progress bar, no tables on stderr"},
    };
    memcpy(table, options, sizeof options);
    return (struct option_group){"Model and machine", table, MODEL_ARGS_OPTIONS};
}

int model_args_open(const struct model_args *args, const char *model, int ctx, int max_requests,
                    struct yoke **out)
{
    struct progress progress;
    struct yoke_error error = {0};
    struct yoke_options options = {
        .model = model,
        .tp = strcmp(args->tp, "auto") == 0 ? 0 : atoi(args->tp),
        .threads = args->threads,
        .device = args->device,
        .isa = args->isa,
        .ctx = args->ctx ? args->ctx : ctx,
        .kv = args->kv,
        .memory_per_rank = args->memory_per_rank,
        .chunk = args->chunk,
        .max_requests = max_requests,
        .stall_seconds = args->stall_seconds,
        .inject_stall = args->inject_stall,
        .progress = progress_update,
        .progress_user = &progress,
    };

    progress_init(&progress, args->quiet);
    int code = yoke_open(out, &options, &error);
    progress_end(&progress);
    if (code < 0)
        return report_failure(code, &error);
    return EXIT_DONE;
}

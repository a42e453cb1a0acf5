/* model_args.h - the options shared by all commands that load a model, and the loading itself. Main thread
 * only. */
#ifndef PROGRAMS_MODEL_ARGS_H
#define PROGRAMS_MODEL_ARGS_H

#include "options.h"
#include "yoke.h"

struct model_args {
    const char *tp, *device, *isa, *kv;
    int threads, ctx, chunk, inject_stall;
    uint64_t memory_per_rank;
    double stall_seconds;
    bool quiet;
};

enum { MODEL_ARGS_OPTIONS = 11 };

/* Describes the options in table; their values go to *args, which gets the defaults. */
struct option_group model_args_group(struct model_args *args, struct option table[MODEL_ARGS_OPTIONS]);

/* Opens a model, with a progress bar unless quiet. ctx: used where the person gave none. Returns an exit
 * status, after one line on stderr if it is not EXIT_DONE. */
int model_args_open(const struct model_args *args, const char *model, int ctx, int max_requests,
                    struct yoke **out);

#endif

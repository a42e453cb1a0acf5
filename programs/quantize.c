/* quantize.c - `yoke quantize`: writes a checkpoint with 3, 4, 5, 6 or 8 bits per weight. */
#include "command.h"
#include "interrupt.h"
#include "options.h"
#include "progress.h"
#include "report.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct quantize_args {
    const char *output, *bits, *group;
    bool quiet;
};

static const char ABOUT[] =
    "Writes a copy of a model with fewer bits per weight: a directory with config.json,\n"
    "model.safetensors (MLX affine format: a scale and a bias per group of weights) and the\n"
    "tokenizer's files. MODEL is a checkpoint directory with float weights.\n";
static const char EXAMPLES[] = "  yoke quantize Llama-3.2-1B -o Llama-3.2-1B-4bit\n"
                               "  yoke quantize Llama-3.2-1B -o model-6bit --bits 6 --group 32\n";

static enum options_result parse(int argc, char **argv, struct quantize_args *a,
                                 const char *operands[OPTIONS_MAX_OPERANDS])
{
    *a = (struct quantize_args){.bits = "4", .group = "64"};
    const struct option options[] = {
        {"output", 'o', OPTION_STRING, &a->output, "DIR", .help = "the directory to create; must be given"},
        {"bits", 0, OPTION_CHOICE, &a->bits, "B", .help = "bits per weight: 3, 4, 5, 6 or 8 (default: 4)",
         .choices = "3|4|5|6|8"},
        {"group", 0, OPTION_CHOICE, &a->group, "G",
         .help = "weights that share a scale: 32, 64 or 128 (default: 64)", .choices = "32|64|128"},
        {"quiet", 0, OPTION_FLAG, &a->quiet, NULL, .help = "no progress bar"},
    };
    const struct option_group groups[] = {{"Options", options, sizeof options / sizeof *options}};
    const struct command_line line = {"quantize", "MODEL", ABOUT, EXAMPLES, groups, 1};
    return options_parse(&line, argc, argv, operands);
}

static bool is_weights(const char *name)
{
    const char *dot = strrchr(name, '.');

    return dot && strcmp(dot, ".safetensors") == 0;
}

/* Bytes of the weight files of a model: the file itself, or the safetensors in the directory. 0 if unknown.
 */
static uint64_t weight_file_bytes(const char *path)
{
    struct stat st;
    uint64_t bytes = 0;

    if (stat(path, &st) < 0)
        return 0;
    if (!S_ISDIR(st.st_mode))
        return (uint64_t)st.st_size;
    DIR *directory = opendir(path);
    if (!directory)
        return 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        if (is_weights(entry->d_name) && fstatat(dirfd(directory), entry->d_name, &st, 0) == 0)
            bytes += (uint64_t)st.st_size;
    }
    closedir(directory);
    return bytes;
}

static void print_sizes(const char *model, const struct quantize_args *a)
{
    uint64_t before = weight_file_bytes(model), after = weight_file_bytes(a->output);
    char was[REPORT_BYTES_SIZE], is[REPORT_BYTES_SIZE];

    report_bytes(before, was);
    report_bytes(after, is);
    printf("%s: %s bits, group %s, %s of weights (%s before, %.2f times smaller)\n", a->output, a->bits,
           a->group, is, was, after ? (double)before / (double)after : 0);
}

int command_quantize(int argc, char **argv)
{
    struct quantize_args args;
    const char *operands[OPTIONS_MAX_OPERANDS];
    struct progress progress;
    struct yoke_error error = {0};

    switch (parse(argc, argv, &args, operands)) {
    case OPTIONS_HELP:
        return EXIT_DONE;
    case OPTIONS_BAD:
        return EXIT_USAGE;
    case OPTIONS_OK:
        break;
    }
    if (!args.output || !*args.output)
        return report_usage("quantize", "-o DIR is missing: where to write the new checkpoint");
    const struct yoke_quantize_options options = {
        .model = operands[0],
        .output = args.output,
        .bits = atoi(args.bits),
        .group = atoi(args.group),
        .progress = progress_update,
        .progress_user = &progress,
    };
    interrupt_install(true);
    progress_init(&progress, args.quiet);
    int code = yoke_quantize(&options, &error);
    progress_end(&progress);
    if (code < 0)
        return report_failure(code, &error);
    print_sizes(operands[0], &args);
    return EXIT_DONE;
}

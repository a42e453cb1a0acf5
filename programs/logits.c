/* logits.c - `yoke logits`: the logits of every position of given token ids, for checking against other
 * implementations. Owns the output file: a regular file appears whole or not at all. */
#include "command.h"
#include "input.h"
#include "interrupt.h"
#include "model_args.h"
#include "options.h"
#include "report.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "floats are written as they lie in memory");

struct logits_args {
    struct model_args model;
    const char *ids, *output;
};

/* Where the floats go. */
struct output {
    const char *path; /* as given */
    char *temporary;  /* what is written until it is complete; NULL: written to path directly */
    FILE *file;
};

static const char ABOUT[] =
    "Writes the logits of every position of given token ids: raw little-endian 32-bit floats, one row\n"
    "of the vocabulary's size per id. The file appears when it is complete.\n";
static const char EXAMPLES[] =
    "  yoke logits demo --ids 0,17,4 -o logits.f32\n"
    "  yoke tokenize demo -p \"Once\" --json > ids.json; yoke logits demo --ids ids.json -o out.f32\n";

static enum options_result parse(int argc, char **argv, struct logits_args *a,
                                 const char *operands[OPTIONS_MAX_OPERANDS])
{
    *a = (struct logits_args){0};
    const struct option options[] = {
        {"ids", 0, OPTION_STRING, &a->ids, "IDS",
         .help = "1,2,3 or a JSON file; must be given. --ctx is their\nnumber unless given"},
        {"output", 'o', OPTION_STRING, &a->output, "FILE",
         .help = "where to write (- for stdout); must be given"},
    };
    struct option model[MODEL_ARGS_OPTIONS];
    const struct option_group groups[] = {
        {"Options", options, sizeof options / sizeof *options},
        model_args_group(&a->model, model),
    };
    const struct command_line line = {"logits", "MODEL", ABOUT, EXAMPLES, groups, 2};
    return options_parse(&line, argc, argv, operands);
}

/* ---- output ---- */

static int output_error(const struct output *o)
{
    return report_error("%s: %s", o->file == stdout ? "stdout" : o->path, strerror(errno));
}

/* A regular file is written beside its final name and renamed when complete; anything else (a pipe, a device)
 * must be written in place. */
static int output_open(struct output *o, const char *path)
{
    struct stat st;

    *o = (struct output){.path = path};
    if (strcmp(path, "-") == 0) {
        o->file = stdout;
        return EXIT_DONE;
    }
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
        o->file = fopen(path, "wb");
        return o->file ? EXIT_DONE : output_error(o);
    }
    size_t size = strlen(path) + sizeof ".XXXXXX";
    o->temporary = malloc(size);
    if (!o->temporary)
        return report_error("out of memory");
    snprintf(o->temporary, size, "%s.XXXXXX", path);
    int fd = mkstemp(o->temporary);
    if (fd >= 0) {
        mode_t mask = umask(0);
        umask(mask);
        o->file = fchmod(fd, 0666 & ~mask) == 0 ? fdopen(fd, "wb") : NULL;
    }
    if (o->file)
        return EXIT_DONE;
    int status = output_error(o);
    if (fd >= 0) {
        close(fd);
        unlink(o->temporary);
    }
    free(o->temporary);
    o->temporary = NULL;
    return status;
}

/* complete: the file is whole; otherwise nothing is left of it. Returns an exit status. */
static int output_close(struct output *o, bool complete)
{
    int status = EXIT_DONE;

    if (o->file == stdout)
        return complete ? report_flush(EXIT_DONE) : EXIT_DONE;
    if (fclose(o->file) != 0 && complete)
        status = output_error(o);
    if (o->temporary && complete && status == EXIT_DONE && rename(o->temporary, o->path) != 0)
        status = output_error(o);
    if (o->temporary && (!complete || status != EXIT_DONE))
        unlink(o->temporary);
    free(o->temporary);
    return status;
}

/* ---- logits ---- */

/* Runs the ids through the model and writes every row as it comes. Returns an exit status. */
static int write_logits(struct yoke *y, const int32_t *ids, size_t n, struct output *o)
{
    size_t n_vocab = (size_t)yoke_get_info(y)->n_vocab;
    struct yoke_request_options options = {.tokens = ids, .n_tokens = n, .prompt_logits = true};
    struct yoke_request *request;
    struct yoke_event event;
    struct yoke_error error = {0};
    int status = EXIT_DONE;

    yoke_sampling_defaults(&options.sampling);
    int code = yoke_submit(y, &options, &request, &error);
    if (code < 0)
        return report_failure(code, &error);
    interrupt_watch(request);
    do {
        yoke_next(request, &event);
        if (event.kind != YOKE_EVENT_LOGITS || status != EXIT_DONE)
            continue;
        size_t count = (size_t)event.n_positions * n_vocab;
        if (fwrite(event.logits, sizeof *event.logits, count, o->file) != count) {
            status = output_error(o);
            yoke_cancel(request);
        }
    } while (event.kind != YOKE_EVENT_FINISHED);
    interrupt_watch(NULL);
    if (status == EXIT_DONE && event.finish == YOKE_FINISH_ERROR)
        status = report_failure(event.error.code, &event.error);
    if (status == EXIT_DONE && event.finish == YOKE_FINISH_CANCELED)
        status = EXIT_INTERRUPTED;
    yoke_request_close(request);
    return status;
}

/* Writes everything into the output file. Returns an exit status. */
static int write_file(const struct logits_args *a, struct yoke *y, const int32_t *ids, size_t n)
{
    struct output output;
    char size[REPORT_BYTES_SIZE];
    int status = output_open(&output, a->output);

    if (status != EXIT_DONE)
        return status;
    status = write_logits(y, ids, n, &output);
    int closed = output_close(&output, status == EXIT_DONE);
    if (status == EXIT_DONE)
        status = closed;
    if (status == EXIT_DONE && !a->model.quiet) {
        int n_vocab = yoke_get_info(y)->n_vocab;
        report_bytes(sizeof(float) * n * (size_t)n_vocab, size);
        fprintf(stderr, "%s: %zu rows of %d floats, %s\n", a->output, n, n_vocab, size);
    }
    return status;
}

static int check(const struct logits_args *a)
{
    if (!a->ids)
        return report_usage("logits", "--ids is missing: 1,2,3 or a JSON file");
    if (!a->output || !*a->output)
        return report_usage("logits", "-o FILE is missing: where to write the floats");
    struct stat out, terminal;
    bool to_stdout = strcmp(a->output, "-") == 0;
    if ((to_stdout && isatty(STDOUT_FILENO)) ||
        (isatty(STDOUT_FILENO) && stat(a->output, &out) == 0 && fstat(STDOUT_FILENO, &terminal) == 0 &&
         S_ISCHR(out.st_mode) && out.st_rdev == terminal.st_rdev))
        return report_usage("logits", "-o %s: raw floats are not for a terminal", a->output);
    return EXIT_DONE;
}

int command_logits(int argc, char **argv)
{
    struct logits_args args;
    const char *operands[OPTIONS_MAX_OPERANDS];
    struct yoke *y = NULL;
    int32_t *ids = NULL;
    size_t n = 0;

    switch (parse(argc, argv, &args, operands)) {
    case OPTIONS_HELP:
        return EXIT_DONE;
    case OPTIONS_BAD:
        return EXIT_USAGE;
    case OPTIONS_OK:
        break;
    }
    int status = check(&args);
    if (status == EXIT_DONE)
        status = input_ids(args.ids, &ids, &n);
    if (status == EXIT_DONE && n > INT_MAX)
        status = report_error("%s: %zu ids are too many", args.ids, n);
    if (status == EXIT_DONE) {
        interrupt_install(true);
        status = model_args_open(&args.model, operands[0], (int)n, 1, &y);
    }
    if (status == EXIT_DONE)
        status = write_file(&args, y, ids, n);
    if (y)
        yoke_close(y);
    free(ids);
    return status;
}

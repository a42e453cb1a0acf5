/* perplexity.c - `yoke perplexity`: how well a model predicts a text, and how far it is from another model.
 */
#include "command.h"
#include "input.h"
#include "interrupt.h"
#include "model_args.h"
#include "options.h"
#include "progress.h"
#include "report.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_WINDOW = 1024 };

struct perplexity_args {
    struct model_args model;
    uint64_t max_tokens;
    const char *reference;
    bool json;
};

static const char ABOUT[] =
    "Measures how well a model predicts a text. FILE (- for standard input) is tokenised whole, with\n"
    "the begin token first, and cut into consecutive windows of --ctx positions (default: 1024, or\n"
    "the model's context where that is shorter), each starting afresh.\n";
static const char EXAMPLES[] =
    "  yoke perplexity demo novel.txt\n"
    "  yoke perplexity model-4bit novel.txt --tokens 16384 --reference model-bf16\n";

static enum options_result parse(int argc, char **argv, struct perplexity_args *a,
                                 const char *operands[OPTIONS_MAX_OPERANDS])
{
    *a = (struct perplexity_args){0};
    const struct option options[] = {
        {"tokens", 0, OPTION_U64, &a->max_tokens, "N",
         .help = "only the first N predicted tokens, 0 = all (default: 0)"},
        {"reference", 0, OPTION_STRING, &a->reference, "MODEL2",
         .help = "also the mean KL divergence from this model, which\nmust have the same vocabulary"},
        {"json", 0, OPTION_FLAG, &a->json, NULL, .help = "one JSON object on stdout"},
    };
    struct option model[MODEL_ARGS_OPTIONS];
    const struct option_group groups[] = {
        {"Options", options, sizeof options / sizeof *options},
        model_args_group(&a->model, model),
    };
    const struct command_line line = {"perplexity", "MODEL FILE", ABOUT, EXAMPLES, groups, 2};
    return options_parse(&line, argc, argv, operands);
}

static int print_result(const struct perplexity_args *a, const struct yoke_info *info, int window,
                        const struct yoke_perplexity *p)
{
    if (!a->json) {
        printf("perplexity %.4f, %.6f nats per token over %" PRIu64 " tokens in windows of %d", p->perplexity,
               p->nll, p->n_tokens, window);
        if (a->reference)
            printf("; KL divergence from %s %.6f nats", a->reference, p->kl);
        printf(" (%.0f tok/s)\n", p->seconds > 0 ? (double)p->n_tokens / p->seconds : 0);
        return EXIT_DONE;
    }
    json_t *object = json_pack("{s:o s:i s:o s:o s:I s:o s:i s:s}", "model",
                               report_json_text(info->model, strlen(info->model)), "ctx", window,
                               "perplexity", report_json_real(p->perplexity), "nll", report_json_real(p->nll),
                               "tokens", (json_int_t)p->n_tokens, "seconds", report_json_real(p->seconds),
                               "tp", info->tp, "isa", info->isa);
    if (object && a->reference && json_object_set_new(object, "kl", report_json_real(p->kl)) < 0) {
        json_decref(object);
        object = NULL;
    }
    return report_json_print(object);
}

/* Measures and prints. Returns an exit status. */
static int measure(const struct perplexity_args *a, struct yoke *y, struct yoke *reference, const char *text,
                   size_t size)
{
    const struct yoke_info *info = yoke_get_info(y);
    int window = a->model.ctx || info->ctx < DEFAULT_WINDOW ? info->ctx : DEFAULT_WINDOW;
    struct yoke_perplexity result;
    struct yoke_error error = {0};
    struct progress progress;
    int32_t *ids;
    size_t n;

    int code = yoke_tokenize(y, text, size, true, false, &ids, &n, &error);
    if (code < 0)
        return report_failure(code, &error);
    progress_init(&progress, a->model.quiet);
    code = yoke_measure_perplexity(y, reference, ids, n, window, a->max_tokens, progress_update, &progress,
                                   &result, &error);
    progress_end(&progress);
    free(ids);
    if (code < 0)
        return report_failure(code, &error);
    return print_result(a, info, window, &result);
}

int command_perplexity(int argc, char **argv)
{
    struct perplexity_args args;
    const char *operands[OPTIONS_MAX_OPERANDS];
    struct yoke *y = NULL, *reference = NULL;
    char *text = NULL;
    size_t size = 0;

    switch (parse(argc, argv, &args, operands)) {
    case OPTIONS_HELP:
        return EXIT_DONE;
    case OPTIONS_BAD:
        return EXIT_USAGE;
    case OPTIONS_OK:
        break;
    }
    int status = input_read(operands[1], &text, &size);
    if (status == EXIT_DONE) {
        interrupt_install(true);
        status = model_args_open(&args.model, operands[0], 0, 1, &y);
    }
    if (status == EXIT_DONE && args.reference)
        status = model_args_open(&args.model, args.reference, 0, 1, &reference);
    if (status == EXIT_DONE)
        status = measure(&args, y, reference, text, size);
    if (reference)
        yoke_close(reference);
    if (y)
        yoke_close(y);
    free(text);
    return status;
}

/* run.c - `yoke run`: generates text from a prompt, or line by line on a terminal, and reports what every
 * rank did. */
#include "command.h"
#include "companions.h"
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
#include <unistd.h>

enum { DEFAULT_MAX_TOKENS = 256 };

struct run_args {
    struct model_args model;
    const char *prompt, *file, *ids;
    int max_tokens; /* -1 = not given */
    struct yoke_sampling sampling;
    struct option_list stop;
    int batch;
    bool echo, json, ignore_eos, no_bandwidth, interactive;
};

/* What the model has said. */
struct answer {
    FILE *stream; /* writes to text */
    char *text;
    size_t size;
    int32_t *tokens;
    size_t n_tokens, capacity;
    enum yoke_finish finish;
    struct yoke_request_stats stats;
};

/* ---- command line ---- */

static const char ABOUT[] =
    "Generates text that continues a prompt. The text streams to stdout, everything else goes to\n"
    "stderr; the last line there has the hash of the logits and the rates. Without -p, -f or --ids\n"
    "the prompt is read from standard input; on a terminal each line you type is added to the text\n"
    "so far and continued (an empty line or Ctrl-D ends). Ctrl-C stops and still reports.\n"
    "\n"
    "MODEL is a GGUF file, a directory with safetensors and config.json, 'demo', or\n"
    "'synth:SHAPE[:QUANT]' (random weights of a well-known shape; give it --ids).\n";

static const char EXAMPLES[] = "  yoke run demo -p \"It was a dark and stormy night\"\n"
                               "  yoke run demo -f letter.txt -n 64 --temp 0 --tp 2\n"
                               "  yoke run demo -p \"Once\" --json | python3 -m json.tool\n"
                               "  yoke run synth:llama-3.2-1b:mlx4 --ids 1,2,3 -n 32 --ignore-eos\n";

static enum options_result parse(int argc, char **argv, struct run_args *a,
                                 const char *operands[OPTIONS_MAX_OPERANDS])
{
    *a = (struct run_args){.max_tokens = -1, .batch = 1};
    yoke_sampling_defaults(&a->sampling);
    struct yoke_sampling *s = &a->sampling;
    const struct option text[] = {
        {"prompt", 'p', OPTION_STRING, &a->prompt, "TEXT",
         .help = "the prompt (an empty one: from the begin token alone)"},
        {"file", 'f', OPTION_STRING, &a->file, "FILE",
         .help = "the prompt is in FILE (- for standard input); one newline\nat the end is not part of it"},
        {"ids", 0, OPTION_STRING, &a->ids, "IDS", .help = "the prompt as token ids: 1,2,3 or a JSON file"},
        {"max-tokens", 'n', OPTION_INT, &a->max_tokens, "N",
         .help = "tokens to generate (default: 256, or as many as the\ncontext has room for)",
         .max = INT_MAX},
        {"stop", 0, OPTION_LIST, &a->stop, "TEXT", .help = "end before this text appears; may be repeated"},
        {"ignore-eos", 0, OPTION_FLAG, &a->ignore_eos, NULL, .help = "go on after the model's end token"},
        {"echo", 0, OPTION_FLAG, &a->echo, NULL, .help = "print the prompt before the text"},
    };
    const struct option sampling[] = {
        {"temp", 0, OPTION_DOUBLE, &s->temperature, "T",
         .help = "temperature, 0 = always the likeliest token (default: 0.8)", .max = 100},
        {"top-p", 0, OPTION_DOUBLE, &s->top_p, "P",
         .help = "only the likeliest tokens that make up P together,\n1 = off (default: 0.95)", .max = 1},
        {"top-k", 0, OPTION_INT, &s->top_k, "K", .help = "only the K likeliest tokens, 0 = off (default: 0)",
         .max = INT_MAX},
        {"min-p", 0, OPTION_DOUBLE, &s->min_p, "P",
         .help = "only tokens at least P times as likely as the likeliest,\n0 = off (default: 0)", .max = 1},
        {"repeat-penalty", 0, OPTION_DOUBLE, &s->repeat_penalty, "X",
         .help = "makes the last 64 tokens less likely, 1 = off (default: 1)", .min = 0.01, .max = 100},
        {"seed", 0, OPTION_U64, &s->seed, "N", .help = "the same seed gives the same text (default: 0)"},
    };
    const struct option output[] = {
        {"json", 0, OPTION_FLAG, &a->json, NULL,
         .help = "one JSON object on stdout at the end instead of the text"},
        {"no-bandwidth", 0, OPTION_FLAG, &a->no_bandwidth, NULL,
         .help = "do not measure the read bandwidth afterwards (0.3 s)"},
        {"batch", 0, OPTION_INT, &a->batch, "N",
         .help =
             "also runs N-1 other requests beside it, for testing that\nthe answer does not depend on them "
             "(default: 1)",
         .min = 1, .max = 64},
    };
    struct option model[MODEL_ARGS_OPTIONS];
    const struct option_group groups[] = {
        {"Text", text, sizeof text / sizeof *text},
        {"Sampling", sampling, sizeof sampling / sizeof *sampling},
        {"Output", output, sizeof output / sizeof *output},
        model_args_group(&a->model, model),
    };
    const struct command_line line = {"run",    "MODEL", ABOUT,
                                      EXAMPLES, groups,  sizeof groups / sizeof *groups};
    return options_parse(&line, argc, argv, operands);
}

/* What the parser cannot see in one option alone. Returns an exit status. */
static int check(struct run_args *a)
{
    if ((a->prompt != NULL) + (a->file != NULL) + (a->ids != NULL) > 1)
        return report_usage("run", "-p, -f and --ids are three ways to give the prompt: give one");
    for (size_t i = 0; i < a->stop.n; i++) {
        if (!*a->stop.items[i])
            return report_usage("run", "--stop: the text is empty");
    }
    a->interactive = !a->prompt && !a->file && !a->ids && isatty(STDIN_FILENO);
    if (a->interactive && a->json)
        return report_usage("run", "--json needs a prompt: -p, -f, --ids or standard input");
    if (a->interactive && a->batch > 1)
        return report_usage("run", "--batch needs a prompt: -p, -f, --ids or standard input");
    return EXIT_DONE;
}

/* ---- the answer ---- */

static int answer_init(struct answer *a)
{
    *a = (struct answer){.finish = YOKE_FINISH_LENGTH};
    a->stream = open_memstream(&a->text, &a->size);
    /* the flush makes text an empty string */
    return a->stream && fflush(a->stream) == 0 ? EXIT_DONE : report_error("out of memory");
}

static void answer_free(struct answer *a)
{
    if (a->stream)
        fclose(a->stream);
    free(a->text);
    free(a->tokens);
}

static int answer_add_token(struct answer *a, int32_t token)
{
    if (a->n_tokens == a->capacity) {
        size_t capacity = a->capacity ? 2 * a->capacity : 256;
        int32_t *more = realloc(a->tokens, capacity * sizeof *more);
        if (!more)
            return report_error("out of memory after %zu tokens", a->n_tokens);
        a->tokens = more;
        a->capacity = capacity;
    }
    a->tokens[a->n_tokens++] = token;
    return EXIT_DONE;
}

static int answer_add_text(struct answer *a, const char *text, size_t size, bool print)
{
    if (size == 0)
        return EXIT_DONE;
    if (fwrite(text, 1, size, a->stream) != size || fflush(a->stream) != 0)
        return report_error("out of memory for the text");
    if (!print)
        return EXIT_DONE;
    fwrite(text, 1, size, stdout);
    return report_flush(EXIT_DONE);
}

/* Takes the events of a request to its end; after a failure of ours cancels it and lets the rest go by. */
static int answer_follow(struct answer *a, struct yoke_request *request, bool print)
{
    struct yoke_event event;
    int status = EXIT_DONE;

    do {
        yoke_next(request, &event);
        if (status != EXIT_DONE)
            continue;
        if (event.kind == YOKE_EVENT_TOKEN)
            status = answer_add_token(a, event.token);
        if (status == EXIT_DONE && event.kind != YOKE_EVENT_LOGITS)
            status = answer_add_text(a, event.text, event.text_size, print);
        if (status != EXIT_DONE)
            yoke_cancel(request);
    } while (event.kind != YOKE_EVENT_FINISHED);
    a->finish = event.finish;
    /* the error, if any, must not end up in the middle of the text's last line */
    if (print && status == EXIT_DONE && isatty(STDOUT_FILENO) && a->size > 0 &&
        a->text[a->size - 1] != '\n') {
        putchar('\n');
        status = report_flush(EXIT_DONE);
    }
    if (status == EXIT_DONE && event.finish == YOKE_FINISH_ERROR)
        status = report_failure(event.error.code, &event.error);
    if (status == EXIT_DONE && event.finish == YOKE_FINISH_CANCELED)
        status = EXIT_INTERRUPTED;
    return status;
}

/* Generates from ids. Returns an exit status; EXIT_INTERRUPTED leaves what was generated in *answer. */
static int generate(const struct run_args *a, struct yoke *y, const int32_t *ids, size_t n,
                    struct answer *answer)
{
    size_t ctx = (size_t)yoke_get_info(y)->ctx,
           room = n < ctx ? ctx - n : 1; /* no room: the library says so */
    struct yoke_request_options options = {
        .tokens = ids,
        .n_tokens = n,
        .max_tokens = a->max_tokens >= 0          ? a->max_tokens
                      : room < DEFAULT_MAX_TOKENS ? (int)room
                                                  : DEFAULT_MAX_TOKENS,
        .sampling = a->sampling,
        .stop = a->stop.items,
        .n_stop = a->stop.n,
        .ignore_eos = a->ignore_eos,
    };
    struct companions *companions;
    struct yoke_request *request;
    struct yoke_error error = {0};
    int status = companions_start(&companions, y, &options, a->batch - 1);

    if (status != EXIT_DONE)
        return status;
    int code = yoke_submit(y, &options, &request, &error);
    if (code < 0) {
        status = report_failure(code, &error);
    } else {
        interrupt_watch(request);
        status = answer_follow(answer, request, !a->json);
        interrupt_watch(NULL);
        yoke_request_get_stats(request, &answer->stats);
        yoke_request_close(request);
    }
    int beside = companions_finish(companions);
    return status == EXIT_DONE ? beside : status;
}

/* ---- one prompt ---- */

/* Reads the prompt's text, or its ids. */
static int read_prompt(const struct run_args *a, char **text, size_t *size, int32_t **ids, size_t *n)
{
    int status;

    if (a->ids)
        return input_ids(a->ids, ids, n);
    if (a->prompt) {
        *size = strlen(a->prompt);
        *text = strdup(a->prompt);
        return *text ? EXIT_DONE : report_error("out of memory");
    }
    const char *path = a->file ? a->file : "-";
    status = input_read(path, text, size);
    if (status != EXIT_DONE)
        return status;
    if (*size > 0 && (*text)[*size - 1] == '\n')
        --*size;
    if (*size == 0)
        return report_error("%s: the prompt is empty", strcmp(path, "-") == 0 ? "standard input" : path);
    return EXIT_DONE;
}

static int tokenize(struct yoke *y, const char *text, size_t size, int32_t **ids, size_t *n)
{
    struct yoke_error error = {0};
    int code = yoke_tokenize(y, text, size, true, false, ids, n, &error);

    return code < 0 ? report_failure(code, &error) : EXIT_DONE;
}

static int echo_prompt(struct yoke *y, const char *text, size_t size, const int32_t *ids, size_t n)
{
    struct yoke_error error = {0};
    char *decoded = NULL;

    if (!text) {
        int code = yoke_detokenize(y, ids, n, false, &decoded, &size, &error);
        if (code < 0)
            return report_failure(code, &error);
        text = decoded;
    }
    fwrite(text, 1, size, stdout);
    free(decoded);
    return report_flush(EXIT_DONE);
}

/* ---- line by line ---- */

/* One turn: the text so far is continued. EXIT_DONE to go on; *full: there is no room for more. */
static int continue_text(const struct run_args *a, struct yoke *y, const char *text, size_t size,
                         struct answer *answer, bool *full)
{
    int32_t *ids = NULL;
    size_t n = 0;
    int status = tokenize(y, text, size, &ids, &n);

    *full = status == EXIT_DONE && n >= (size_t)yoke_get_info(y)->ctx;
    if (*full)
        fprintf(stderr,
                "The context is full (%zu of %d positions): start again, perhaps with a larger --ctx.\n", n,
                yoke_get_info(y)->ctx);
    else if (status == EXIT_DONE)
        status = generate(a, y, ids, n, answer);
    free(ids);
    return status;
}

/* Reads lines until an empty one. *answer keeps the last turn; *turns counts them. */
static int converse(const struct run_args *a, struct yoke *y, struct answer *answer, int *turns)
{
    char *history = NULL, *line = NULL;
    size_t size = 0, capacity = 0;
    FILE *stream = open_memstream(&history, &size);
    int status = stream ? EXIT_DONE : report_error("out of memory");
    bool full = false;

    while (status == EXIT_DONE && !full) {
        fputs("> ", stderr);
        ssize_t n = getline(&line, &capacity, stdin);
        if (interrupt_pending())
            status = EXIT_INTERRUPTED;
        if (n < 0)
            fputc('\n', stderr);
        if (n > 0 && line[n - 1] == '\n')
            n--;
        if (n <= 0 || status != EXIT_DONE)
            break;
        /* later lines start on a line of their own, as they do on the screen */
        if (size > 0 && history[size - 1] != '\n')
            fputc('\n', stream);
        fwrite(line, 1, (size_t)n, stream);
        if (fflush(stream) != 0) {
            status = report_error("out of memory for the text so far");
            break;
        }
        answer_free(answer);
        status = answer_init(answer);
        if (status == EXIT_DONE)
            status = continue_text(a, y, history, size, answer, &full);
        *turns += !full;
        if (answer->size > 0 && (fwrite(answer->text, 1, answer->size, stream) == 0 || fflush(stream) != 0))
            status = report_error("out of memory for the text so far");
    }
    if (stream)
        fclose(stream);
    free(history);
    free(line);
    return status;
}

/* ---- the end ---- */

/* Tables, closing line and JSON of a run that was done or interrupted. Returns the exit status. */
static int report(const struct run_args *a, struct yoke *y, const struct answer *answer, int status)
{
    struct report_run run = {.info = yoke_get_info(y), .stats = answer->stats};

    /* before the bandwidth is measured, which is work of the ranks too */
    run.n_ranks = yoke_get_rank_stats(y, run.ranks, REPORT_MAX_RANKS);
    if (!a->no_bandwidth && status == EXIT_DONE)
        run.bandwidth = yoke_measure_bandwidth(y);
    if (!a->model.quiet && !a->interactive)
        report_model(run.info);
    if (!a->model.quiet)
        report_run_table(&run);
    report_run_line(&run);
    if (a->json) {
        int printed = report_json_print(report_run_json(&run, answer->text, answer->size, answer->tokens,
                                                        answer->n_tokens, answer->finish));
        if (printed != EXIT_DONE)
            return printed;
    }
    int idle = report_idle_rank(&run);
    if (idle >= 0 && status == EXIT_DONE)
        return report_error("rank %d did no work in this run: use fewer ranks (--tp) and report it as a bug",
                            idle);
    return status;
}

static int run_prompt(const struct run_args *a, struct yoke *y, const char *text, size_t size, int32_t *ids,
                      size_t n)
{
    struct answer answer;
    int32_t *text_ids = NULL;
    int status = answer_init(&answer);

    if (status != EXIT_DONE)
        return status;
    if (text) {
        status = tokenize(y, text, size, &text_ids, &n);
        ids = text_ids;
    }
    if (status == EXIT_DONE && a->echo && !a->json)
        status = echo_prompt(y, text, size, ids, n);
    if (status == EXIT_DONE)
        status = generate(a, y, ids, n, &answer);
    if (status == EXIT_DONE || status == EXIT_INTERRUPTED)
        status = report(a, y, &answer, status);
    free(text_ids);
    answer_free(&answer);
    return status;
}

static int run_terminal(const struct run_args *a, struct yoke *y)
{
    struct answer answer;
    int turns = 0, status = answer_init(&answer);

    if (status != EXIT_DONE)
        return status;
    if (!a->model.quiet)
        report_model(yoke_get_info(y));
    status = converse(a, y, &answer, &turns);
    if (turns > 0 && (status == EXIT_DONE || status == EXIT_INTERRUPTED))
        status = report(a, y, &answer, status);
    answer_free(&answer);
    return status;
}

int command_run(int argc, char **argv)
{
    struct run_args args;
    const char *operands[OPTIONS_MAX_OPERANDS];
    char *text = NULL;
    int32_t *ids = NULL;
    size_t size = 0, n = 0;
    struct yoke *y = NULL;

    switch (parse(argc, argv, &args, operands)) {
    case OPTIONS_HELP:
        return EXIT_DONE;
    case OPTIONS_BAD:
        return EXIT_USAGE;
    case OPTIONS_OK:
        break;
    }
    int status = check(&args);
    if (status == EXIT_DONE && !args.interactive)
        status = read_prompt(&args, &text, &size, &ids, &n);
    if (status == EXIT_DONE) {
        interrupt_install(!args.interactive);
        status = model_args_open(&args.model, operands[0], 0, args.batch, &y);
    }
    if (status == EXIT_DONE && !args.ids && !yoke_get_info(y)->has_tokenizer)
        status = report_error("%s has no tokenizer: give the prompt as token ids, --ids 1,2,3", operands[0]);
    if (status == EXIT_DONE)
        status = args.interactive ? run_terminal(&args, y) : run_prompt(&args, y, text, size, ids, n);
    if (y)
        yoke_close(y);
    free(text);
    free(ids);
    return status;
}

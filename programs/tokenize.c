/* tokenize.c - `yoke tokenize`: text to token ids and back; reads the tokenizer's files only, not the
 * weights. */
#include "command.h"
#include "input.h"
#include "options.h"
#include "report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tokenize_args {
    const char *text, *file, *ids;
    bool no_bos, special, decode, json;
};

static const char ABOUT[] =
    "Prints the token ids of a text, separated by commas, or with --decode the text of ids. Without -p\n"
    "or -f the text is read from standard input, every byte of it.\n";
static const char EXAMPLES[] = "  yoke tokenize demo -p \"It was a dark night\"\n"
                               "  yoke tokenize demo -f novel.txt --json > ids.json\n"
                               "  yoke tokenize demo --decode --ids ids.json\n";

static enum options_result parse(int argc, char **argv, struct tokenize_args *a,
                                 const char *operands[OPTIONS_MAX_OPERANDS])
{
    *a = (struct tokenize_args){0};
    const struct option options[] = {
        {"prompt", 'p', OPTION_STRING, &a->text, "TEXT", .help = "the text"},
        {"file", 'f', OPTION_STRING, &a->file, "FILE", .help = "the text is in FILE (- for standard input)"},
        {"no-bos", 0, OPTION_FLAG, &a->no_bos, NULL, .help = "no begin token, even where the model has one"},
        {"special", 0, OPTION_FLAG, &a->special, NULL,
         .help = "text that spells a special token becomes that token;\nwith --decode: special tokens are "
                 "printed"},
        {"decode", 0, OPTION_FLAG, &a->decode, NULL, .help = "the other way: the text of --ids"},
        {"ids", 0, OPTION_STRING, &a->ids, "IDS", .help = "1,2,3 or a JSON file, as --json writes it"},
        {"json", 0, OPTION_FLAG, &a->json, NULL,
         .help = "one JSON object on stdout: {\"ids\":[...]}, or with\n--decode {\"text\":\"...\"}"},
    };
    const struct option_group groups[] = {{"Options", options, sizeof options / sizeof *options}};
    const struct command_line line = {"tokenize", "MODEL", ABOUT, EXAMPLES, groups, 1};
    return options_parse(&line, argc, argv, operands);
}

static int check(const struct tokenize_args *a)
{
    if (a->decode && (a->text || a->file || a->no_bos))
        return report_usage("tokenize", "--decode takes its ids from --ids, not -p, -f or --no-bos");
    if (a->decode && !a->ids)
        return report_usage("tokenize", "--decode needs --ids");
    if (a->ids && !a->decode)
        return report_usage("tokenize", "--ids needs --decode");
    if (a->text && a->file)
        return report_usage("tokenize", "-p and -f are two ways to give the text: give one");
    return EXIT_DONE;
}

static int print_ids(const struct tokenize_args *a, const int32_t *ids, size_t n)
{
    if (!a->json) {
        for (size_t i = 0; i < n; i++)
            printf(i ? ",%d" : "%d", ids[i]);
        putchar('\n');
        return EXIT_DONE;
    }
    json_t *array = json_array();
    for (size_t i = 0; i < n; i++) {
        if (json_array_append_new(array, json_integer(ids[i])) < 0) {
            json_decref(array);
            return report_json_print(NULL);
        }
    }
    return report_json_print(json_pack("{s:o}", "ids", array));
}

static int encode(const struct tokenize_args *a, const struct yoke_tokenizer *t)
{
    struct yoke_error error = {0};
    char *text = NULL;
    size_t size, n;
    int32_t *ids;
    int status = EXIT_DONE;

    if (a->text)
        size = strlen(a->text);
    else
        status = input_read(a->file ? a->file : "-", &text, &size);
    if (status != EXIT_DONE)
        return status;
    int code =
        yoke_tokenizer_encode(t, a->text ? a->text : text, size, !a->no_bos, a->special, &ids, &n, &error);
    free(text);
    if (code < 0)
        return report_failure(code, &error);
    status = print_ids(a, ids, n);
    free(ids);
    return status;
}

static int decode(const struct tokenize_args *a, const struct yoke_tokenizer *t)
{
    struct yoke_error error = {0};
    int32_t *ids;
    char *text;
    size_t n, size;
    int status = input_ids(a->ids, &ids, &n);

    if (status != EXIT_DONE)
        return status;
    int code = yoke_tokenizer_decode(t, ids, n, a->special, &text, &size, &error);
    free(ids);
    if (code < 0)
        return report_failure(code, &error);
    if (a->json)
        status = report_json_print(json_pack("{s:o}", "text", report_json_text(text, size)));
    else
        fwrite(text, 1, size, stdout);
    free(text);
    return status;
}

int command_tokenize(int argc, char **argv)
{
    struct tokenize_args args;
    const char *operands[OPTIONS_MAX_OPERANDS];
    struct yoke_tokenizer *t;
    struct yoke_error error = {0};

    switch (parse(argc, argv, &args, operands)) {
    case OPTIONS_HELP:
        return EXIT_DONE;
    case OPTIONS_BAD:
        return EXIT_USAGE;
    case OPTIONS_OK:
        break;
    }
    int status = check(&args);
    if (status != EXIT_DONE)
        return status;
    const struct yoke_options options = {.model = operands[0]};
    int code = yoke_tokenizer_open(&t, &options, &error);
    if (code < 0)
        return report_failure(code, &error);
    status = args.decode ? decode(&args, t) : encode(&args, t);
    yoke_tokenizer_close(t);
    return status;
}

/* yoke.c - the program `yoke`: finds the command and hands it its arguments. */
#include "yoke.h"
#include "command.h"
#include "options.h"
#include "report.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

struct command {
    const char *name;
    const char *operands;
    const char *summary;
    int (*run)(int argc, char **argv);
};

static const struct command commands[] = {
    {"run", "MODEL", "generate text from a prompt", command_run},
    {"topo", "", "show the parts of this machine and which rank would get what", command_topo},
    {"quantize", "MODEL -o DIR", "write a checkpoint with 3, 4, 5, 6 or 8 bits per weight", command_quantize},
    {"perplexity", "MODEL FILE", "measure how well a model predicts a text", command_perplexity},
    {"tokenize", "MODEL", "turn text into token ids and back", command_tokenize},
    {"logits", "MODEL --ids IDS -o FILE", "write the logits of given token ids", command_logits},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static int print_help(void)
{
    printf("usage: yoke COMMAND ... [options]\n"
           "\n"
           "Runs large language models on one machine, split over the parts that share its memory.\n"
           "\n"
           "Commands\n");
    for (int i = 0; i < N_COMMANDS; i++) {
        char label[64];
        snprintf(label, sizeof label, "%s %s", commands[i].name, commands[i].operands);
        printf("  %-33s %s\n", label, commands[i].summary);
    }
    printf(
        "\n"
        "MODEL is a GGUF file, a directory with safetensors and config.json (a Hugging Face or MLX\n"
        "checkpoint), 'demo' (the small model that comes with Yoke) or 'synth:SHAPE[:QUANT]' (random\n"
        "weights, for measuring).\n"
        "\n"
        "  yoke COMMAND --help         the options of a command\n"
        "  yoke --version              the version\n"
        "\n"
        "Example: yoke run demo -p \"It was a dark and stormy night\"\n"
        "\n"
        "Exit status: 0 done, 1 the model or the machine refused, 2 the command line is wrong, 130 stopped\n"
        "with Ctrl-C.\n");
    return EXIT_DONE;
}

static int unknown_command(const char *name)
{
    const char *guess = options_guess(name, commands, N_COMMANDS, sizeof *commands);

    if (name[0] == '-')
        return report_usage(NULL, "unknown option '%s' before the command (see yoke --help)", name);
    if (guess)
        return report_usage(NULL, "version %s has no command '%s' (did you mean %s?)", yoke_version(), name,
                            guess);
    return report_usage(NULL, "version %s has no command '%s' (see yoke --help)", yoke_version(), name);
}

static int dispatch(int argc, char **argv)
{
    if (argc < 2)
        return report_usage(NULL, "COMMAND is missing (see yoke --help)");
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        return print_help();
    if (strcmp(name, "--version") == 0) {
        printf("yoke %s\n", yoke_version());
        return EXIT_DONE;
    }
    for (int i = 0; i < N_COMMANDS; i++) {
        if (strcmp(name, commands[i].name) == 0)
            return commands[i].run(argc - 2, argv + 2);
    }
    return unknown_command(name);
}

int main(int argc, char **argv)
{
    /* a closed pipe is an error of the write, which is reported, not the end of the process */
    signal(SIGPIPE, SIG_IGN);
    int status = dispatch(argc, argv);
    return status == EXIT_DONE ? report_flush(status) : status;
}

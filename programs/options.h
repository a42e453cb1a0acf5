/* options.h - the one parser of command lines. A command describes its options in tables; from them come
 * parsing, messages for wrong input (with a guess at what was meant) and the --help text. Main thread only.
 */
#ifndef PROGRAMS_OPTIONS_H
#define PROGRAMS_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum option_type {
    OPTION_FLAG,   /* bool: no value */
    OPTION_INT,    /* int within [min, max] */
    OPTION_U64,    /* uint64_t */
    OPTION_SIZE,   /* uint64_t: bytes, 1.5G, 300M, 2KiB, 5GB */
    OPTION_DOUBLE, /* double within [min, max] */
    OPTION_STRING, /* const char * */
    OPTION_CHOICE, /* const char *: one of `choices` */
    OPTION_LIST,   /* struct option_list: may be given several times */
};

enum { OPTION_LIST_MAX = 16 };
struct option_list {
    const char *items[OPTION_LIST_MAX];
    size_t n;
};

struct option {
    const char *name; /* without the dashes */
    char letter;      /* short form, 0 = none */
    enum option_type type;
    void *value;          /* where the value goes; untouched when the option is not given */
    const char *argument; /* what help calls the value; NULL for a choice: the choices themselves */
    const char *help;     /* lines separated by \n */
    const char *choices;  /* "a|b|c" */
    double min, max;      /* inclusive; both 0 = no limits */
};

struct option_group {
    const char *title;
    const struct option *options;
    size_t n;
};

struct command_line {
    const char *command;  /* "run" */
    const char *operands; /* names of what is not an option, in order and all of them needed: "MODEL FILE" */
    const char *about;    /* help: what the command does, whole lines */
    const char *examples; /* help: whole lines */
    const struct option_group *groups;
    size_t n_groups;
};

enum { OPTIONS_MAX_OPERANDS = 2 };

enum options_result {
    OPTIONS_OK,
    OPTIONS_HELP, /* --help was given and has been printed: nothing more to do */
    OPTIONS_BAD,  /* one line was printed on stderr */
};

/* Fills the values of the options and operands[0..]. */
enum options_result options_parse(const struct command_line *line, int argc, char **argv,
                                  const char *operands[OPTIONS_MAX_OPERANDS]);

/* The name among candidates (n of them, stride bytes apart, each starting with a const char *) that was
 * probably meant, or NULL. */
const char *options_guess(const char *given, const void *candidates, size_t n, size_t stride);

#endif

/* options.c - see options.h. */
#include "options.h"
#include "report.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- guessing what was meant ---- */

enum { GUESS_MAX = 32 }; /* longer names are not guessed at */

/* Edits (insert, delete, replace, swap of neighbours) from a to b. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t la = strlen(a), lb = strlen(b);
    size_t d[GUESS_MAX + 1][GUESS_MAX + 1];

    if (la > GUESS_MAX || lb > GUESS_MAX)
        return SIZE_MAX;
    for (size_t i = 0; i <= la; i++) {
        for (size_t j = 0; j <= lb; j++) {
            if (i == 0 || j == 0) {
                d[i][j] = i + j;
                continue;
            }
            size_t best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (d[i - 1][j] + 1 < best)
                best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best)
                best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    }
    return d[la][lb];
}

const char *options_guess(const char *given, const void *candidates, size_t n, size_t stride)
{
    const char *best = NULL;
    size_t best_distance = strlen(given) <= 4 ? 2 : 3; /* a guess must be nearer than this */

    for (size_t i = 0; i < n; i++) {
        const char *name;
        memcpy(&name, (const char *)candidates + i * stride, sizeof name);
        size_t distance = edit_distance(given, name);
        if (distance < best_distance) {
            best = name;
            best_distance = distance;
        }
    }
    return best;
}

/* ---- values ---- */

static bool parse_whole(const char *text, long long *value)
{
    char *end;

    if (!isdigit((unsigned char)text[0]) && text[0] != '-')
        return false;
    errno = 0;
    *value = strtoll(text, &end, 10);
    return end != text && *end == '\0' && errno == 0;
}

static bool parse_u64(const char *text, uint64_t *value)
{
    char *end;

    if (!isdigit((unsigned char)text[0]))
        return false;
    errno = 0;
    *value = strtoull(text, &end, 10);
    return *end == '\0' && errno == 0;
}

static bool parse_real(const char *text, double *value, char **end)
{
    if (!isdigit((unsigned char)text[0]) && text[0] != '-' && text[0] != '.')
        return false;
    *value = strtod(text, end);
    return *end != text && isfinite(*value);
}

/* K, M, G, T and KiB… count in powers of 1024, as memory does; KB… in powers of 1000. */
static bool parse_size(const char *text, uint64_t *value)
{
    static const char letters[] = "KMGT";
    double number, unit = 1;
    char *end;

    if (!parse_real(text, &number, &end) || number < 0)
        return false;
    const char *letter = *end ? strchr(letters, toupper((unsigned char)*end)) : NULL;
    if (letter) {
        const char *rest = end + 1;
        double base = 1024;
        if (strcmp(rest, "B") == 0)
            base = 1000;
        else if (*rest && strcmp(rest, "iB") != 0)
            return false;
        for (long i = 0; i <= letter - letters; i++)
            unit *= base;
    } else if (*end && strcmp(end, "B") != 0) {
        return false;
    }
    if (number * unit >= 0x1p63)
        return false;
    *value = (uint64_t)(number * unit);
    return true;
}

static bool within(const struct option *o, double value)
{
    return (o->min == 0 && o->max == 0) || (value >= o->min && value <= o->max);
}

static enum options_result bad_value(const char *command, const struct option *o, const char *text,
                                     const char *expected)
{
    report_usage(command, "--%s: '%s' is not %s", o->name, text, expected);
    return OPTIONS_BAD;
}

static enum options_result bad_number(const char *command, const struct option *o, const char *text)
{
    char expected[128];
    const char *kind = o->type == OPTION_INT ? "a whole number" : "a number";

    if (o->min == 0 && o->max == 0)
        snprintf(expected, sizeof expected, "%s", kind);
    else if (o->max >= INT_MAX)
        snprintf(expected, sizeof expected, "%s, %g or more", kind, o->min);
    else
        snprintf(expected, sizeof expected, "%s from %g to %g", kind, o->min, o->max);
    return bad_value(command, o, text, expected);
}

static enum options_result set_choice(const char *command, const struct option *o, const char *text)
{
    char expected[256] = "one of ";
    size_t length = strlen(text), used = strlen(expected);

    for (const char *c = o->choices; *c;) {
        size_t n = strcspn(c, "|");
        if (n == length && memcmp(c, text, n) == 0) {
            *(const char **)o->value = text;
            return OPTIONS_OK;
        }
        c += n;
        int written =
            snprintf(expected + used, sizeof expected - used, "%.*s%s", (int)n, c - n, *c ? ", " : "");
        if (written > 0 && (size_t)written < sizeof expected - used)
            used += (size_t)written;
        c += *c == '|';
    }
    return bad_value(command, o, text, expected);
}

static enum options_result set_list(const char *command, const struct option *o, const char *text)
{
    struct option_list *list = o->value;

    if (list->n == OPTION_LIST_MAX) {
        report_usage(command, "--%s may be given %d times at most", o->name, OPTION_LIST_MAX);
        return OPTIONS_BAD;
    }
    list->items[list->n++] = text;
    return OPTIONS_OK;
}

static enum options_result set_value(const char *command, const struct option *o, const char *text)
{
    long long whole;
    double real;
    char *end;

    switch (o->type) {
    case OPTION_FLAG:
        *(bool *)o->value = true;
        return OPTIONS_OK;
    case OPTION_INT:
        if (!parse_whole(text, &whole) || whole < INT_MIN || whole > INT_MAX || !within(o, (double)whole))
            return bad_number(command, o, text);
        *(int *)o->value = (int)whole;
        return OPTIONS_OK;
    case OPTION_U64:
        return parse_u64(text, o->value) ? OPTIONS_OK
                                         : bad_value(command, o, text, "a whole number from 0 to 2^64 - 1");
    case OPTION_SIZE:
        return parse_size(text, o->value) ? OPTIONS_OK
                                          : bad_value(command, o, text, "a size such as 800M, 1.5G or 4096");
    case OPTION_DOUBLE:
        if (!parse_real(text, &real, &end) || *end || !within(o, real))
            return bad_number(command, o, text);
        *(double *)o->value = real;
        return OPTIONS_OK;
    case OPTION_STRING:
        *(const char **)o->value = text;
        return OPTIONS_OK;
    case OPTION_CHOICE:
        return set_choice(command, o, text);
    case OPTION_LIST:
        return set_list(command, o, text);
    }
    return OPTIONS_BAD;
}

/* ---- help ---- */

static void option_label(const struct option *o, char *label, size_t size)
{
    const char *argument = o->type == OPTION_FLAG ? NULL : o->argument ? o->argument : o->choices;
    char letter[8] = "    ";

    if (o->letter)
        snprintf(letter, sizeof letter, "-%c, ", o->letter);
    snprintf(label, size, "  %s--%s%s%s", letter, o->name, argument ? " " : "", argument ? argument : "");
}

enum { HELP_COLUMN = 30 };

static void print_option(const struct option *o)
{
    char label[128];
    const char *help = o->help;

    option_label(o, label, sizeof label);
    if (strlen(label) < HELP_COLUMN)
        printf("%-*s", HELP_COLUMN, label);
    else
        printf("%s\n%*s", label, HELP_COLUMN, "");
    for (;;) {
        size_t n = strcspn(help, "\n");
        fwrite(help, 1, n, stdout);
        putchar('\n');
        help += n;
        if (!*help++)
            break;
        printf("%*s", HELP_COLUMN, "");
    }
}

static void print_help(const struct command_line *line)
{
    printf("usage: yoke %s%s%s [options]\n\n%s", line->command, *line->operands ? " " : "", line->operands,
           line->about);
    for (size_t g = 0; g < line->n_groups; g++) {
        printf("\n%s\n", line->groups[g].title);
        for (size_t i = 0; i < line->groups[g].n; i++)
            print_option(&line->groups[g].options[i]);
    }
    if (line->examples)
        printf("\nExamples\n%s", line->examples);
}

/* ---- parsing ---- */

static const struct option *find_long(const struct command_line *line, const char *name, size_t length)
{
    for (size_t g = 0; g < line->n_groups; g++) {
        for (size_t i = 0; i < line->groups[g].n; i++) {
            const struct option *o = &line->groups[g].options[i];
            if (strlen(o->name) == length && memcmp(o->name, name, length) == 0)
                return o;
        }
    }
    return NULL;
}

static const struct option *find_short(const struct command_line *line, char letter)
{
    for (size_t g = 0; g < line->n_groups; g++) {
        for (size_t i = 0; i < line->groups[g].n; i++) {
            if (line->groups[g].options[i].letter == letter)
                return &line->groups[g].options[i];
        }
    }
    return NULL;
}

static enum options_result unknown_option(const struct command_line *line, const char *text, const char *name,
                                          size_t length)
{
    char given[GUESS_MAX + 1];
    const char *guess = NULL;

    if (length <= GUESS_MAX && length > 1) {
        memcpy(given, name, length);
        given[length] = '\0';
        for (size_t g = 0; g < line->n_groups && !guess; g++)
            guess = options_guess(given, line->groups[g].options, line->groups[g].n, sizeof(struct option));
    }
    if (guess)
        report_usage(line->command, "unknown option '%s' (did you mean --%s?)", text, guess);
    else
        report_usage(line->command, "unknown option '%s' (see yoke %s --help)", text, line->command);
    return OPTIONS_BAD;
}

/* Handles argv[*at], an option, and moves *at past its value where that is an argument of its own. */
static enum options_result parse_option(const struct command_line *line, int argc, char **argv, int *at)
{
    const char *text = argv[*at], *value = NULL;
    const struct option *o;

    if (text[1] == '-') {
        const char *name = text + 2;
        size_t length = strcspn(name, "=");
        o = find_long(line, name, length);
        if (!o)
            return unknown_option(line, text, name, length);
        if (name[length] == '=')
            value = name + length + 1;
    } else {
        o = find_short(line, text[1]);
        if (!o)
            return unknown_option(line, text, text + 1, strlen(text + 1));
        if (text[2])
            value = text + 2;
    }
    if (o->type == OPTION_FLAG && value) {
        report_usage(line->command, "--%s takes no value", o->name);
        return OPTIONS_BAD;
    }
    if (o->type != OPTION_FLAG && !value) {
        if (*at + 1 >= argc) {
            report_usage(line->command, "--%s needs a value (%s)", o->name,
                         o->argument ? o->argument : o->choices);
            return OPTIONS_BAD;
        }
        value = argv[++*at];
    }
    return set_value(line->command, o, value);
}

static size_t count_words(const char *text)
{
    size_t n = 0;

    for (text += strspn(text, " "); *text; text += strspn(text, " ")) {
        text += strcspn(text, " ");
        n++;
    }
    return n;
}

static enum options_result missing_operand(const struct command_line *line, size_t given)
{
    const char *name = line->operands;

    for (; given > 0; given--)
        name += strcspn(name, " ") + 1;
    report_usage(line->command, "%.*s is missing (see yoke %s --help)", (int)strcspn(name, " "), name,
                 line->command);
    return OPTIONS_BAD;
}

enum options_result options_parse(const struct command_line *line, int argc, char **argv,
                                  const char *operands[OPTIONS_MAX_OPERANDS])
{
    size_t n = 0, wanted = count_words(line->operands);
    bool only_operands = false;

    for (int i = 0; i < argc; i++) {
        const char *text = argv[i];
        if (!only_operands && text[0] == '-' && text[1]) {
            if (strcmp(text, "--") == 0) {
                only_operands = true;
                continue;
            }
            if (strcmp(text, "--help") == 0 || strcmp(text, "-h") == 0) {
                print_help(line);
                return OPTIONS_HELP;
            }
            enum options_result result = parse_option(line, argc, argv, &i);
            if (result != OPTIONS_OK)
                return result;
        } else if (n == wanted) {
            report_usage(line->command, "unexpected argument '%s' (see yoke %s --help)", text, line->command);
            return OPTIONS_BAD;
        } else {
            operands[n++] = text;
        }
    }
    return n < wanted ? missing_operand(line, n) : OPTIONS_OK;
}

/* input.h - what a person gives to a command: texts from files and standard input, lists of token ids. Main
 * thread only. Functions return an exit status (see command.h) after printing one line. */
#ifndef PROGRAMS_INPUT_H
#define PROGRAMS_INPUT_H

#include <stddef.h>
#include <stdint.h>

/* Reads a whole file ("-": standard input) into *data, NUL-terminated, freed by the caller. */
int input_read(const char *path, char **data, size_t *size);

/* Ids from "1,2,3" or from a JSON file ("-": standard input) holding [1,2,3] or {"ids": [1,2,3]}, as `yoke
 * tokenize --json` writes it. *ids is freed by the caller. */
int input_ids(const char *text, int32_t **ids, size_t *n);

#endif

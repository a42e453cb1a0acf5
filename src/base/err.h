/* err.h - errors as a return code plus one line of text filled in where the fault is found.
 *
 * Convention of the whole tree: a function that can fail because of its input or its environment returns
 * int, 0 for success and a negative enum err_code otherwise, and takes a `struct err *` as last argument.
 * The message is one line for a person: it names the file, the thing in it, and what to do where that is
 * not obvious. A programming mistake is an assert(), never an err. Any thread; no shared state.
 */
#ifndef BASE_ERR_H
#define BASE_ERR_H

enum err_code {
    ERR_OK = 0,
    ERR_USAGE = -1,    /* the request itself is wrong (command line, option value) */
    ERR_INPUT = -2,    /* a file, a model or a prompt is wrong */
    ERR_SYSTEM = -3,   /* the machine refused: memory, permission, I/O */
    ERR_CANCELED = -4, /* stopped on request */
};

struct err {
    int code; /* enum err_code */
    char message[1024];
};

/* Fills *err (which may be NULL) and returns `code`, so that `return err_set(err, ERR_INPUT, "…")` works.
 * Control characters and invalid UTF-8 in the formatted text (they may come from a hostile file) are
 * replaced by '?', and the text is cut at the size of the buffer. */
int err_set(struct err *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " in front of a message that is already set. Returns err->code. */
int err_prefix(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define MUST_CHECK __attribute__((warn_unused_result))

#endif

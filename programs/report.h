/* report.h - what the program says about its work: messages on stderr, the participation table, the closing
 * line and the JSON objects. Main thread only. */
#ifndef PROGRAMS_REPORT_H
#define PROGRAMS_REPORT_H

#include "yoke.h"

#include <jansson.h>
#include <stdbool.h>

/* ---- messages: one line each ---- */

#define REPORT_FORMAT(f, a) __attribute__((format(printf, f, a)))

/* "yoke: …"; returns EXIT_REFUSED. */
int report_error(const char *format, ...) REPORT_FORMAT(1, 2);
/* "yoke COMMAND: …"; command may be NULL; returns EXIT_USAGE. */
int report_usage(const char *command, const char *format, ...) REPORT_FORMAT(2, 3);
/* The message of the library; returns the exit status that belongs to its code. */
int report_failure(int code, const struct yoke_error *error);

/* Flushes stdout; returns status, or EXIT_REFUSED after a message when something written there was lost. */
int report_flush(int status);

/* ---- numbers ---- */

enum { REPORT_BYTES_SIZE = 32, REPORT_CPUS_SIZE = 512 };

/* "12.3 MiB" */
void report_bytes(uint64_t bytes, char out[REPORT_BYTES_SIZE]);
/* CPUs in ascending order as ranges, "0-7,16"; total: how many there are if cpus holds only the first n. */
void report_cpus(const int *cpus, int n, int total, char out[REPORT_CPUS_SIZE]);

/* ---- JSON ---- */

/* json_real, but null for what JSON has no number for. */
json_t *report_json_real(double value);
/* A JSON string; bytes that are not UTF-8 become U+FFFD. NULL when out of memory. */
json_t *report_json_text(const char *text, size_t size);
/* Prints one line on stdout and releases object; object may be NULL (out of memory). Returns an exit status.
 */
int report_json_print(json_t *object);

/* ---- a run ---- */

enum { REPORT_MAX_RANKS = 8 };

struct report_run {
    const struct yoke_info *info;
    struct yoke_request_stats stats;
    struct yoke_rank_stats ranks[REPORT_MAX_RANKS];
    int n_ranks;
    double bandwidth; /* measured, bytes per second; 0 = not measured */
};

/* Which rank did nothing, or -1. */
int report_idle_rank(const struct report_run *run);
/* One line on stderr: what was loaded and how it is split. */
void report_model(const struct yoke_info *info);
void report_run_table(const struct report_run *run);
/* The last line of a run: hash, rates, share of the bandwidth. */
void report_run_line(const struct report_run *run);
json_t *report_run_json(const struct report_run *run, const char *text, size_t text_size,
                        const int32_t *tokens, size_t n_tokens, enum yoke_finish finish);

#endif

/* report.c - see report.h. */
#include "report.h"
#include "command.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- messages ---- */

REPORT_FORMAT(2, 0) static void print_message(const char *command, const char *format, va_list arguments)
{
    char message[2048];

    vsnprintf(message, sizeof message, format, arguments);
    /* a file name or a model's own text may hold anything: keep the message one harmless line */
    for (char *c = message; *c; c++) {
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
    }
    fprintf(stderr, "yoke%s%s: %s\n", command ? " " : "", command ? command : "", message);
}

int report_error(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    print_message(NULL, format, arguments);
    va_end(arguments);
    return EXIT_REFUSED;
}

int report_usage(const char *command, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    print_message(command, format, arguments);
    va_end(arguments);
    return EXIT_USAGE;
}

int report_failure(int code, const struct yoke_error *error)
{
    report_error("%s", error->message);
    switch (code) {
    case YOKE_EUSAGE:
        return EXIT_USAGE;
    case YOKE_ECANCELED:
        return EXIT_INTERRUPTED;
    default:
        return EXIT_REFUSED;
    }
}

int report_flush(int status)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout))
        return status;
    report_error("stdout: %s", errno ? strerror(errno) : "not everything could be written");
    return EXIT_REFUSED;
}

/* ---- numbers ---- */

void report_bytes(uint64_t bytes, char out[REPORT_BYTES_SIZE])
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes / 1024;
    size_t unit = 0;

    if (bytes < 1024) {
        snprintf(out, REPORT_BYTES_SIZE, "%" PRIu64 " B", bytes);
        return;
    }
    for (; value >= 1024 && unit + 1 < sizeof units / sizeof *units; unit++)
        value /= 1024;
    snprintf(out, REPORT_BYTES_SIZE, "%.1f %s", value, units[unit]);
}

void report_cpus(const int *cpus, int n, int total, char out[REPORT_CPUS_SIZE])
{
    size_t used = 0;

    out[0] = '\0';
    for (int i = 0; i < n && used + 32 < REPORT_CPUS_SIZE;) {
        int last = i;
        while (last + 1 < n && cpus[last + 1] == cpus[last] + 1)
            last++;
        int written = snprintf(out + used, REPORT_CPUS_SIZE - used, last > i ? "%s%d-%d" : "%s%d",
                               i ? "," : "", cpus[i], cpus[last]);
        used += (size_t)written;
        i = last + 1;
    }
    if (total > n)
        snprintf(out + used, REPORT_CPUS_SIZE - used, ",+%d", total - n);
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

/* ---- JSON ---- */

json_t *report_json_real(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

/* Length of the UTF-8 character at p, 0 if there is none (Unicode 15, table 3-7). */
static size_t utf8_length(const unsigned char *p, size_t size)
{
    size_t n = p[0] < 0x80                   ? 1
               : p[0] >= 0xc2 && p[0] < 0xe0 ? 2
               : (p[0] & 0xf0) == 0xe0       ? 3
               : p[0] >= 0xf0 && p[0] < 0xf5 ? 4
                                             : 0;

    if (n == 0 || n > size)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    }
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) ||
        (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return n;
}

json_t *report_json_text(const char *text, size_t size)
{
    static const char replacement[] = "\xef\xbf\xbd";
    char *valid = malloc(3 * size + 1); /* each bad byte becomes three */
    size_t used = 0;

    if (!valid)
        return NULL;
    for (size_t i = 0; i < size;) {
        size_t n = utf8_length((const unsigned char *)text + i, size - i);
        memcpy(valid + used, n ? text + i : replacement, n ? n : 3);
        used += n ? n : 3;
        i += n ? n : 1;
    }
    json_t *string = json_stringn(valid, used);
    free(valid);
    return string;
}

int report_json_print(json_t *object)
{
    if (!object)
        return report_error("out of memory for the JSON output");
    if (json_dumpf(object, stdout, JSON_REAL_PRECISION(12)) == 0)
        putchar('\n');
    json_decref(object);
    return report_flush(EXIT_DONE);
}

/* ---- a run ---- */

int report_idle_rank(const struct report_run *run)
{
    for (int i = 0; i < run->n_ranks; i++) {
        if (run->ranks[i].steps == 0 || run->ranks[i].weight_bytes_read == 0)
            return run->ranks[i].rank;
    }
    return -1;
}

static const char *plural(int n)
{
    return n == 1 ? "" : "s";
}

void report_model(const struct yoke_info *info)
{
    char weights[REPORT_BYTES_SIZE];

    report_bytes(info->file_weight_bytes, weights);
    fprintf(stderr,
            "%s: %s, %.4g M parameters, %s, %s; %d rank%s of %d thread%s, %s %s, kv %s, ctx %d, loaded in "
            "%.2f s\n",
            info->model, info->architecture, (double)info->n_parameters / 1e6, info->format, weights,
            info->tp, plural(info->tp), info->threads, plural(info->threads), info->device, info->isa,
            info->kv, info->ctx, info->load_seconds);
}

static double prefill_rate(const struct yoke_request_stats *s)
{
    return ratio(1e3 * (double)s->prompt_tokens, s->prefill_ms);
}

/* The first token comes out of the prefill: decoding makes the others. */
static size_t decoded_tokens(const struct yoke_request_stats *s)
{
    return s->generated_tokens > 0 ? s->generated_tokens - 1 : 0;
}

static double decode_rate(const struct yoke_request_stats *s)
{
    return ratio(1e3 * (double)decoded_tokens(s), s->decode_ms);
}

static double decode_bandwidth(const struct report_run *run)
{
    return ratio(1e3 * (double)run->info->weight_bytes * (double)run->stats.decode_steps,
                 run->stats.decode_ms);
}

static void format_local(const struct yoke_rank_stats *r, char *out, size_t size)
{
    if (r->locality_known)
        snprintf(out, size, "%.0f%%", 100 * ratio((double)r->local_bytes, (double)r->resident_bytes));
    else
        snprintf(out, size, "?");
}

void report_run_table(const struct report_run *run)
{
    char cpus[REPORT_MAX_RANKS][REPORT_CPUS_SIZE], read[REPORT_BYTES_SIZE], resident[REPORT_BYTES_SIZE],
        local[16];
    int width = 4;

    for (int i = 0; i < run->n_ranks; i++) {
        const struct yoke_rank_stats *r = &run->ranks[i];
        int known = r->n_cpus < 64 ? r->n_cpus : 64;
        report_cpus(r->cpus, known, r->n_cpus, cpus[i]);
        if ((int)strlen(cpus[i]) > width)
            width = (int)strlen(cpus[i]);
    }
    fprintf(
        stderr,
        "rank  %-*s  node   steps  all-reduces  weights read   GB/s   busy ms   wait ms    resident  local\n",
        width, "cpus");
    for (int i = 0; i < run->n_ranks; i++) {
        const struct yoke_rank_stats *r = &run->ranks[i];
        report_bytes(r->weight_bytes_read, read);
        report_bytes(r->resident_bytes, resident);
        format_local(r, local, sizeof local);
        fprintf(stderr, "%4d  %-*s  %4d  %6" PRIu64 "  %11" PRIu64 "  %12s  %5.1f  %8.1f  %8.1f  %10s  %5s\n",
                r->rank, width, cpus[i], r->node, r->steps, r->all_reduces, read,
                ratio((double)r->weight_bytes_read, r->busy_ms) / 1e6, r->busy_ms, r->wait_ms, resident,
                local);
    }
}

void report_run_line(const struct report_run *run)
{
    const struct yoke_request_stats *s = &run->stats;
    double used = decode_bandwidth(run);

    fprintf(stderr,
            "logits %016" PRIx64
            ", prefill %zu tokens at %.1f tok/s, decode %zu tokens at %.1f tok/s, %.2f GB/s",
            s->logits_hash, s->prompt_tokens, prefill_rate(s), decoded_tokens(s), decode_rate(s), used / 1e9);
    if (run->bandwidth > 0)
        fprintf(stderr, " = %.0f%% of the measured %.2f GB/s", 100 * used / run->bandwidth,
                run->bandwidth / 1e9);
    fputc('\n', stderr);
}

static const char *finish_name(enum yoke_finish finish)
{
    switch (finish) {
    case YOKE_FINISH_STOP:
        return "stop";
    case YOKE_FINISH_LENGTH:
        return "length";
    case YOKE_FINISH_CANCELED:
        return "canceled";
    case YOKE_FINISH_ERROR:
        break;
    }
    return "error";
}

static json_t *json_integers(const int32_t *values, size_t n)
{
    json_t *array = json_array();

    for (size_t i = 0; i < n; i++) {
        if (json_array_append_new(array, json_integer(values[i])) < 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *rank_json(const struct report_run *run, int i)
{
    const struct yoke_rank_stats *r = &run->ranks[i];
    int known = r->n_cpus < 64 ? r->n_cpus : 64;
    int32_t cpus[64];

    for (int k = 0; k < known; k++)
        cpus[k] = r->cpus[k];
    return json_pack("{s:i s:o s:i s:I s:I s:I s:o s:o s:I s:I s:b s:I}", "rank", r->rank, "cpus",
                     json_integers(cpus, (size_t)known), "node", r->node, "steps", (json_int_t)r->steps,
                     "all_reduces", (json_int_t)r->all_reduces, "weight_bytes_read",
                     (json_int_t)r->weight_bytes_read, "busy_ms", report_json_real(r->busy_ms), "wait_ms",
                     report_json_real(r->wait_ms), "resident_bytes", (json_int_t)r->resident_bytes,
                     "local_bytes", (json_int_t)r->local_bytes, "locality_known", (int)r->locality_known,
                     "predicted_bytes", (json_int_t)run->info->predicted_bytes[i]);
}

static json_t *ranks_json(const struct report_run *run)
{
    json_t *array = json_array();

    for (int i = 0; i < run->n_ranks; i++) {
        if (json_array_append_new(array, rank_json(run, i)) < 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

json_t *report_run_json(const struct report_run *run, const char *text, size_t text_size,
                        const int32_t *tokens, size_t n_tokens, enum yoke_finish finish)
{
    const struct yoke_info *info = run->info;
    const struct yoke_request_stats *s = &run->stats;
    char hash[17];

    snprintf(hash, sizeof hash, "%016" PRIx64, s->logits_hash);
    return json_pack(
        "{s:o s:s s:i s:i s:s s:s s:s s:i s:o s:o s:I s:s s:o s:o s:o s:I s:o s:I s:s s:o s:o s:o}", "model",
        report_json_text(info->model, strlen(info->model)), "format", info->format, "tp", info->tp, "threads",
        info->threads, "device", info->device, "isa", info->isa, "kv", info->kv, "ctx", info->ctx, "text",
        report_json_text(text, text_size), "tokens", json_integers(tokens, n_tokens), "prompt_tokens",
        (json_int_t)s->prompt_tokens, "finish_reason", finish_name(finish), "ttft_ms",
        report_json_real(s->ttft_ms), "prefill_tok_s", report_json_real(prefill_rate(s)), "decode_tok_s",
        report_json_real(decode_rate(s)), "weight_bytes", (json_int_t)info->weight_bytes, "decode_gb_s",
        report_json_real(decode_bandwidth(run) / 1e9), "peak_rss_bytes", (json_int_t)yoke_peak_rss(),
        "logits_hash", hash, "bandwidth_gb_s",
        run->bandwidth > 0 ? report_json_real(run->bandwidth / 1e9) : json_null(), "load_seconds",
        report_json_real(info->load_seconds), "ranks", ranks_json(run));
}

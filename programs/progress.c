/* progress.c - see progress.h. */
#include "progress.h"
#include "interrupt.h"
#include "report.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static const double FIRST_SECONDS = 0.5; /* shorter work shows no bar */
static const double EVERY_SECONDS = 0.1;
static const double LONGEST_SECONDS = 99 * 3600; /* no estimate beyond this is worth showing */
enum { BAR_CELLS = 24, LINE_CELLS = 79 };

static double now_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void progress_init(struct progress *p, bool quiet)
{
    *p = (struct progress){.enabled = !quiet && isatty(STDERR_FILENO)};
}

static int terminal_cells(void)
{
    struct winsize size;

    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 && size.ws_col <= LINE_CELLS)
        return size.ws_col - 1;
    return LINE_CELLS;
}

/* Tokens are counted in tokens, everything else in bytes. */
static void format_rate(const char *what, double per_second, char *out, size_t size)
{
    char bytes[REPORT_BYTES_SIZE];

    if (strcmp(what, "perplexity") == 0) {
        snprintf(out, size, "%.0f tok/s", per_second);
        return;
    }
    report_bytes((uint64_t)per_second, bytes);
    snprintf(out, size, "%s/s", bytes);
}

static void draw(struct progress *p, uint64_t done, uint64_t total, double elapsed)
{
    char bar[BAR_CELLS + 1], rate[48], line[160];
    double share = (double)done / (double)total;
    int full = (int)(share * BAR_CELLS);
    double left = elapsed * (1 - share) / share; /* seconds */

    if (left > LONGEST_SECONDS)
        left = LONGEST_SECONDS;
    memset(bar, '-', BAR_CELLS);
    memset(bar, '#', (size_t)full);
    bar[BAR_CELLS] = '\0';
    format_rate(p->what, (double)done / elapsed, rate, sizeof rate);
    snprintf(line, sizeof line, "%s [%s] %3.0f%%  %s  %d:%02d left", p->what, bar, 100 * share, rate,
             (int)(left / 60), (int)left % 60);
    fprintf(stderr, "\r\033[K%.*s", terminal_cells(), line);
    fflush(stderr);
    p->shown = true;
}

int progress_update(void *user, const char *what, uint64_t done, uint64_t total)
{
    struct progress *p = user;

    if (interrupt_pending())
        return 1;
    if (!p->enabled || total == 0)
        return 0;
    double now = now_seconds();
    if (strcmp(p->what, what) != 0) {
        progress_end(p);
        snprintf(p->what, sizeof p->what, "%s", what);
        p->started = p->last_update = now;
    }
    if (now - p->started < FIRST_SECONDS || now - p->last_update < EVERY_SECONDS || done == 0 || done > total)
        return 0;
    p->last_update = now;
    draw(p, done, total, now - p->started);
    return 0;
}

void progress_end(struct progress *p)
{
    if (p->shown)
        fputs("\r\033[K", stderr);
    p->shown = false;
    p->what[0] = '\0';
}

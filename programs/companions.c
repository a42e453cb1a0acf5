/* companions.c - see companions.h. */
#include "companions.h"
#include "command.h"
#include "report.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct companion {
    struct companions *all;
    pthread_t thread;
    int32_t *tokens;
    struct yoke_request_options options;
    struct yoke_error error; /* code 0 = none; read after the join */
};

struct companions {
    struct yoke *y;
    atomic_bool stop; /* set by companions_finish(), read by every companion between its events */
    int n;            /* threads started */
    struct companion companions[];
};

static void *companion_thread(void *user)
{
    struct companion *c = user;
    struct yoke_request *request;
    struct yoke_event event;

    if (yoke_submit(c->all->y, &c->options, &request, &c->error) < 0)
        return NULL;
    do {
        yoke_next(request, &event);
        if (atomic_load(&c->all->stop))
            yoke_cancel(request);
    } while (event.kind != YOKE_EVENT_FINISHED);
    if (event.finish == YOKE_FINISH_ERROR)
        c->error = event.error;
    yoke_request_close(request);
    return NULL;
}

/* Prompt of companion k of n: rotated by k, and shorter by up to half. */
static bool companion_init(struct companion *c, const struct yoke_request_options *like, size_t k, size_t n)
{
    size_t all = like->n_tokens, length = all - all * k / (2 * (n + 1));

    c->options = *like;
    c->options.sampling.seed += k;
    c->tokens = malloc((length ? length : 1) * sizeof *c->tokens);
    if (!c->tokens)
        return false;
    for (size_t i = 0; i < length; i++)
        c->tokens[i] = like->tokens[(i + k) % all];
    c->options.tokens = c->tokens;
    c->options.n_tokens = length;
    return true;
}

int companions_start(struct companions **out, struct yoke *y, const struct yoke_request_options *like, int n)
{
    *out = NULL;
    if (n <= 0)
        return EXIT_DONE;
    struct companions *all = calloc(1, sizeof *all + (size_t)n * sizeof *all->companions);
    if (!all)
        return report_error("--batch: out of memory");
    all->y = y;
    for (; all->n < n; all->n++) {
        struct companion *c = &all->companions[all->n];
        c->all = all;
        if (!companion_init(c, like, (size_t)all->n + 1, (size_t)n) ||
            pthread_create(&c->thread, NULL, companion_thread, c) != 0) {
            free(c->tokens);
            companions_finish(all);
            return report_error("--batch: cannot start %d requests", n);
        }
    }
    *out = all;
    return EXIT_DONE;
}

int companions_finish(struct companions *all)
{
    int status = EXIT_DONE;

    if (!all)
        return status;
    atomic_store(&all->stop, true);
    for (int i = 0; i < all->n; i++) {
        struct companion *c = &all->companions[i];
        pthread_join(c->thread, NULL);
        if (c->error.code && status == EXIT_DONE)
            status = report_error("--batch: request %d: %s", i + 2, c->error.message);
        free(c->tokens);
    }
    free(all);
    return status;
}

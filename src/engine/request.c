/* request.c - the client's side of a request: submit, take events, cancel, close. Any thread; one request
 * belongs to one thread at a time. */
#include "engine/engine.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void yoke_sampling_defaults(struct yoke_sampling *s)
{
    *s = (struct yoke_sampling){.temperature = 0.8, .top_p = 0.95, .repeat_penalty = 1};
}

static void request_free(struct yoke_request *r)
{
    if (!r)
        return;
    for (size_t i = 0; i < r->n_stop && r->stop; i++)
        free(r->stop[i]);
    for (int i = 0; i < r->queue_count; i++)
        free(r->queue[(r->queue_first + i) % (EVENT_QUEUE + 2)].text);
    free(r->current.text);
    stream_free(&r->stream);
    free(r->stop);
    free(r->tokens);
    free(r->pages);
    free(r->prompt_logits);
    pthread_cond_destroy(&r->has_event);
    free(r);
}

static int check(const struct yoke *y, const struct yoke_request_options *o, struct err *err)
{
    const char *fault = sampling_fault(&o->sampling);
    if (fault)
        return err_set(err, ERR_USAGE, "%s", fault);
    if (!o->n_tokens)
        return err_set(err, ERR_INPUT, "the prompt is empty, and the model has no begin token to start from");
    if (o->max_tokens < 0)
        return err_set(err, ERR_USAGE, "the number of tokens to generate must not be negative");
    size_t ctx = (size_t)y->limits.ctx;
    if (o->n_tokens > ctx || o->n_tokens + (size_t)o->max_tokens > ctx)
        return err_set(
            err, ERR_INPUT,
            "prompt of %zu tokens + %d to generate exceed the context of %d positions: shorten the prompt, "
            "generate less (-n) or raise --ctx",
            o->n_tokens, o->max_tokens, y->limits.ctx);
    for (size_t i = 0; i < o->n_tokens; i++)
        if (o->tokens[i] < 0 || o->tokens[i] >= y->model.config.n_vocab)
            return err_set(err, ERR_INPUT, "token %zu of the prompt is %d, outside the vocabulary of %d", i,
                           o->tokens[i], y->model.config.n_vocab);
    for (size_t i = 0; i < o->n_stop; i++)
        if (!*o->stop[i])
            return err_set(err, ERR_USAGE, "a stop text is empty");
    if (o->n_stop && !y->tokenizer)
        return err_set(err, ERR_USAGE, "stop texts need a tokenizer, and %s has none", y->model_name);
    return 0;
}

static bool copy_in(struct yoke_request *r, const struct yoke_request_options *o)
{
    const struct yoke *y = r->engine;
    size_t capacity = o->n_tokens + (size_t)o->max_tokens;
    r->tokens = malloc(capacity * sizeof *r->tokens);
    r->n_pages = (int)((capacity + KV_PAGE - 1) / KV_PAGE);
    r->pages = malloc((size_t)r->n_pages * sizeof *r->pages);
    r->stop = calloc(o->n_stop + 1, sizeof *r->stop);
    if (!r->tokens || !r->pages || !r->stop)
        return false;
    memcpy(r->tokens, o->tokens, o->n_tokens * sizeof *r->tokens);
    r->n_prompt = r->n_tokens = r->stats.prompt_tokens = o->n_tokens;
    for (; r->n_stop < o->n_stop; r->n_stop++)
        if (!(r->stop[r->n_stop] = strdup(o->stop[r->n_stop])))
            return false;
    if (o->prompt_logits) {
        size_t rows = (size_t)y->limits.logit_rows;
        r->prompt_logits = malloc(rows * (size_t)y->model.config.n_vocab * sizeof *r->prompt_logits);
        if (!r->prompt_logits)
            return false;
    }
    return true;
}

int yoke_submit(struct yoke *y, const struct yoke_request_options *o, struct yoke_request **out,
                struct yoke_error *error)
{
    struct err err = {0};
    *out = NULL;
    if (check(y, o, &err))
        return engine_error(error, &err);
    struct yoke_request *r = calloc(1, sizeof *r);
    if (r) {
        pthread_cond_init(&r->has_event, NULL);
        r->engine = y;
        r->current.kind = YOKE_EVENT_TOKEN; /* nothing to give back yet */
    }
    if (!r || !copy_in(r, o)) {
        request_free(r);
        err_set(&err, ERR_SYSTEM, "out of memory");
        return engine_error(error, &err);
    }
    r->max_tokens = o->max_tokens;
    r->sampling = o->sampling;
    r->ignore_eos = o->ignore_eos;
    r->wants_prompt_logits = o->prompt_logits;
    r->submit_ns = engine_now_ns();
    bool only_special = true;
    for (size_t i = 0; i < o->n_tokens && y->tokenizer; i++)
        only_special = only_special && tokenizer_is_special(y->tokenizer, o->tokens[i]);
    r->stream = (struct stream){
        .tokenizer = y->tokenizer, .first = only_special, .stop = r->stop, .n_stop = r->n_stop};

    pthread_mutex_lock(&y->lock);
    struct yoke_request **last = &y->requests;
    while (*last)
        last = &(*last)->next;
    *last = r;
    pthread_cond_signal(&y->work);
    pthread_mutex_unlock(&y->lock);
    *out = r;
    return 0;
}

void yoke_next(struct yoke_request *r, struct yoke_event *event)
{
    struct yoke *y = r->engine;
    free(r->current.text);
    r->current.text = NULL;
    pthread_mutex_lock(&y->lock);
    if (r->current.kind == YOKE_EVENT_LOGITS) {
        r->logits_busy = false; /* the client is done with the last ones */
        pthread_cond_signal(&y->work);
    }
    while (!r->queue_count)
        pthread_cond_wait(&r->has_event, &y->lock);
    struct event e = r->queue[r->queue_first];
    r->queue_first = (r->queue_first + 1) % (EVENT_QUEUE + 2);
    if (r->queue_count-- == EVENT_QUEUE)
        pthread_cond_signal(&y->work); /* there is room again */
    pthread_mutex_unlock(&y->lock);

    r->current = e;
    *event = (struct yoke_event){
        .kind = e.kind,
        .token = e.token,
        .text = e.text ? e.text : "",
        .text_size = e.text_size,
        .logits = r->prompt_logits,
        .position = e.position,
        .n_positions = e.n_positions,
        .finish = e.finish,
    };
    if (e.kind == YOKE_EVENT_FINISHED && e.finish == YOKE_FINISH_ERROR)
        event->error = r->error;
}

void yoke_cancel(struct yoke_request *r)
{
    atomic_store(&r->canceled, true);
}

void yoke_request_get_stats(const struct yoke_request *r, struct yoke_request_stats *out)
{
    pthread_mutex_lock(&r->engine->lock);
    *out = r->stats;
    pthread_mutex_unlock(&r->engine->lock);
}

void yoke_request_close(struct yoke_request *r)
{
    if (!r)
        return;
    struct yoke *y = r->engine;
    yoke_cancel(r);
    pthread_mutex_lock(&y->lock);
    pthread_cond_signal(&y->work);
    while (!r->finished)
        pthread_cond_wait(&r->has_event, &y->lock);
    pthread_mutex_unlock(&y->lock);
    request_free(r);
}

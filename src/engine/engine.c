/* engine.c - the engine thread: builds a step from the requests that can go on, runs it, hands out what came
 * of it.
 *
 * Continuous batching in its simplest form: every running request gets its one row, what is left of the
 * step's rows goes to prompts in order of arrival. A request whose client does not take its events sits out.
 * Which requests share a step never changes a result (ARCHITECTURE.md, "One answer"). */
#include "engine/engine.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

uint64_t engine_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- events (lock held) ---- */

static void push_event(struct yoke_request *r, struct event e)
{
    int capacity = EVENT_QUEUE + 2;
    r->queue[(r->queue_first + r->queue_count++) % capacity] = e;
    pthread_cond_signal(&r->has_event);
}

static void finish(struct yoke *y, struct yoke_request *r, enum yoke_finish how, struct buf *text)
{
    for (int i = 0; i < r->n_pages && r->admitted; i++)
        y->free_pages[y->n_free_pages++] = r->pages[i];
    r->admitted = false;
    for (struct yoke_request **p = &y->requests; *p; p = &(*p)->next) {
        if (*p == r) {
            *p = r->next;
            break;
        }
    }
    r->finished = true;
    push_event(r, (struct event){.kind = YOKE_EVENT_FINISHED,
                                 .finish = how,
                                 .text = text ? text->data : NULL,
                                 .text_size = text ? text->size : 0});
}

static void finish_with_held_text(struct yoke *y, struct yoke_request *r, enum yoke_finish how)
{
    struct buf text = {0};
    stream_finish(&r->stream, &text);
    finish(y, r, how, &text);
}

/* ---- building a step (lock held) ---- */

static bool admit(struct yoke *y, struct yoke_request *r)
{
    if (r->admitted)
        return true;
    if (y->n_free_pages < r->n_pages)
        return false;
    for (int i = 0; i < r->n_pages; i++)
        r->pages[i] = y->free_pages[--y->n_free_pages];
    r->admitted = true;
    return true;
}

static bool can_go_on(const struct yoke_request *r)
{
    return r->queue_count < EVENT_QUEUE && !r->logits_busy;
}

/* Puts n_rows of a request into the step. */
static void add_part(struct yoke *y, struct batch *b, struct yoke_request *r, int n_rows)
{
    struct step_part *part = &y->step_parts[b->n_runs];
    *part = (struct step_part){.request = r, .n_rows = n_rows, .first_logit = b->n_logits};
    part->samples = r->n_done + (size_t)n_rows == r->n_tokens && r->max_tokens > 0;
    int32_t *pages = y->step_pages + b->n_runs * ((y->limits.ctx + KV_PAGE - 1) / KV_PAGE);
    memcpy(pages, r->pages, (size_t)r->n_pages * sizeof *pages);
    y->step_runs[b->n_runs++] =
        (struct run){.row = b->n_rows, .n_rows = n_rows, .position = (int)r->n_done, .pages = pages};
    for (int i = 0; i < n_rows; i++) {
        bool wanted = r->wants_prompt_logits && r->n_done + (size_t)i < r->n_prompt;
        if (wanted || (part->samples && i == n_rows - 1)) {
            y->step_logit_rows[b->n_logits++] = b->n_rows + i;
            part->n_logits++;
        }
        y->step_tokens[b->n_rows + i] = r->tokens[r->n_done + (size_t)i];
    }
    b->n_rows += n_rows;
    if (!r->start_ns)
        r->start_ns = engine_now_ns();
}

static void build_step(struct yoke *y, struct batch *b)
{
    *b = (struct batch){.tokens = y->step_tokens,
                        .runs = y->step_runs,
                        .logit_rows = y->step_logit_rows,
                        .logits = y->logits};
    int admitted = 0;
    for (struct yoke_request *r = y->requests; r && admitted < y->max_requests; r = r->next) {
        if (!admit(y, r))
            break; /* first come, first served */
        admitted++;
        if (can_go_on(r) && r->n_tokens - r->n_done == 1)
            add_part(y, b, r, 1);
    }
    int budget = y->chunk;
    admitted = 0;
    for (struct yoke_request *r = y->requests; r && admitted < y->max_requests && budget > 0; r = r->next) {
        if (!r->admitted)
            break;
        admitted++;
        size_t left = r->n_tokens - r->n_done;
        if (left <= 1 || !can_go_on(r))
            continue;
        /* One row of logits stays free for each request that may still join. */
        int logits_left = y->limits.logit_rows - b->n_logits - y->max_requests;
        int n = left < (size_t)budget ? (int)left : budget;
        if (r->wants_prompt_logits && n > logits_left)
            n = logits_left;
        if (n <= 0)
            continue;
        add_part(y, b, r, n);
        budget -= n;
    }
}

/* ---- after a step ---- */

static bool is_eos(const struct yoke *y, int32_t token)
{
    const int32_t *ids;
    size_t n = y->tokenizer ? tokenizer_eos(y->tokenizer, &ids) : 0;
    for (size_t i = 0; i < n; i++)
        if (ids[i] == token)
            return true;
    return false;
}

/* Samples the request's next token and queues what comes of it. */
static void take_token(struct yoke *y, struct yoke_request *r, const float *logits)
{
    int n_vocab = y->model.config.n_vocab;
    int32_t token = sample(&r->sampling, logits, n_vocab, r->tokens, r->n_tokens, r->n_tokens, y->candidates);
    uint64_t hash = hash_logits(logits, (size_t)n_vocab), now = engine_now_ns();
    bool eos = !r->ignore_eos && is_eos(y, token), stopped = false;
    struct buf text = {0};
    if (!eos)
        stopped = stream_push(&r->stream, token, &text);

    pthread_mutex_lock(&y->lock);
    r->stats.logits_hash = hash_combine(r->stats.logits_hash, hash);
    if (!r->first_token_ns) {
        r->first_token_ns = now;
        r->stats.ttft_ms = (double)(now - r->submit_ns) * 1e-6;
        r->stats.prefill_ms = (double)(now - r->start_ns) * 1e-6;
    } else {
        r->stats.decode_steps++;
        r->stats.decode_ms = (double)(now - r->first_token_ns) * 1e-6;
    }
    if (eos) {
        finish_with_held_text(y, r, YOKE_FINISH_STOP);
    } else {
        r->tokens[r->n_tokens++] = token;
        r->stats.generated_tokens++;
        push_event(r,
                   (struct event){
                       .kind = YOKE_EVENT_TOKEN, .token = token, .text = text.data, .text_size = text.size});
        if (stopped)
            finish(y, r, YOKE_FINISH_STOP, NULL);
        else if (r->stats.generated_tokens >= (size_t)r->max_tokens)
            finish_with_held_text(y, r, YOKE_FINISH_LENGTH);
    }
    pthread_mutex_unlock(&y->lock);
}

static void after_part(struct yoke *y, const struct step_part *part)
{
    struct yoke_request *r = part->request;
    size_t n_vocab = (size_t)y->model.config.n_vocab, position = r->n_done;
    r->n_done += (size_t)part->n_rows;
    const float *logits = y->logits + (size_t)part->first_logit * n_vocab;
    if (r->wants_prompt_logits && position < r->n_prompt) {
        memcpy(r->prompt_logits, logits, (size_t)part->n_logits * n_vocab * sizeof *logits);
        pthread_mutex_lock(&y->lock);
        r->logits_busy = true;
        push_event(r, (struct event){.kind = YOKE_EVENT_LOGITS,
                                     .position = (int)position,
                                     .n_positions = part->n_logits});
        pthread_mutex_unlock(&y->lock);
    }
    if (part->samples) {
        take_token(y, r, logits + (size_t)(part->n_logits - 1) * n_vocab);
    } else if (r->n_done == r->n_tokens) {
        pthread_mutex_lock(&y->lock);
        r->stats.prefill_ms = (double)(engine_now_ns() - r->start_ns) * 1e-6;
        finish(y, r, YOKE_FINISH_LENGTH, NULL);
        pthread_mutex_unlock(&y->lock);
    }
}

/* ---- the thread ---- */

/* lock held */
static void end_canceled(struct yoke *y)
{
    struct yoke_request *next;
    for (struct yoke_request *r = y->requests; r; r = next) {
        next = r->next;
        if (y->failure.code) {
            r->error = y->failure;
            finish(y, r, YOKE_FINISH_ERROR, NULL);
        } else if (y->closing || atomic_load(&r->canceled)) {
            finish_with_held_text(y, r, YOKE_FINISH_CANCELED);
        }
    }
}

/* Sleeps until a client changes something; while requests wait for slow clients it looks for cancellations,
 * which come without a signal (yoke_cancel may be called from a signal handler), now and then. lock held. */
static void wait_for_work(struct yoke *y)
{
    if (!y->requests) {
        pthread_cond_wait(&y->work, &y->lock);
        return;
    }
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += 50000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_cond_timedwait(&y->work, &y->lock, &until);
}

void *engine_main(void *arg)
{
    struct yoke *y = arg;
    pthread_mutex_lock(&y->lock);
    while (!y->closing) {
        end_canceled(y);
        if (y->failure.code) { /* what the failed step was given stays as it is */
            wait_for_work(y);
            continue;
        }
        build_step(y, &y->batch);
        if (!y->batch.n_rows) {
            wait_for_work(y);
            continue;
        }
        pthread_mutex_unlock(&y->lock);
        struct err err = {0};
        int rc = model_step(&y->model, &y->batch, &err);
        for (int i = 0; !rc && i < y->batch.n_runs; i++)
            after_part(y, &y->step_parts[i]);
        if (!rc && y->stall_rank) {
            team_inject_stall(y->model.team, y->stall_rank - 1);
            y->stall_rank = 0;
        }
        pthread_mutex_lock(&y->lock);
        if (rc)
            engine_error(&y->failure, &err);
    }
    end_canceled(y);
    pthread_mutex_unlock(&y->lock);
    return NULL;
}

/* engine.h - inside of struct yoke: one model, one engine thread, many requests.
 *
 * Two kinds of threads meet here: clients (yoke_submit, yoke_next, yoke_cancel, yoke_request_close) and the
 * engine thread, and only under `lock`. Fields say who may touch them. */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include "engine/sample.h"
#include "engine/stream.h"
#include "model/model.h"
#include "text/tokenizer.h"
#include "yoke.h"

#include <pthread.h>
#include <stdatomic.h>

enum { EVENT_QUEUE = 64 };

struct event {
    enum yoke_event_kind kind;
    int32_t token;
    char *text; /* owned, NULL = none */
    size_t text_size;
    int position, n_positions; /* of request->prompt_logits */
    enum yoke_finish finish;
};

struct yoke_request {
    struct yoke *engine;
    struct yoke_request *next; /* in the engine's list; lock */

    /* Set at submit, then the engine thread's. */
    int32_t *tokens;           /* (n_prompt + max_tokens) prompt, then generated */
    size_t n_prompt, n_tokens; /* n_tokens: so far */
    size_t n_done;             /* tokens whose keys and values are in the cache */
    int max_tokens;
    struct yoke_sampling sampling;
    bool ignore_eos, wants_prompt_logits;
    char **stop;
    size_t n_stop;
    struct stream stream;
    int32_t *pages; /* (n_pages) ids in the KV pool; taken at admission */
    int n_pages;
    bool admitted;
    uint64_t start_ns, first_token_ns; /* first step; first token */

    float *prompt_logits; /* (limits.logit_rows, n_vocab); the client's while logits_taken is false */

    atomic_bool canceled;

    /* Under lock. */
    struct event queue[EVENT_QUEUE + 2];
    int queue_first, queue_count;
    bool logits_busy; /* prompt_logits waits for the client */
    bool finished;    /* FINISHED was queued: the engine has let go */
    struct yoke_error error;
    struct yoke_request_stats stats;
    uint64_t submit_ns;
    pthread_cond_t has_event;

    /* The client's. */
    struct event current;
};

struct yoke {
    struct model model;
    struct source source;        /* while opening; here because a rank that hangs in it may come back */
    struct tokenizer *tokenizer; /* NULL: none */
    struct yoke_info info;
    char model_name[256], format[96];
    struct limits limits;
    int chunk, max_requests;

    pthread_t thread;
    bool thread_started;
    pthread_mutex_t lock;
    pthread_cond_t work; /* something for the engine thread */

    /* Under lock. */
    struct yoke_request *requests; /* in order of submission */
    bool closing;
    struct yoke_error failure; /* code != 0: a step failed, nothing runs any more */

    /* The engine thread's. */
    int32_t *free_pages;
    int n_free_pages;
    float *logits;                /* (limits.logit_rows, n_vocab) */
    struct candidate *candidates; /* (n_vocab) */
    int stall_rank;           /* test aid: this rank, counted from 1, hangs once a step is done; 0 = none */
    struct batch batch;       /* of the running step; here because a hung rank may come back to it */
    int32_t *step_tokens;     /* (limits.rows) */
    int32_t *step_logit_rows; /* (limits.logit_rows) */
    struct run *step_runs;    /* (max_requests) */
    int32_t *step_pages;      /* (max_requests, pages of ctx) of the runs: a hung rank outlives requests */
    struct step_part {
        struct yoke_request *request;
        int n_rows, n_logits, first_logit;
        bool samples; /* its last row completes the tokens so far */
    } * step_parts;   /* (max_requests) */
};

/* engine.c: the engine thread; arg is a struct yoke. */
void *engine_main(void *arg);

uint64_t engine_now_ns(void);
/* Copies an internal error out. Returns the code. */
int engine_error(struct yoke_error *out, const struct err *err);

/* open.c: the file or directory (or "synth:…") that options->model names. */
MUST_CHECK int model_path(const struct yoke_options *options, char *out, size_t size, struct err *err);

#endif

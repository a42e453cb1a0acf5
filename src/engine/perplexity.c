/* perplexity.c - mean negative log-likelihood of a text, and how far a model's distribution lies from
 * another's. Runs on the caller's thread as an ordinary client of one or two engines. */
#include "base/detmath.h"
#include "engine/engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The logits of a window's positions, in order, one at a time. */
struct reader {
    struct yoke *y;
    struct yoke_request *request;
    struct yoke_event event;
    int used; /* positions of event already given out */
};

static int reader_open(struct reader *r, struct yoke *y, const int32_t *ids, size_t n,
                       struct yoke_error *error)
{
    struct yoke_request_options o = {.tokens = ids, .n_tokens = n, .prompt_logits = true};
    yoke_sampling_defaults(&o.sampling);
    *r = (struct reader){.y = y};
    return yoke_submit(y, &o, &r->request, error);
}

static void reader_close(struct reader *r)
{
    yoke_request_close(r->request);
}

static int reader_next(struct reader *r, const float **logits, struct yoke_error *error)
{
    if (r->used == r->event.n_positions) {
        yoke_next(r->request, &r->event);
        r->used = 0;
        if (r->event.kind == YOKE_EVENT_FINISHED) {
            if (error)
                *error = r->event.error;
            return r->event.error.code ? r->event.error.code : YOKE_ESYSTEM;
        }
    }
    *logits = r->event.logits + (size_t)r->used++ * (size_t)r->y->model.config.n_vocab;
    return 0;
}

/* log(sum exp(logits)) */
static double log_sum_exp(const float *logits, int n)
{
    double max = logits[0], sum = 0;
    for (int i = 1; i < n; i++)
        max = logits[i] > max ? logits[i] : max;
    for (int i = 0; i < n; i++)
        sum += det_exp(logits[i] - max);
    return max + det_log(sum);
}

/* Sum over tokens of p (log p - log q), p from the reference. */
static double divergence(const float *p, double p_norm, const float *q, double q_norm, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        double log_p = p[i] - p_norm;
        sum += det_exp(log_p) * (log_p - (q[i] - q_norm));
    }
    return sum;
}

struct sums {
    double nll, kl;
};

static int measure_window(struct yoke *y, struct yoke *reference, const int32_t *ids, size_t n,
                          struct sums *sums, struct yoke_error *error)
{
    struct reader own, other = {0};
    int n_vocab = y->model.config.n_vocab, rc = reader_open(&own, y, ids, n, error);
    if (rc)
        return rc;
    if (reference && (rc = reader_open(&other, reference, ids, n, error)))
        goto out;
    for (size_t i = 0; i < n && !rc; i++) {
        const float *q, *p;
        if ((rc = reader_next(&own, &q, error)))
            break;
        double q_norm = log_sum_exp(q, n_vocab);
        sums->nll += q_norm - q[ids[i + 1]];
        if (reference && !(rc = reader_next(&other, &p, error)))
            sums->kl += divergence(p, log_sum_exp(p, n_vocab), q, q_norm, n_vocab);
    }
out:
    reader_close(&own);
    if (other.request)
        reader_close(&other);
    return rc;
}

int yoke_measure_perplexity(struct yoke *y, struct yoke *reference, const int32_t *ids, size_t n, int window,
                            uint64_t max_tokens, yoke_progress *progress, void *progress_user,
                            struct yoke_perplexity *out, struct yoke_error *error)
{
    struct err err = {0};
    struct sums sums = {0};
    uint64_t start = engine_now_ns(), done = 0;
    *out = (struct yoke_perplexity){0};
    if (window <= 0)
        window = y->limits.ctx;
    if (window > y->limits.ctx || (reference && window > reference->limits.ctx)) {
        int ctx = window > y->limits.ctx ? y->limits.ctx : reference->limits.ctx;
        err_set(&err, ERR_USAGE, "a window of %d positions exceeds the context of %d: raise --ctx", window,
                ctx);
        return engine_error(error, &err);
    }
    if (reference && reference->model.config.n_vocab != y->model.config.n_vocab) {
        err_set(&err, ERR_USAGE, "the reference has a vocabulary of %d tokens, the model one of %d",
                reference->model.config.n_vocab, y->model.config.n_vocab);
        return engine_error(error, &err);
    }
    if (reference == y) {
        err_set(&err, ERR_USAGE, "the reference must be another open model");
        return engine_error(error, &err);
    }
    if (n < 2) {
        err_set(&err, ERR_INPUT, "the text is too short: at least two tokens are needed");
        return engine_error(error, &err);
    }
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= y->model.config.n_vocab) {
            err_set(&err, ERR_INPUT, "token %zu is %d, outside the vocabulary of %d", i, ids[i],
                    y->model.config.n_vocab);
            return engine_error(error, &err);
        }
    }
    uint64_t total = n - 1;
    if (max_tokens && max_tokens < total)
        total = max_tokens;
    while (done < total) {
        size_t length = total - done < (uint64_t)window ? (size_t)(total - done) : (size_t)window;
        int rc = measure_window(y, reference, ids + done, length, &sums, error);
        if (rc)
            return rc;
        done += length;
        if (progress && progress(progress_user, "perplexity", done, total)) {
            err_set(&err, ERR_CANCELED, "the measurement was cancelled");
            return engine_error(error, &err);
        }
    }
    out->n_tokens = total;
    out->nll = sums.nll / (double)total;
    out->perplexity = det_exp(out->nll);
    out->kl = sums.kl / (double)total;
    out->seconds = (double)(engine_now_ns() - start) * 1e-9;
    return 0;
}

/* sample.c - see sample.h. */
#include "engine/sample.h"

#include "base/detmath.h"

#include <stdbool.h>
#include <string.h>

enum { REPEAT_WINDOW = 64 };

/* splitmix64's finaliser (Steele, Lea, Flood 2014): a good 64-bit mix. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

uint64_t hash_combine(uint64_t hash, uint64_t next)
{
    return mix(hash * 0x9e3779b97f4a7c15 + next + 1);
}

uint64_t hash_logits(const float *logits, size_t n)
{
    uint64_t lane[4] = {1, 2, 3, 4};
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &logits[i], 4);
        lane[i % 4] = (lane[i % 4] ^ bits) * 0x9e3779b97f4a7c15;
        lane[i % 4] ^= lane[i % 4] >> 29;
    }
    uint64_t hash = n;
    for (int i = 0; i < 4; i++)
        hash = hash_combine(hash, lane[i]);
    return hash;
}

/* In [0, 1), 53 bits. */
static double uniform(uint64_t seed, uint64_t position)
{
    return (double)(hash_combine(mix(seed + 0x9e3779b97f4a7c15), position) >> 11) * 0x1p-53;
}

const char *sampling_fault(const struct yoke_sampling *s)
{
    if (!(s->temperature >= 0 && s->temperature <= 100))
        return "temperature must lie in [0, 100]";
    if (!(s->top_p > 0 && s->top_p <= 1))
        return "top-p must lie in (0, 1]";
    if (s->top_k < 0)
        return "top-k must not be negative";
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return "min-p must lie in [0, 1]";
    if (!(s->repeat_penalty > 0 && s->repeat_penalty <= 100))
        return "repeat-penalty must lie in (0, 100]";
    return NULL;
}

/* Divides positive logits of recent tokens by the penalty and multiplies negative ones (Keskar et al. 2019),
 * each token once. */
static void penalize(struct candidate *c, int32_t n_vocab, double penalty, const int32_t *history, size_t n)
{
    size_t begin = n > REPEAT_WINDOW ? n - REPEAT_WINDOW : 0;
    for (size_t i = begin; i < n; i++) {
        bool seen = false;
        for (size_t j = begin; j < i && !seen; j++)
            seen = history[j] == history[i];
        if (seen || history[i] < 0 || history[i] >= n_vocab)
            continue;
        float *logit = &c[history[i]].logit;
        *logit = (float)(*logit > 0 ? *logit / penalty : *logit * penalty);
    }
}

static bool better(const struct candidate *a, const struct candidate *b)
{
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

/* Restores the heap (best on top) below i. */
static void sift_down(struct candidate *heap, size_t n, size_t i)
{
    struct candidate moving = heap[i];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n)
            break;
        if (child + 1 < n && better(&heap[child + 1], &heap[child]))
            child++;
        if (!better(&heap[child], &moving))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moving;
}

/* Takes candidates off the heap best first into the end of the array, until top-k, top-p or min-p says
 * enough. Returns how many; they lie at heap[n - 1], heap[n - 2], … */
static size_t select_candidates(const struct yoke_sampling *s, struct candidate *heap, size_t n, double total)
{
    double kept = 0, best = 0;
    size_t taken = 0;
    while (taken < n) {
        struct candidate top = heap[0];
        if (taken == 0)
            best = top.weight;
        else if (top.weight < s->min_p * best)
            break;
        heap[0] = heap[n - 1 - taken];
        sift_down(heap, n - 1 - taken, 0);
        heap[n - 1 - taken] = top;
        taken++;
        kept += top.weight;
        if ((s->top_k && taken >= (size_t)s->top_k) || (s->top_p < 1 && kept >= s->top_p * total))
            break;
    }
    return taken;
}

int32_t sample(const struct yoke_sampling *s, const float *logits, int32_t n_vocab, const int32_t *history,
               size_t n_history, uint64_t position, struct candidate *scratch)
{
    int32_t best = 0;
    if (s->temperature == 0 && s->repeat_penalty == 1) {
        for (int32_t i = 1; i < n_vocab; i++)
            if (logits[i] > logits[best])
                best = i;
        return best;
    }
    for (int32_t i = 0; i < n_vocab; i++)
        scratch[i] = (struct candidate){logits[i], i, 0};
    if (s->repeat_penalty != 1)
        penalize(scratch, n_vocab, s->repeat_penalty, history, n_history);
    for (int32_t i = 1; i < n_vocab; i++)
        if (scratch[i].logit > scratch[best].logit)
            best = i;
    if (s->temperature == 0)
        return best;

    /* Tokens less likely than e^-40 of the best one are never drawn from 53 random bits. */
    double max = scratch[best].logit, total = 0;
    size_t n = 0;
    for (int32_t i = 0; i < n_vocab; i++) {
        double exponent = (scratch[i].logit - max) / s->temperature;
        if (!(exponent >= -40))
            continue;
        struct candidate c = scratch[i];
        c.weight = det_exp(exponent);
        total += c.weight;
        scratch[n++] = c;
    }
    for (size_t i = n / 2; i-- > 0;)
        sift_down(scratch, n, i);
    size_t kept = select_candidates(s, scratch, n, total);
    double sum = 0, passed = 0;
    for (size_t i = 0; i < kept; i++)
        sum += scratch[n - 1 - i].weight;
    double point = uniform(s->seed, position) * sum;
    for (size_t i = 0; i < kept; i++) {
        passed += scratch[n - 1 - i].weight;
        if (point < passed)
            return scratch[n - 1 - i].id;
    }
    return scratch[n - kept].id;
}

/* sample.h - from logits to one token. Deterministic on every machine: no libm, random numbers keyed by
 * (seed, position), ties to the lowest id. Engine thread only (scratch is the caller's). */
#ifndef ENGINE_SAMPLE_H
#define ENGINE_SAMPLE_H

#include "yoke.h"

#include <stddef.h>
#include <stdint.h>

struct candidate {
    float logit;
    int32_t id;
    double weight; /* exp((logit - max) / temperature), not normalised */
};

/* NULL when all values are possible, else what is wrong with them (a phrase for an error message). */
const char *sampling_fault(const struct yoke_sampling *s);

/* history: the sequence so far (prompt and generated), for the repeat penalty. position: index of the token
 * to be sampled. scratch: (n_vocab) candidates. logits are not changed. */
int32_t sample(const struct yoke_sampling *s, const float *logits, int32_t n_vocab, const int32_t *history,
               size_t n_history, uint64_t position, struct candidate *scratch);

/* 64-bit hash of fp32 logits, and of a sequence of such hashes. */
uint64_t hash_logits(const float *logits, size_t n);
uint64_t hash_combine(uint64_t hash, uint64_t next);

#endif

/* support.h - what tests of whole models share: where files lie, small random checkpoints, and one request's
 * complete answer. Failing is a cmocka failure, so call from the test's own thread; answer_collect() alone
 * may run on any. */
#ifndef TESTS_SUPPORT_H
#define TESTS_SUPPORT_H

/* cmocka.h wants these before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/dtype.h"
#include "yoke.h"

#include <jansson.h>
#include <stdbool.h>

/* Sanitizers cost a factor of 3 to 50: loops over settings shrink by this. */
#if defined(__SANITIZE_THREAD__)
#define TEST_SLOW 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TEST_SLOW 1
#endif
#endif
#ifndef TEST_SLOW
#define TEST_SLOW 0
#endif

/* Memory figures of the process mean little under a sanitizer. */
#if TEST_SLOW || defined(__SANITIZE_ADDRESS__)
#define TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TEST_SANITIZED 1
#endif
#endif
#ifndef TEST_SANITIZED
#define TEST_SANITIZED 0
#endif

/* ---- files; paths are the caller's, free() ---- */

char *path_join(const char *directory, const char *name);
/* A file of the repository. */
char *path_of_source(const char *name);
/* A file of the test data that is not in the repository; the test is skipped, saying so, when it is not
 * there. */
char *path_of_shared(const char *name);
/* The repository's copy under tests/data if there is one, else the shared one. */
char *path_of_data(const char *name);
char *make_directory(void);
void remove_directory(char *path); /* frees path, too */
void write_text(const char *directory, const char *name, const char *text);
/* NUL-terminated, free(); size may be NULL. */
char *read_file(const char *path, size_t *size);
json_t *read_json(const char *path);
/* A JSON array of integers: returns their number, *ids free(). */
size_t json_ids(const json_t *array, int32_t **ids);

/* ---- small random checkpoints ---- */

struct checkpoint_shape {
    int n_layers, dim, n_heads, n_kv_heads, head_dim, ffn_dim, n_vocab;
    bool tied;
    enum dtype dtype;        /* F32, F16 or BF16 */
    const char *more_config; /* more members for config.json: ", \"key\": value", or NULL */
};
/* config.json and model.safetensors; no tokenizer. The directory must exist. */
void checkpoint_write(const char *directory, const struct checkpoint_shape *shape);
/* Quantises with yoke_quantize into a directory to be created. */
void checkpoint_quantize(const char *model, const char *output, int bits, int group);

/* ---- asking a model ---- */

/* Opens or fails the test. */
struct yoke *open_model(const struct yoke_options *options);

struct answer {
    int n_prompt, n_vocab;
    float *logits;   /* (n_prompt, n_vocab), NULL unless asked for */
    int32_t *tokens; /* generated */
    int n_tokens;
    char *text;
    enum yoke_finish finish;
    struct yoke_error error;
    struct yoke_request_stats stats;
};

/* Greedy, end tokens ignored, all prompt logits. */
struct yoke_request_options plain_request(const int32_t *prompt, size_t n, int max_tokens);
struct yoke_request *submit(struct yoke *y, const struct yoke_request_options *options);
/* Takes the events until the end; closes r. cancel_after >= 0: cancels after so many tokens. */
struct answer answer_collect(struct yoke *y, struct yoke_request *r, int cancel_after);
struct answer ask(struct yoke *y, const struct yoke_request_options *options);
void answer_free(struct answer *a);
/* Fails, naming the setting and the first difference, unless tokens, hash and all logits are the same bits.
 */
void assert_same_answer(const struct answer *a, const struct answer *expected, const char *setting);

/* n ids, a function of seed alone, in [0, n_vocab). free(). */
int32_t *random_prompt(size_t n, int n_vocab, uint32_t seed);

/* Calls visit for every instruction set of this CPU, best first. */
void for_each_isa(void (*visit)(const char *isa, bool best, void *arg), void *arg);

#endif

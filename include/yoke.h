/* yoke.h - the public interface of Yoke, a large-language-model inference engine for one machine whose
 * compute is split into parts that share one memory. Programs include this header and nothing else of the
 * project.
 *
 *   yoke           a loaded model, split over the ranks of this machine, with its one engine thread
 *   yoke_request   one prompt being answered: a bounded queue of events and a cancel flag
 *   yoke_topo      the parts of a machine and the ranks that would be placed on them
 *
 * Functions that can fail return 0 or a negative YOKE_E… code and fill *error (may be NULL) with one line for
 * a person. Unless said otherwise a function may be called from any thread; one request belongs to one
 * thread. */
#ifndef YOKE_H
#define YOKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define YOKE_API __attribute__((visibility("default")))

enum yoke_status {
    YOKE_OK = 0,
    YOKE_EUSAGE = -1,    /* the request itself is wrong: an option, a value */
    YOKE_EINPUT = -2,    /* a file, a model or a prompt is wrong */
    YOKE_ESYSTEM = -3,   /* the machine refused: memory, permission, I/O, a rank that stopped */
    YOKE_ECANCELED = -4, /* stopped on request */
};

struct yoke_error {
    int code;
    char message[1024]; /* one line, UTF-8, no newline */
};

YOKE_API const char *yoke_version(void);

/* ---- progress ---- */

/* Called now and then during long work (from the calling thread). what: "loading", "quantizing",
 * "perplexity". A nonzero return cancels the work (YOKE_ECANCELED). */
typedef int yoke_progress(void *user, const char *what, uint64_t done, uint64_t total);

/* ---- opening a model ---- */

struct yoke_options {
    const char *model;     /* a .gguf file, a checkpoint directory, "demo", or "synth:SHAPE[:QUANT]" */
    const char *demo_path; /* where "demo" lies; NULL: beside the program, see yoke_find_demo() */
    int tp;                /* ranks: 1, 2, 4, 8; 0 = auto */
    int threads;           /* per rank; 0 = one per core */
    const char *device;    /* "cpu", "auto"; NULL = auto */
    const char *isa; /* "auto", "ref", "avx2", "avx512"; NULL = auto ("amx", "neon": not in this version) */
    int ctx;         /* positions per sequence; 0 = the model's, at most 4096 */
    const char *kv;  /* "f32", "f16", "q8"; NULL or "auto" = f32 for fp32 checkpoints, else f16 */
    uint64_t memory_per_rank; /* limit in bytes; 0 = what the rank's place has free */
    int chunk;                /* prefill rows per step; 0 = 512 */
    int max_requests;         /* sequences that may run at once; 0 = 1 */
    double stall_seconds;     /* a rank without progress for so long fails the run; 0 = 10 */
    int inject_stall;         /* test aid: this rank, counted from 1, hangs in its second step; 0 = none */
    yoke_progress *progress;  /* may be NULL */
    void *progress_user;
};

struct yoke; /* opaque */

/* Path of the model that ships with Yoke, looked for around the running program. */
YOKE_API int yoke_find_demo(char *out, size_t size);

/* Sums up what every rank needs, compares it with what its place has, and only then loads: refusal is
 * YOKE_ESYSTEM with the sums and what would fit. */
YOKE_API int yoke_open(struct yoke **out, const struct yoke_options *options, struct yoke_error *error);
/* Cancels what runs and releases everything; requests must be closed first. */
YOKE_API void yoke_close(struct yoke *y);

struct yoke_info {
    const char *model;        /* as given */
    const char *architecture; /* "llama" */
    const char *format;       /* "bf16", "mlx4 g64", "q4_k + q6_k", … */
    int tp, threads, ctx;
    const char *device, *isa, *kv;
    int n_layers, dim, n_heads, n_kv_heads, head_dim, ffn_dim, n_vocab;
    uint64_t n_parameters;
    uint64_t weight_bytes;       /* read per generated token, all ranks together, as packed in memory */
    uint64_t file_weight_bytes;  /* of the weights in the file's own format, all of them */
    uint64_t predicted_bytes[8]; /* per rank: weights + KV + activations, computed before loading */
    double load_seconds;
    bool has_tokenizer;
};
YOKE_API const struct yoke_info *yoke_get_info(const struct yoke *y);

/* What each rank did since the model was loaded. */
struct yoke_rank_stats {
    int rank;
    int node;     /* NUMA node of its memory */
    int n_cpus;   /* CPUs its threads were really found on */
    int cpus[64]; /* the first 64 of them */
    uint64_t steps, all_reduces, weight_bytes_read;
    double busy_ms, wait_ms;
    uint64_t resident_bytes,
        local_bytes;     /* of its memory: in RAM, and of that on its own node (kernel's answer) */
    bool locality_known; /* the kernel could tell */
};
/* Writes up to max_ranks entries, returns the number of ranks. */
YOKE_API int yoke_get_rank_stats(const struct yoke *y, struct yoke_rank_stats *out, int max_ranks);

/* Highest resident set of the process so far, in bytes. */
YOKE_API uint64_t yoke_peak_rss(void);
/* Read bandwidth of the rank threads of y from memory, all at once, in bytes per second, measured now in
 * about 0.3 s (no request may be running). */
YOKE_API double yoke_measure_bandwidth(struct yoke *y);

/* ---- text and tokens ---- */

/* The ids of a text (freed by the caller with free()). bos: begin token first, where the model's files say
 * so. special: text that spells a special token becomes it. Models without a tokenizer give YOKE_EINPUT. */
YOKE_API int yoke_tokenize(const struct yoke *y, const char *text, size_t size, bool bos, bool special,
                           int32_t **ids, size_t *n, struct yoke_error *error);
/* Bytes of ids as text; *text is NUL-terminated, freed by the caller. */
YOKE_API int yoke_detokenize(const struct yoke *y, const int32_t *ids, size_t n, bool special, char **text,
                             size_t *size, struct yoke_error *error);

/* A tokenizer alone, without loading the weights. */
struct yoke_tokenizer;
YOKE_API int yoke_tokenizer_open(struct yoke_tokenizer **out, const struct yoke_options *options,
                                 struct yoke_error *error);
YOKE_API void yoke_tokenizer_close(struct yoke_tokenizer *t);
YOKE_API int yoke_tokenizer_encode(const struct yoke_tokenizer *t, const char *text, size_t size, bool bos,
                                   bool special, int32_t **ids, size_t *n, struct yoke_error *error);
YOKE_API int yoke_tokenizer_decode(const struct yoke_tokenizer *t, const int32_t *ids, size_t n, bool special,
                                   char **text, size_t *size, struct yoke_error *error);

/* ---- generating ---- */

struct yoke_sampling {
    double temperature;    /* 0 = greedy, ties to the lowest id */
    double top_p;          /* 1 = off */
    int top_k;             /* 0 = off */
    double min_p;          /* 0 = off */
    double repeat_penalty; /* 1 = off; over the last 64 tokens */
    uint64_t seed; /* random numbers are keyed by (seed, position): the same request gives the same text */
};
YOKE_API void yoke_sampling_defaults(struct yoke_sampling *s); /* 0.8, 0.95, 0, 0, 1, seed 0 */

struct yoke_request_options {
    const int32_t *tokens; /* prompt, copied */
    size_t n_tokens;
    int max_tokens; /* to generate; 0 is allowed (prefill only) */
    struct yoke_sampling sampling;
    const char *const *stop; /* generation ends before any of these texts appears */
    size_t n_stop;
    bool ignore_eos;
    bool prompt_logits; /* yoke_next() also hands out the logits of every prompt position */
};

struct yoke_request;

enum yoke_event_kind {
    YOKE_EVENT_LOGITS,   /* logits of prompt positions (only with prompt_logits) */
    YOKE_EVENT_TOKEN,    /* one token was sampled */
    YOKE_EVENT_FINISHED, /* the last event */
};
enum yoke_finish { YOKE_FINISH_STOP, YOKE_FINISH_LENGTH, YOKE_FINISH_CANCELED, YOKE_FINISH_ERROR };

struct yoke_event {
    enum yoke_event_kind kind;
    /* YOKE_EVENT_LOGITS: (n_positions, n_vocab) fp32 of prompt positions [position, position + n_positions)
     */
    const float *logits;
    int position, n_positions;
    /* YOKE_EVENT_TOKEN */
    int32_t token;
    const char
        *text; /* bytes it adds to the text: complete UTF-8 characters, none that may belong to a stop text;
                  "" when there is nothing yet. Also with FINISHED: what was held back. */
    size_t text_size;
    /* YOKE_EVENT_FINISHED */
    enum yoke_finish finish;
    struct yoke_error error; /* YOKE_FINISH_ERROR */
};

struct yoke_request_stats {
    size_t prompt_tokens, generated_tokens;
    double ttft_ms;    /* submit to first token */
    double prefill_ms; /* start of its first step to the end of the step that completed the prompt */
    double decode_ms;  /* first to last token */
    uint64_t decode_steps;
    uint64_t logits_hash; /* over the fp32 logits of every position whose token was sampled */
};

/* Queues a request. YOKE_EINPUT when it cannot ever run (prompt + max_tokens beyond ctx, ids out of range, no
 * tokens). */
YOKE_API int yoke_submit(struct yoke *y, const struct yoke_request_options *options,
                         struct yoke_request **out, struct yoke_error *error);
/* Waits for the next event. Pointers in *event stay valid until the next call for this request. After
 * YOKE_EVENT_FINISHED it must not be called again. */
YOKE_API void yoke_next(struct yoke_request *r, struct yoke_event *event);
/* Asks to stop; events go on until YOKE_EVENT_FINISHED. Async-signal-safe. */
YOKE_API void yoke_cancel(struct yoke_request *r);
YOKE_API void yoke_request_get_stats(const struct yoke_request *r, struct yoke_request_stats *out);
/* Cancels if need be, waits for the engine to let go, frees. */
YOKE_API void yoke_request_close(struct yoke_request *r);

/* ---- perplexity ---- */

struct yoke_perplexity {
    double perplexity, nll; /* nll: mean negative log-likelihood, nats per token */
    uint64_t n_tokens;
    double kl; /* mean KL divergence to the reference model, nats; only with a reference */
    double seconds;
};
/* Consecutive windows of `window` positions (0 = ctx), each starting afresh, over the first max_tokens (0 =
 * all) predicted tokens of ids (which begin with the begin token). reference: another open model with the
 * same vocabulary, or NULL. */
YOKE_API int yoke_measure_perplexity(struct yoke *y, struct yoke *reference, const int32_t *ids, size_t n,
                                     int window, uint64_t max_tokens, yoke_progress *progress,
                                     void *progress_user, struct yoke_perplexity *out,
                                     struct yoke_error *error);

/* ---- quantizing ---- */

struct yoke_quantize_options {
    const char *model;  /* checkpoint directory with float weights */
    const char *output; /* directory to create: an MLX-affine checkpoint (config.json, model.safetensors,
                           tokenizer) */
    int bits;           /* 3, 4, 5, 6, 8 */
    int group;          /* 32, 64, 128 */
    yoke_progress *progress;
    void *progress_user;
};
YOKE_API int yoke_quantize(const struct yoke_quantize_options *options, struct yoke_error *error);

/* ---- the machine ---- */

struct yoke_place {
    int rank;
    const char *kind; /* "machine", "node", "l3", "cores", "shared" */
    int node;
    int n_cpus;
    const int *cpus;
    uint64_t memory_bytes, available_bytes; /* available: 0 for a described machine */
};
struct yoke_topo;
/* synthetic: a machine in hwloc's syntax, or NULL for this one. tp, threads as in yoke_options. */
YOKE_API int yoke_topo_open(struct yoke_topo **out, const char *synthetic, int tp, int threads,
                            struct yoke_error *error);
YOKE_API void yoke_topo_close(struct yoke_topo *t);
/* Counts: NUMA nodes, L3 domains, cores, hardware threads; returns the number of ranks. */
YOKE_API int yoke_topo_counts(const struct yoke_topo *t, int *nodes, int *l3, int *cores, int *cpus,
                              int *threads_per_rank);
YOKE_API int yoke_topo_place(const struct yoke_topo *t, int rank, struct yoke_place *out);
/* What this CPU offers: a space-separated list of instruction sets Yoke has kernels for, best first. */
YOKE_API const char *yoke_isa_list(void);

#ifdef __cplusplus
}
#endif
#endif

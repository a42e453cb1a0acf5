/* support.c - see support.h. */
#include "support.h"

#include "base/half.h"
#include "file/safetensors_write.h"
#include "model/source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- files ---- */

char *path_join(const char *directory, const char *name)
{
    size_t size = strlen(directory) + strlen(name) + 2;
    char *path = malloc(size);
    assert_non_null(path);
    snprintf(path, size, "%s/%s", directory, name);
    return path;
}

char *path_of_source(const char *name)
{
    return path_join(SOURCE_ROOT, name);
}

static char *shared_root(void)
{
    const char *root = getenv("YOKE_DATA");
    return root ? strdup(root) : path_of_source("../shared/data");
}

char *path_of_shared(const char *name)
{
    char *root = shared_root(), *path = path_join(root, name);
    free(root);
    if (access(path, F_OK)) {
        print_message("skipped: %s is not there (set YOKE_DATA to the folder with the test data)\n", path);
        free(path);
        skip();
    }
    return path;
}

char *path_of_data(const char *name)
{
    char *data = path_of_source("tests/data"), *path = path_join(data, name);
    free(data);
    if (!access(path, F_OK))
        return path;
    free(path);
    return path_of_shared(name);
}

char *make_directory(void)
{
    const char *root = getenv("TMPDIR");
    char *path = path_join(root ? root : P_tmpdir, "yoke-test-XXXXXX");
    assert_non_null(mkdtemp(path));
    return path;
}

void remove_directory(char *path)
{
    char command[4200];
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    assert_int_equal(system(command), 0);
    free(path);
}

void write_text(const char *directory, const char *name, const char *text)
{
    char *path = path_join(directory, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
    free(path);
}

char *read_file(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("%s: %s", path, strerror(errno));
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    size_t n = (size_t)ftell(f);
    rewind(f);
    char *bytes = malloc(n + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, n, f), n);
    bytes[n] = 0;
    fclose(f);
    if (size)
        *size = n;
    return bytes;
}

json_t *read_json(const char *path)
{
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error);
    if (!root)
        fail_msg("%s: line %d: %s", path, error.line, error.text);
    return root;
}

size_t json_ids(const json_t *array, int32_t **ids)
{
    assert_true(json_is_array(array));
    size_t n = json_array_size(array);
    *ids = calloc(n + 1, sizeof **ids);
    assert_non_null(*ids);
    for (size_t i = 0; i < n; i++)
        (*ids)[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return n;
}

/* ---- small random checkpoints ---- */

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static void write_config_json(const char *directory, const struct checkpoint_shape *s)
{
    char text[2048];
    snprintf(text, sizeof text,
             "{\"model_type\": \"llama\", \"num_hidden_layers\": %d, \"hidden_size\": %d, "
             "\"num_attention_heads\": %d, "
             "\"num_key_value_heads\": %d, \"head_dim\": %d, \"intermediate_size\": %d, \"vocab_size\": %d, "
             "\"max_position_embeddings\": 1024, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, "
             "\"tie_word_embeddings\": %s%s}\n",
             s->n_layers, s->dim, s->n_heads, s->n_kv_heads, s->head_dim, s->ffn_dim, s->n_vocab,
             s->tied ? "true" : "false", s->more_config ? s->more_config : "");
    write_text(directory, "config.json", text);
}

/* Uniform in ±scale; norms around 1. */
static void write_weight(struct safetensors_writer *w, const struct tensor_spec *spec, bool norm,
                         uint32_t *state)
{
    int64_t n = spec->shape[0] * (spec->n_dims == 2 ? spec->shape[1] : 1);
    size_t size = spec->dtype == DTYPE_F32 ? 4 : 2;
    uint8_t *bytes = malloc((size_t)n * size);
    assert_non_null(bytes);
    for (int64_t i = 0; i < n; i++) {
        float x = (float)next_random(state) * 0x1p-23f - 1;
        x = norm ? 1 + x / 4 : x / 4;
        uint16_t half = spec->dtype == DTYPE_F16 ? f32_to_f16(x) : f32_to_bf16(x);
        memcpy(bytes + (size_t)i * size, size == 4 ? (void *)&x : (void *)&half, size);
    }
    struct err err;
    assert_int_equal(safetensors_write(w, bytes, (size_t)n * size, &err), 0);
    free(bytes);
}

enum { MAX_SPECS = 256 };

static size_t list_weights(const struct checkpoint_shape *s, struct tensor_spec *specs, bool *norms,
                           char (*names)[96])
{
    struct config c = {.n_layers = s->n_layers,
                       .dim = s->dim,
                       .n_heads = s->n_heads,
                       .n_kv_heads = s->n_kv_heads,
                       .head_dim = s->head_dim,
                       .ffn_dim = s->ffn_dim,
                       .n_vocab = s->n_vocab};
    const struct family *family = family_by_model_type("llama");
    size_t n = 0;
    for (int layer = -1; layer < s->n_layers; layer++) {
        for (int role = 0; role < N_WEIGHT_ROLES; role++) {
            const struct weight_spec *spec = &family->weights[role];
            if (spec->per_layer != (layer >= 0) || (role == W_HEAD && s->tied))
                continue;
            assert_true(n < MAX_SPECS);
            const char *number = strstr(spec->hf_name, "%d");
            if (number)
                snprintf(names[n], 96, "%.*s%d%s", (int)(number - spec->hf_name), spec->hf_name, layer,
                         number + 2);
            else
                snprintf(names[n], 96, "%s", spec->hf_name);
            norms[n] = spec->vector;
            specs[n] = (struct tensor_spec){
                .name = names[n], .dtype = s->dtype, .n_dims = spec->vector ? 1 : 2, .shape = {s->dim}};
            if (!spec->vector)
                config_weight_shape(&c, (enum weight_role)role, &specs[n].shape[0], &specs[n].shape[1]);
            n++;
        }
    }
    return n;
}

void checkpoint_write(const char *directory, const struct checkpoint_shape *shape)
{
    static struct tensor_spec specs[MAX_SPECS];
    static char names[MAX_SPECS][96];
    static bool norms[MAX_SPECS];
    struct safetensors_writer *w;
    struct err err;
    uint32_t state = 1;
    size_t n = list_weights(shape, specs, norms, names);
    write_config_json(directory, shape);
    char *path = path_join(directory, "model.safetensors");
    assert_int_equal(safetensors_create(&w, path, specs, n, NULL, &err), 0);
    for (size_t i = 0; i < n; i++)
        write_weight(w, &specs[i], norms[i], &state);
    assert_int_equal(safetensors_finish(w, true, &err), 0);
    free(path);
}

void checkpoint_quantize(const char *model, const char *output, int bits, int group)
{
    struct yoke_quantize_options o = {.model = model, .output = output, .bits = bits, .group = group};
    struct yoke_error error = {0};
    if (yoke_quantize(&o, &error))
        fail_msg("quantising %s: %s", model, error.message);
}

/* ---- asking a model ---- */

struct yoke *open_model(const struct yoke_options *options)
{
    struct yoke *y = NULL;
    struct yoke_error error = {0};
    if (yoke_open(&y, options, &error))
        fail_msg("%s: %s", options->model, error.message);
    return y;
}

struct yoke_request_options plain_request(const int32_t *prompt, size_t n, int max_tokens)
{
    return (struct yoke_request_options){
        .tokens = prompt,
        .n_tokens = n,
        .max_tokens = max_tokens,
        .sampling = {.temperature = 0, .top_p = 1, .repeat_penalty = 1},
        .ignore_eos = true,
        .prompt_logits = true,
    };
}

struct yoke_request *submit(struct yoke *y, const struct yoke_request_options *options)
{
    struct yoke_request *r = NULL;
    struct yoke_error error = {0};
    if (yoke_submit(y, options, &r, &error))
        fail_msg("submit: %s", error.message);
    return r;
}

/* Memory runs out in no test: an allocation that fails ends the process by the null pointer. */
static void add_text(struct answer *a, const char *text, size_t size)
{
    size_t old = a->text ? strlen(a->text) : 0;
    a->text = realloc(a->text, old + size + 1);
    memcpy(a->text + old, text, size);
    a->text[old + size] = 0;
}

struct answer answer_collect(struct yoke *y, struct yoke_request *r, int cancel_after)
{
    struct answer a = {.n_vocab = yoke_get_info(y)->n_vocab};
    size_t row = (size_t)a.n_vocab * sizeof(float);
    struct yoke_event e;
    do {
        yoke_next(r, &e);
        if (e.kind == YOKE_EVENT_LOGITS) {
            a.n_prompt = e.position + e.n_positions;
            a.logits = realloc(a.logits, (size_t)a.n_prompt * row);
            memcpy(a.logits + (size_t)e.position * (size_t)a.n_vocab, e.logits, (size_t)e.n_positions * row);
            continue;
        }
        add_text(&a, e.text, e.text_size);
        if (e.kind == YOKE_EVENT_TOKEN) {
            a.tokens = realloc(a.tokens, (size_t)(a.n_tokens + 1) * sizeof *a.tokens);
            a.tokens[a.n_tokens++] = e.token;
            if (a.n_tokens == cancel_after)
                yoke_cancel(r);
        }
    } while (e.kind != YOKE_EVENT_FINISHED);
    a.finish = e.finish;
    a.error = e.error;
    yoke_request_get_stats(r, &a.stats);
    yoke_request_close(r);
    return a;
}

struct answer ask(struct yoke *y, const struct yoke_request_options *options)
{
    return answer_collect(y, submit(y, options), -1);
}

void answer_free(struct answer *a)
{
    free(a->logits);
    free(a->tokens);
    free(a->text);
    *a = (struct answer){0};
}

void assert_same_answer(const struct answer *a, const struct answer *expected, const char *setting)
{
    if (a->finish != expected->finish || a->n_prompt != expected->n_prompt ||
        a->n_tokens != expected->n_tokens)
        fail_msg("%s: finish %d with %d + %d positions, expected %d with %d + %d (%s)", setting,
                 (int)a->finish, a->n_prompt, a->n_tokens, (int)expected->finish, expected->n_prompt,
                 expected->n_tokens, a->error.message);
    for (int i = 0; i < a->n_prompt; i++) {
        size_t at = (size_t)i * (size_t)a->n_vocab, n = (size_t)a->n_vocab;
        if (!memcmp(a->logits + at, expected->logits + at, n * sizeof(float)))
            continue;
        size_t k = 0;
        while (!memcmp(&a->logits[at + k], &expected->logits[at + k], sizeof(float)))
            k++;
        fail_msg("%s: logit %zu of position %d is %a, expected %a", setting, k, i, (double)a->logits[at + k],
                 (double)expected->logits[at + k]);
    }
    for (int i = 0; i < a->n_tokens; i++)
        if (a->tokens[i] != expected->tokens[i])
            fail_msg("%s: generated token %d is %d, expected %d", setting, i, (int)a->tokens[i],
                     (int)expected->tokens[i]);
    if (a->stats.logits_hash != expected->stats.logits_hash)
        fail_msg("%s: logits hash %016llx, expected %016llx", setting,
                 (unsigned long long)a->stats.logits_hash, (unsigned long long)expected->stats.logits_hash);
}

int32_t *random_prompt(size_t n, int n_vocab, uint32_t seed)
{
    int32_t *ids = malloc((n ? n : 1) * sizeof *ids);
    assert_non_null(ids);
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)(next_random(&seed) % (uint32_t)n_vocab);
    return ids;
}

void for_each_isa(void (*visit)(const char *isa, bool best, void *arg), void *arg)
{
    char list[256], *rest = list;
    snprintf(list, sizeof list, "%s", yoke_isa_list());
    bool best = true;
    for (char *isa; (isa = strtok_r(rest, " ", &rest)); best = false)
        visit(isa, best, arg);
}

/* test_perplexity.c - perplexity of a held-out text: of the float model as Hugging Face transformers has it,
 * and what each number of bits adds to it. Takes about a minute. */
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW = 1024, QUANTISED_TOKENS = 4096 };

struct text {
    char *model; /* the float original */
    int32_t *ids;
    size_t n;
};

static struct yoke *open_novella(const char *model, const char *kv)
{
    struct yoke_options o = {.model = model, .kv = kv, .tp = 2, .threads = 1, .ctx = WINDOW};
    return open_model(&o);
}

static void tokenize_text(struct yoke *y, struct text *t)
{
    char *path = path_join(t->model, "eval-hound.txt");
    size_t size;
    char *bytes = read_file(path, &size);
    assert_int_equal(yoke_tokenize(y, bytes, size, true, false, &t->ids, &t->n, NULL), 0);
    free(bytes);
    free(path);
}

static struct yoke_perplexity measure(struct yoke *y, struct yoke *reference, const struct text *t,
                                      uint64_t tokens)
{
    struct yoke_perplexity p;
    struct yoke_error error = {0};
    if (yoke_measure_perplexity(y, reference, t->ids, t->n, WINDOW, tokens, NULL, NULL, &p, &error))
        fail_msg("%s", error.message);
    assert_int_equal(p.n_tokens, tokens);
    assert_true(fabs(log(p.perplexity) - p.nll) < 1e-9);
    return p;
}

static void test_float_equals_transformers(void **state)
{
    struct text t = {.model = path_of_shared("novella-23m")};
    char *golden = path_of_data("novella-23m/golden.json");
    json_t *root = read_json(golden);
    const json_t *entry = json_object_get(json_object_get(root, "nll"), "eval-hound.txt");
    double expected = json_number_value(json_array_get(entry, 0));
    uint64_t tokens = (uint64_t)json_integer_value(json_array_get(entry, 1));
    assert_int_equal(tokens, 16384);
    struct yoke *y = open_novella(t.model, "f32");
    tokenize_text(y, &t);
    struct yoke_perplexity p = measure(y, NULL, &t, tokens);
    print_message("bf16: perplexity %.4f, transformers %.4f\n", p.perplexity, exp(expected));
    assert_true(fabs(p.perplexity / exp(expected) - 1) < 1e-3);
    yoke_close(y);
    json_decref(root);
    free(golden);
    free(t.ids);
    free(t.model);
}

static void test_cost_of_bits(void **state)
{
    static const struct {
        int bits;
        double most; /* of perplexity, relative */
    } kinds[] = {{8, 0.002}, {6, 0.01}, {4, 0.06}};
    struct text t = {.model = path_of_shared("novella-23m")};
    char *directory = make_directory();
    struct yoke *original = open_novella(t.model, NULL);
    tokenize_text(original, &t);
    double plain = measure(original, NULL, &t, QUANTISED_TOKENS).perplexity, last_kl = 0;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char name[16];
        snprintf(name, sizeof name, "%d", kinds[i].bits);
        char *model = path_join(directory, name);
        checkpoint_quantize(t.model, model, kinds[i].bits, 64);
        struct yoke *y = open_novella(model, NULL);
        struct yoke_perplexity p = measure(y, original, &t, QUANTISED_TOKENS);
        print_message("%d bits: perplexity %.4f (bf16 %.4f), KL %.6f\n", kinds[i].bits, p.perplexity, plain,
                      p.kl);
        assert_true(p.perplexity / plain - 1 < kinds[i].most);
        assert_true(p.perplexity / plain - 1 > -kinds[i].most);
        assert_true(isfinite(p.kl) && p.kl > last_kl);
        last_kl = p.kl;
        yoke_close(y);
        free(model);
    }
    assert_true(last_kl < 0.1);
    yoke_close(original);
    remove_directory(directory);
    free(t.ids);
    free(t.model);
}

/* What can be said without the original: a text in English is not noise to the model that ships, in any
 * windows. */
static void test_demo(void **state)
{
    static const char text[] = "Mr. Sherlock Holmes, who was usually very late in the mornings, save upon "
                               "those not infrequent occasions when he "
                               "was up all night, was seated at the breakfast table. I stood upon the "
                               "hearth-rug and picked up the stick which "
                               "our visitor had left behind him the night before.";
    struct text t = {.model = path_of_source("models/demo")};
    struct yoke *y = open_novella(t.model, NULL), *other = open_novella(t.model, NULL);
    assert_int_equal(yoke_tokenize(y, text, strlen(text), true, false, &t.ids, &t.n, NULL), 0);
    struct yoke_perplexity p = measure(y, other, &t, t.n - 1);
    assert_true(p.perplexity > 5 && p.perplexity < 100);
    assert_true(p.kl == 0); /* the same model: the same bits */
    struct yoke_error error = {0};
    assert_int_equal(yoke_measure_perplexity(y, y, t.ids, t.n, WINDOW, 0, NULL, NULL, &p, &error),
                     YOKE_EUSAGE);
    yoke_close(other);
    yoke_close(y);
    free(t.ids);
    free(t.model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_demo),
        cmocka_unit_test(test_float_equals_transformers),
        cmocka_unit_test(test_cost_of_bits),
    };
    return cmocka_run_group_tests_name("perplexity", tests, NULL, NULL);
}

/* test_one_answer_small.c - "One answer" on a model of a few hundred million parameters, whose matrices are
 * larger than any cache and whose head sizes are those of real models. */
#include "support.h"

#include <stdio.h>
#include <stdlib.h>

static struct answer answer_of(int tp, int threads, int chunk)
{
    struct yoke_options o = {
        .model = "synth:small:q4_0", .tp = tp, .threads = threads, .chunk = chunk, .ctx = 256};
    struct yoke *y = open_model(&o);
    size_t n = TEST_SLOW ? 20 : 140;
    int32_t *prompt = random_prompt(n, yoke_get_info(y)->n_vocab, 3);
    struct yoke_request_options request = plain_request(prompt, n, 4);
    struct answer a = ask(y, &request);
    assert_int_equal(a.finish, YOKE_FINISH_LENGTH);
    free(prompt);
    yoke_close(y);
    return a;
}

static void test_small(void **state)
{
    static const struct {
        int tp, threads, chunk;
    } settings[] = {{2, 1, 512}, {4, 1, 64}, {8, 1, 512}, {1, 2, 7}, {2, 1, 33}};
    struct answer expected = answer_of(1, 1, 512);
    for (size_t i = 0; i < (TEST_SLOW ? 1 : sizeof settings / sizeof *settings); i++) {
        char name[64];
        snprintf(name, sizeof name, "--tp %d --threads %d --chunk %d", settings[i].tp, settings[i].threads,
                 settings[i].chunk);
        struct answer a = answer_of(settings[i].tp, settings[i].threads, settings[i].chunk);
        assert_same_answer(&a, &expected, name);
        answer_free(&a);
    }
    answer_free(&expected);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_small)};
    return cmocka_run_group_tests_name("one answer, 255M parameters", tests, NULL, NULL);
}

/* test_split.c - the ranks' shares cover every weight exactly once, whatever the shape, and are cut where
 * heads, groups and panels allow. */
#include "support.h"

#include "model/split.h"
#include "ops/pack.h"

/* The ranks' shares of one count follow each other without a gap. */
static void assert_covers(int64_t *next, int64_t first, int64_t count)
{
    assert_true(count >= 0);
    if (count)
        assert_int_equal(first, *next);
    *next += count;
}

static void check_shape(const struct config *c, int head_group, int ffn_group, int n_ranks)
{
    int64_t heads = 0, channels = 0, vocab = 0, q_rows = 0, ffn_rows = 0;
    for (int rank = 0; rank < n_ranks; rank++) {
        struct split s;
        split_make(&s, c, head_group, ffn_group, rank, n_ranks);
        assert_covers(&heads, s.q_head, s.n_q_heads);
        assert_covers(&channels, s.ffn, s.n_ffn);
        assert_covers(&vocab, s.vocab, s.n_vocab);

        /* No group and no panel is divided. */
        assert_int_equal((int64_t)s.q_head * c->head_dim % head_group, 0);
        assert_int_equal(s.ffn % ffn_group, 0);
        assert_int_equal(s.vocab % PANEL, 0);

        /* Every query head finds its KV head, and no KV head is there for nothing. */
        int per_kv = c->n_heads / c->n_kv_heads;
        if (s.n_q_heads) {
            assert_int_equal(s.kv_head, s.q_head / per_kv);
            assert_int_equal(s.kv_head + s.n_kv_heads - 1, (s.q_head + s.n_q_heads - 1) / per_kv);
        } else {
            assert_int_equal(s.n_kv_heads, 0);
        }

        int64_t first, count;
        split_rows(&s, c, SPLIT_Q_HEADS, &first, &count);
        assert_covers(&q_rows, first, count);
        split_rows(&s, c, SPLIT_FFN, &first, &count);
        assert_covers(&ffn_rows, first, count);
        split_rows(&s, c, SPLIT_KV_HEADS, &first, &count);
        assert_int_equal(count, (int64_t)s.n_kv_heads * c->head_dim);
        assert_true(first >= 0 && first + count <= (int64_t)c->n_kv_heads * c->head_dim);
        split_rows(&s, c, SPLIT_VOCAB, &first, &count);
        assert_int_equal(count, s.n_vocab);
        split_rows(&s, c, SPLIT_HEAD_COLS, &first, &count);
        assert_true(first == 0 && count == c->dim);
        split_rows(&s, c, SPLIT_FFN_COLS, &first, &count);
        assert_true(first == 0 && count == c->dim);

        /* The columns of the column-split matrices are the rows of those that feed them. */
        struct kcut cut;
        assert_int_equal(
            kcut_make(&cut, (int64_t)c->n_heads * c->head_dim, s.head_unit, rank, n_ranks, false), 0);
        assert_int_equal(cut.k, (int64_t)s.n_q_heads * c->head_dim);
        if (cut.k)
            assert_int_equal(cut.k_first, (int64_t)s.q_head * c->head_dim);
        kcut_free(&cut);
        assert_int_equal(kcut_make(&cut, c->ffn_dim, s.ffn_unit, rank, n_ranks, false), 0);
        assert_int_equal(cut.k, s.n_ffn);
        if (cut.k)
            assert_int_equal(cut.k_first, s.ffn);
        kcut_free(&cut);
    }
    assert_int_equal(heads, c->n_heads);
    assert_int_equal(channels, c->ffn_dim);
    assert_int_equal(vocab, c->n_vocab);
    assert_int_equal(q_rows, (int64_t)c->n_heads * c->head_dim);
    assert_int_equal(ffn_rows, c->ffn_dim);
}

static void test_shares_cover_the_whole(void **state)
{
    static const int heads[][2] = {{1, 1}, {2, 1}, {3, 1},  {4, 4},  {5, 5},  {6, 3}, {6, 2},
                                   {8, 4}, {9, 3}, {12, 4}, {32, 8}, {64, 8}, {96, 8}};
    static const int head_dims[] = {2, 8, 20, 48, 64, 80, 128};
    static const int groups[] = {1, 16, 32, 64, 128};
    static const int ffn_units[] = {1, 2, 7, 8, 11, 43};
    static const int vocabs[] = {1, 15, 16, 17, 301, 512, 32000, 128256};
    unsigned checked = 0;
    for (size_t h = 0; h < sizeof heads / sizeof *heads; h++)
        for (size_t d = 0; d < sizeof head_dims / sizeof *head_dims; d++)
            for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
                size_t at = h + d + g;
                struct config c = {.dim = 64,
                                   .n_heads = heads[h][0],
                                   .n_kv_heads = heads[h][1],
                                   .head_dim = head_dims[d],
                                   .ffn_dim = ffn_units[at % 6] * groups[g],
                                   .n_vocab = vocabs[at % 8]};
                /* The output projection's inputs are whole groups, as in any file that can be read. */
                if (c.n_heads * c.head_dim % groups[g])
                    continue;
                for (int n_ranks = 1; n_ranks <= 8; n_ranks *= 2, checked++)
                    check_shape(&c, groups[g], groups[g], n_ranks);
            }
    assert_true(checked > 500);
}

/* A real model over 8 ranks: the numbers a reader would expect. */
static void test_known_split(void **state)
{
    struct config c = {
        .dim = 4096, .n_heads = 32, .n_kv_heads = 8, .head_dim = 128, .ffn_dim = 14336, .n_vocab = 128256};
    for (int rank = 0; rank < 8; rank++) {
        struct split s;
        split_make(&s, &c, 32, 32, rank, 8);
        assert_int_equal(s.n_q_heads, 4);
        assert_int_equal(s.n_kv_heads, 1);
        assert_int_equal(s.kv_head, rank);
        assert_int_equal(s.n_ffn, 1792);
        assert_int_equal(s.n_vocab, 16032);
    }
}

/* The cut does not depend on the number of ranks: a rank of 2 owns what two of 4 own. */
static void test_ranks_own_whole_subtrees(void **state)
{
    struct config c = {
        .dim = 72, .n_heads = 6, .n_kv_heads = 3, .head_dim = 20, .ffn_dim = 100, .n_vocab = 301};
    for (int n_ranks = 1; n_ranks <= 4; n_ranks *= 2)
        for (int rank = 0; rank < n_ranks; rank++) {
            struct split whole, a, b;
            split_make(&whole, &c, 1, 1, rank, n_ranks);
            split_make(&a, &c, 1, 1, 2 * rank, 2 * n_ranks);
            split_make(&b, &c, 1, 1, 2 * rank + 1, 2 * n_ranks);
            assert_int_equal(a.n_q_heads + b.n_q_heads, whole.n_q_heads);
            assert_int_equal(a.n_ffn + b.n_ffn, whole.n_ffn);
            assert_int_equal(a.ffn, whole.ffn);
            assert_int_equal(b.ffn, a.ffn + a.n_ffn);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shares_cover_the_whole),
        cmocka_unit_test(test_known_split),
        cmocka_unit_test(test_ranks_own_whole_subtrees),
    };
    return cmocka_run_group_tests_name("split", tests, NULL, NULL);
}

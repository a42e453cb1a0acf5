/* test_tokenizer.c - the tokenizer on what the project ships: made-up tokenizer.json files for each component
 * and each way to be wrong, stories260k.gguf, hostile patterns and texts. */
#include "../file/support.h"

#include "text/tokenizer.h"

/* Single quotes stand for double ones, to keep the JSON below readable. */
static int open_quoted(struct tokenizer **t, const char *text, const char *config, struct err *err)
{
    char *json = strdup(text), *second = config ? strdup(config) : NULL;
    assert_non_null(json);
    for (char *c = json; *c; c++)
        if (*c == '\'')
            *c = '"';
    for (char *c = second; c && *c; c++)
        if (*c == '\'')
            *c = '"';
    int rc = tokenizer_open_json(t, json, strlen(json), second, second ? strlen(second) : 0, "t.json", err);
    free(json);
    free(second);
    return rc;
}

static struct tokenizer *open_ok(const char *text, const char *config)
{
    struct err err = {0};
    struct tokenizer *t;
    if (open_quoted(&t, text, config, &err))
        fail_msg("%s", err.message);
    return t;
}

/* Encodes and compares with ids written as "1 2 3". */
static void check(const struct tokenizer *t, const char *text, int flags, const char *expected)
{
    struct err err = {0};
    struct ids ids = {0};
    struct buf got = {0};
    if (tokenizer_encode(t, text, strlen(text), flags, &ids, &err))
        fail_msg("%s", err.message);
    buf_puts(&got, "");
    for (size_t i = 0; i < ids.n; i++)
        buf_printf(&got, i ? " %d" : "%d", ids.data[i]);
    if (strcmp(got.data, expected))
        fail_msg("\"%s\" gave %s, expected %s", text, got.data, expected);
    buf_free(&got);
    ids_free(&ids);
}

static void check_text(const struct tokenizer *t, const int32_t *ids, size_t n, bool special,
                       const char *expected)
{
    struct buf out = {0};
    buf_puts(&out, "");
    tokenizer_decode(t, ids, n, special, &out);
    assert_string_equal(out.data, expected);
    buf_free(&out);
}

#define VOCAB  "'vocab': {'a': 0, 'b': 1, 'c': 2, 'ab': 3, 'bc': 4, 'abc': 5, ' ': 6, '?': 7, 'é': 8}"
#define MERGES "'merges': ['b c', ['a', 'b'], 'ab c', 'a bc']"
#define MODEL  "'model': {'type': 'BPE', 'unk_token': '?', " VOCAB ", " MERGES "}"

static void test_merge_order(void **state)
{
    struct tokenizer *t = open_ok("{" MODEL "}", NULL);
    check(t, "", 0, "");
    check(t, "abc", 0, "5"); /* b c first, then a bc */
    check(t, "ab", 0, "3");
    check(t, "abab", 0, "3 3");
    check(t, "aab bc", 0, "0 3 6 4");
    check(t, "x", 0, "7");
    check(t, "xy", 0, "7 7"); /* not fused */
    check(t, "abcabcabcabc", 0, "5 5 5 5");
    tokenizer_close(t);
    t = open_ok("{'model': {'fuse_unk': true, 'unk_token': '?', " VOCAB ", " MERGES "}}", NULL);
    check(t, "axyzb", 0, "0 7 1");
    tokenizer_close(t);
    t = open_ok("{'model': {" VOCAB ", 'merges': ['a b']}}", NULL);
    check(t, "axbc", 0, "3 2"); /* without an unknown token unknown characters vanish, as in the library */
    tokenizer_close(t);
    t = open_ok("{'model': {'ignore_merges': true, " VOCAB ", 'merges': ['a b']}}", NULL);
    check(t, "abc", 0, "5");
    check(t, "abcc", 0, "3 2 2");
    tokenizer_close(t);
}

static void test_byte_fallback(void **state)
{
    struct tokenizer *t = open_ok(
        "{'model': {'byte_fallback': true, 'unk_token': '?', 'vocab': {'?': 0, '<0xC3>': 1, '<0xA9>': 2,"
        " '<0x41>': 3, '\xe2\x96\x81': 4, 'b': 5}, 'merges': []},"
        "'normalizer': {'type': 'Sequence', 'normalizers': [{'type': 'Prepend', 'prepend': '\xe2\x96\x81'},"
        " {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '\xe2\x96\x81'}]},"
        "'decoder': {'type': 'Sequence', 'decoders': [{'type': 'Replace', 'pattern': {'String': "
        "'\xe2\x96\x81'},"
        " 'content': ' '}, {'type': 'ByteFallback'}, {'type': 'Fuse'},"
        " {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}]}}",
        NULL);
    check(t, "\xc3\xa9", 0, "4 1 2");
    check(t, "b A", 0, "4 5 4 3");
    check(t, "\xc3\xa8", 0, "4 0"); /* one of its bytes is no token */
    check_text(t, (int32_t[]){4, 5, 4, 3, 1, 2}, 6, false, "b A\xc3\xa9");
    check_text(t, (int32_t[]){4, 4, 5}, 3, false, " b");
    struct buf out = {0};
    tokenizer_piece(t, 1, false, false, &out); /* half a character */
    assert_int_equal(out.size, 1);
    tokenizer_piece(t, 4, false, false, &out);
    assert_int_equal(out.size, 2);
    tokenizer_piece(t, 4, true, false, &out);
    tokenizer_piece(t, -1, true, false, &out);
    tokenizer_piece(t, 6, true, false, &out);
    assert_int_equal(out.size, 2);
    buf_free(&out);
    tokenizer_close(t);
}

#define ADDED(id, text, flags) "{'id': " #id ", 'content': '" text "'" flags "}"

static void test_added_tokens(void **state)
{
    struct tokenizer *t = open_ok(
        "{" MODEL ", 'added_tokens': [" ADDED(10, "<s>", ", 'special': true") ", " ADDED(
            11, "<s>>",
            ", 'special': true, 'rstrip': true") ", " ADDED(12, "ca", "") ", " ADDED(13, "word",
                                                                                     ", 'single_word': true, "
                                                                                     "'lstrip': true") "]}",
        "{'bos_token': {'content': '<s>'}, 'eos_token': '<s>>', 'add_bos_token': true}");
    check(t, "a<s>b", TOKENIZE_SPECIAL, "0 10 1");
    check(t, "a<s>>  b", TOKENIZE_SPECIAL, "0 11 1"); /* the longest, with the space behind it */
    check(t, "a<s>b", 0, "0 7 7 7 1");
    check(t, "abca", 0, "3 12"); /* not special: always found */
    check(t, "a  word b", 0, "0 13 6 1");
    check(t, "awordb", 0, "0 7 7 7 7 1");
    check(t, "a", TOKENIZE_BOS, "10 0");
    check(t, "", TOKENIZE_BOS, "10");
    const int32_t *eos;
    assert_int_equal(tokenizer_n_tokens(t), 14);
    assert_int_equal(tokenizer_bos(t), 10);
    assert_int_equal(tokenizer_eos(t, &eos), 1);
    assert_int_equal(eos[0], 11);
    assert_true(tokenizer_is_special(t, 10));
    assert_false(tokenizer_is_special(t, 12));
    assert_false(tokenizer_is_special(t, -1));
    assert_false(tokenizer_is_special(t, 99));
    assert_int_equal(tokenizer_id(t, "<s>>", 4), 11);
    assert_int_equal(tokenizer_id(t, "nope", 4), -1);
    check_text(t, (int32_t[]){10, 0, 9, 11, 1}, 5, false, "a b"); /* 9 is a gap; no decoder: spaces between */
    tokenizer_close(t);
}

static void test_template(void **state)
{
    struct tokenizer *t =
        open_ok("{" MODEL ", 'added_tokens': [" ADDED(10, "<s>", ", 'special': true") ", " ADDED(
                    11, "</s>",
                    ", 'special': true") "],"
                                         "'post_processor': {'type': 'Sequence', 'processors': [{'type': "
                                         "'ByteLevel'}, {'type': 'TemplateProcessing',"
                                         "'single': [{'SpecialToken': {'id': '<s>', 'type_id': 0}}, "
                                         "{'Sequence': {'id': 'A', 'type_id': 0}},"
                                         "{'SpecialToken': {'id': '</s>', 'type_id': 0}}], 'special_tokens': "
                                         "{'<s>': {'ids': [10]}, '</s>': {'ids': [11]}}}]}}",
                NULL);
    check(t, "ab", TOKENIZE_BOS, "10 3 11");
    check(t, "ab", 0, "3");
    assert_int_equal(tokenizer_bos(t), 10);
    tokenizer_close(t);
}

/* The vocabulary is letters and the space in its byte-level spelling. */
#define PIECES(steps)                                                                                        \
    "{'model': {'vocab': {'a': 0, 'b': 1, 'aa': 2, 'bb': 3, 'ab': 4, 'ba': 5, '\xc4\xa0': 6, '\xc4\xa0"      \
    "a': 7, '1': 8,"                                                                                         \
    " '11': 9, '!': 10, 'a!': 11, '!a': 12, '\xe2\x96\x81': 13, '\xe2\x96\x81"                               \
    "a': 14, '!!': 15}, 'merges': ['\xc4\xa0 a', '\xe2\x96\x81 a',"                                          \
    " 'a a', 'b b', 'a b', 'b a', '1 1', 'a !', '! a', '! !']}, 'pre_tokenizer': " steps "}"

static void check_pieces(const char *json, const char *text, const char *expected)
{
    struct tokenizer *t = open_ok(json, NULL);
    check(t, text, 0, expected);
    tokenizer_close(t);
}

static void test_pretokenizers(void **state)
{
    static const struct {
        const char *json, *text, *expected;
    } cases[] = {
        {PIECES("null"), "aabb11!a", "2 3 9 12"},
        {PIECES("{'type': 'ByteLevel', 'add_prefix_space': true, 'use_regex': true}"), "a ab 11",
         "7 7 1 6 9"},
        {PIECES("{'type': 'ByteLevel', 'add_prefix_space': false, 'use_regex': false}"), "a aa", "0 7 0"},
        {PIECES("{'type': 'Digits', 'individual_digits': true}"), "aa11", "2 8 8"},
        {PIECES("{'type': 'Digits', 'individual_digits': false}"), "aa11a", "2 9 0"},
        {PIECES("{'type': 'Whitespace'}"), "a!a a", "0 10 0 0"},
        {PIECES("{'type': 'WhitespaceSplit'}"), " a!a  a", "11 0 0"},
        {PIECES("{'type': 'Punctuation'}"), "a!a", "0 10 0"},
        {PIECES("{'type': 'Metaspace', 'prepend_scheme': 'always', 'split': true}"), "a a", "14 14"},
        {PIECES("{'type': 'Metaspace', 'prepend_scheme': 'never', 'split': false}"), "aa a", "2 14"},
        {PIECES("{'type': 'Split', 'pattern': {'String': '!'}, 'behavior': 'Removed'}"), "a!a", "0 0"},
        {PIECES("{'type': 'Split', 'pattern': {'String': '!'}, 'behavior': 'Isolated'}"), "!!a!a",
         "10 10 0 10 0"},
        {PIECES("{'type': 'Split', 'pattern': {'Regex': '!'}, 'behavior': 'Contiguous'}"), "!!a!a",
         "15 0 10 0"},
        {PIECES("{'type': 'Split', 'pattern': {'Regex': '!'}, 'behavior': 'MergedWithPrevious'}"), "a!!a",
         "11 10 0"},
        {PIECES("{'type': 'Split', 'pattern': {'Regex': '!'}, 'behavior': 'MergedWithNext'}"), "a!!a",
         "0 10 12"},
        {PIECES("{'type': 'Split', 'pattern': {'Regex': '[a!]+'}, 'behavior': 'Removed', 'invert': true}"),
         "a!bba", "11 0"},
        {PIECES(
             "{'type': 'Sequence', 'pretokenizers': [{'type': 'WhitespaceSplit'}, {'type': 'Punctuation'}]}"),
         "a! a", "0 10 0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_pieces(cases[i].json, cases[i].text, cases[i].expected);
}

/* Where Oniguruma and PCRE2 read the same pattern differently. */
static void test_pattern_dialect(void **state)
{
#define ONLY(regex)                                                                                          \
    PIECES("{'type': 'Split', 'pattern': {'Regex': '" regex "'}, 'behavior': 'Removed', 'invert': true}")
    check_pieces(ONLY("\\\\h"), "ab !", "0 1");    /* a hexadecimal digit there */
    check_pieces(ONLY("^a"), "a\nab", "0 0");      /* at every line */
    check_pieces(ONLY("b{,1}a"), "bab", "5");      /* from 0 */
    check_pieces(ONLY("(?m:a.)a"), "a\naa1", "2"); /* the dot takes a newline */
    check_pieces(ONLY("[\\\\s\\\\p{L}&]"), "1a", "0");
    check_pieces(ONLY("a(?=\\\\p{Han})"), "a1a\xe4\xb8\xad", "0"); /* a script */
    check_pieces(ONLY("\\\\x{62}|\\\\u0061"), "ab", "0 1");
    check_pieces(ONLY("(?i:A)|[]1]"), "a1", "0 8");
#undef ONLY
}

static void test_normalizers(void **state)
{
#define NORMAL(steps)                                                                                        \
    "{'model': {'unk_token': '?', 'vocab': {'\xc3\xa9': 0, 'e': 1, '\xcc\x81': 2, '?': 3, 'f': 4, 'i': 5, "  \
    "'x': 6}, 'merges': []}, 'normalizer': " steps "}"
    static const struct {
        const char *json, *text, *expected;
    } cases[] = {
        {NORMAL("{'type': 'NFC'}"), "ee\xcc\x81", "1 0"},
        {NORMAL("{'type': 'NFC'}"), "\xef\xac\x81", "3"},
        {NORMAL("{'type': 'NFD'}"), "e\xc3\xa9", "1 1 2"},
        {NORMAL("{'type': 'NFKC'}"), "\xef\xac\x81", "4 5"},
        {NORMAL("{'type': 'NFKD'}"), "\xef\xac\x81\xc3\xa9", "4 5 1 2"},
        {NORMAL("{'type': 'Prepend', 'prepend': 'x'}"), "e", "6 1"},
        {NORMAL("{'type': 'Replace', 'pattern': {'Regex': 'e+'}, 'content': 'xi'}"), "feef", "4 6 5 4"},
        {NORMAL("{'type': 'Replace', 'pattern': {'String': 'ee'}, 'content': ''}"), "feee", "4 1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_pieces(cases[i].json, cases[i].text, cases[i].expected);
}

static void test_refused(void **state)
{
    static const struct {
        const char *json, *message;
    } cases[] = {
        {"", "not valid JSON"},
        {"[]", "object was expected"},
        {"{}", "no \"vocab\""},
        {"{'model': 3}", "no \"vocab\""},
        {"{'model': {'type': 'Unigram', 'vocab': []}}", "model \"Unigram\" is not supported"},
        {"{'model': {'vocab': {}, 'merges': []}}", "empty"},
        {"{'model': {'vocab': {'a': 0}}}", "\"merges\" must be a list"},
        {"{'model': {'vocab': {'a': 'b'}, 'merges': []}}", "id of \"a\""},
        {"{'model': {'vocab': {'a': -1}, 'merges': []}}", "id of \"a\""},
        {"{'model': {'vocab': {'a': 2147483648}, 'merges': []}}", "id of \"a\""},
        {"{'model': {'vocab': {'a': 4000000}, 'merges': []}}", "far too large"},
        {"{'model': {'vocab': {'a': 0, 'b': 0}, 'merges': []}}", "id 0 is both"},
        {"{'model': {" VOCAB ", 'merges': ['a c']}}", "merge 0: \"ac\" is not in the vocabulary"},
        {"{'model': {" VOCAB ", 'merges': ['a x']}}", "merge 0: \"x\" is not in the vocabulary"},
        {"{'model': {" VOCAB ", 'merges': ['abc']}}", "merge 0 is neither"},
        {"{'model': {" VOCAB ", 'merges': ['a b c']}}", "merge 0 is neither"},
        {"{'model': {" VOCAB ", 'merges': [['a']]}}", "merge 0 is neither"},
        {"{'model': {" VOCAB ", 'merges': [7]}}", "merge 0 is neither"},
        {"{'model': {'unk_token': 'u', " VOCAB ", 'merges': []}}", "unk_token \"u\""},
        {"{'model': {'dropout': 0.5, " VOCAB ", 'merges': []}}", "dropout"},
        {"{'model': {'end_of_word_suffix': '</w>', " VOCAB ", 'merges': []}}", "\"</w>\" is not supported"},
        {"{" MODEL ", 'added_tokens': 5}", "\"added_tokens\" must be a list"},
        {"{" MODEL ", 'added_tokens': [{'content': 'q'}]}", "entry 0: there is no \"id\""},
        {"{" MODEL ", 'added_tokens': [{'id': 9}]}", "entry 0: \"content\""},
        {"{" MODEL ", 'added_tokens': [{'id': 1, 'content': 'q'}]}", "id 1 is both"},
        {"{" MODEL ", 'added_tokens': [{'id': 9, 'content': 'a'}]}", "has id 9, but 0"},
        {"{" MODEL ", 'added_tokens': [{'id': 1e9, 'content': 'q'}]}", "must be an integer"},
        {"{" MODEL ", 'normalizer': {'type': 'Precompiled'}}", "normalizer \"Precompiled\" is not supported"},
        {"{" MODEL ", 'normalizer': 7}", "normalizer: an object"},
        {"{" MODEL ", 'normalizer': {'type': 'Replace', 'pattern': {'String': ''}, 'content': 'a'}}",
         "not empty"},
        {"{" MODEL ", 'pre_tokenizer': {'type': 'UnicodeScripts'}}", "pre_tokenizer \"UnicodeScripts\""},
        {"{" MODEL ", 'pre_tokenizer': {'type': 'Split', 'pattern': {'Regex': 'a'}, 'behavior': 'Odd'}}",
         "\"Odd\""},
        {"{" MODEL ", 'pre_tokenizer': {'type': 'Split', 'pattern': {'Regex': '('}, 'behavior': 'Isolated'}}",
         "regular expression"},
        {"{" MODEL
         ", 'pre_tokenizer': {'type': 'Split', 'pattern': {'Regex': '(?R)'}, 'behavior': 'Isolated'}}",
         "not supported"},
        {"{" MODEL
         ", 'pre_tokenizer': {'type': 'Split', 'pattern': {'Regex': '(*UCP)a'}, 'behavior': 'Isolated'}}",
         "not supported"},
        {"{" MODEL
         ", 'pre_tokenizer': {'type': 'Split', 'pattern': {'Regex': '[a[b]]'}, 'behavior': 'Isolated'}}",
         "class inside a class"},
        {"{" MODEL
         ", 'pre_tokenizer': {'type': 'Split', 'pattern': {'Regex': '[a&&b]'}, 'behavior': 'Isolated'}}",
         "intersection"},
        {"{" MODEL
         ", 'pre_tokenizer': {'type': 'Split', 'pattern': {'Regex': 'a{2}+'}, 'behavior': 'Isolated'}}",
         "not supported"},
        {"{" MODEL ", 'decoder': {'type': 'CTC'}}", "decoder \"CTC\" is not supported"},
        {"{" MODEL ", 'decoder': {'type': 'Strip', 'content': ' ', 'start': 0, 'stop': 1}}", "\"stop\""},
        {"{" MODEL ", 'post_processor': {'type': 'BertProcessing'}}", "post_processor \"BertProcessing\""},
        {"{" MODEL ", 'post_processor': {'type': 'TemplateProcessing', 'single': []}}",
         "does not contain the text"},
        {"{" MODEL
         ", 'post_processor': {'type': 'TemplateProcessing', 'single': [{'SpecialToken': {'id': 'q'}}]}}",
         "not a known token"},
        {"{" MODEL
         ", 'post_processor': {'type': 'TemplateProcessing', 'single': [{'SpecialToken': {'id': 'q'}}],"
         " 'special_tokens': {'q': {'ids': [99]}}}}",
         "not in the vocabulary"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err err = {0};
        struct tokenizer *t;
        int rc = open_quoted(&t, cases[i].json, NULL, &err);
        assert_null(t);
        assert_fault(rc, &err, cases[i].message);
    }
    struct err err = {0};
    struct tokenizer *t;
    struct buf deep = {0};
    buf_puts(&deep, "{" MODEL ", 'normalizer': ");
    for (int i = 0; i < 200; i++)
        buf_puts(&deep, "{'type': 'Sequence', 'normalizers': [");
    for (int i = 0; i < 200; i++)
        buf_puts(&deep, "]}");
    buf_puts(&deep, "}");
    assert_fault(open_quoted(&t, deep.data, NULL, &err), &err, "nested");
    buf_free(&deep);
}

/* Every prefix of a good file is refused, and so is each with a byte changed, or opened: nothing else
 * happens. */
static void test_damaged(void **state)
{
    char json[] = PIECES("{'type': 'ByteLevel', 'add_prefix_space': true, 'use_regex': true}");
    struct err err = {0};
    struct tokenizer *t;
    for (size_t n = 0; n + 1 < strlen(json); n++) {
        char *part = strndup(json, n);
        assert_int_not_equal(open_quoted(&t, part, NULL, &err), 0);
        free(part);
    }
    for (size_t n = 0; n + 1 < strlen(json); n++) {
        char kept = json[n];
        json[n] = kept == '\'' ? ',' : '\'';
        if (open_quoted(&t, json, NULL, &err) == 0)
            tokenizer_close(t);
        json[n] = kept;
    }
}

static void test_invalid_utf8(void **state)
{
    struct tokenizer *t = open_ok("{" MODEL "}", NULL);
    static const struct {
        const char *text;
        const char *where;
    } cases[] = {
        {"\xff", "byte 0"},
        {"ab\x80", "byte 2"},
        {"a\xc3", "byte 1"},
        {"\xc3\xa9\xe2\x96", "byte 2"},
        {"\xc0\xaf", "byte 0"},
        {"\xed\xa0\x80", "byte 0"},
        {"a\xf4\x90\x80\x80", "byte 1"},
        {"\xe0\x80\x80", "byte 0"},
        {"\xf0\x80\x80\x80", "byte 0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err err = {0};
        struct ids ids = {0};
        size_t n = strlen(cases[i].text);
        char *text = exact_copy(cases[i].text, n);
        assert_fault(tokenizer_encode(t, text, n, 0, &ids, &err), &err, cases[i].where);
        assert_int_equal(ids.n, 0);
        free(text);
        ids_free(&ids);
    }
    tokenizer_close(t);
}

/* A pattern that needs exponential time must end with an error, not hang. */
static void test_slow_pattern(void **state)
{
    struct tokenizer *t = open_ok("{" MODEL ", 'pre_tokenizer': {'type': 'Split', 'pattern': {'Regex':"
                                  " '(a|a|aa)*[!]c'}, 'behavior': 'Isolated'}}",
                                  NULL);
    struct err err = {0};
    struct ids ids = {0};
    char text[4000];
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = 'c';
    assert_fault(tokenizer_encode(t, text, sizeof text, 0, &ids, &err), &err, "regular expression");
    ids_free(&ids);
    tokenizer_close(t);
}

/* A megabyte without a place to cut: merging must stay near linear (minutes if it were quadratic). */
static void test_long_piece(void **state)
{
    struct tokenizer *t = open_ok("{" MODEL "}", NULL);
    struct err err = {0};
    struct ids ids = {0};
    enum { N = 1 << 20 };
    char *text = malloc(N);
    for (size_t i = 0; i < N; i++)
        text[i] = "abc"[i % 3];
    assert_int_equal(tokenizer_encode(t, text, N, 0, &ids, &err), 0);
    assert_int_equal(ids.n, N / 3 + 1);
    assert_int_equal(ids.data[0], 5);
    assert_int_equal(ids.data[ids.n - 1], 0);
    free(text);
    ids_free(&ids);
    tokenizer_close(t);
    t = open_ok(NORMAL("{'type': 'NFC'}"), NULL);
    text = malloc(N);
    for (size_t i = 0; i < N; i += 4)
        memcpy(text + i, "\xcc\x81\xcc\xa3", 4);
    assert_fault(tokenizer_encode(t, text, N, 0, &ids, &err), &err, "combining marks");
    free(text);
    ids_free(&ids);
    tokenizer_close(t);
}

static void test_stories(void **state)
{
    struct err err = {0};
    struct file *f;
    struct tokenizer *t = NULL;
    if (file_open(&f, SOURCE_ROOT "/tests/data/stories260k.gguf", &err) || tokenizer_open(&t, f, &err))
        fail_msg("%s", err.message);
    file_close(f);
    assert_int_equal(tokenizer_n_tokens(t), 512);
    assert_int_equal(tokenizer_bos(t), 1);
    const int32_t *eos;
    assert_int_equal(tokenizer_eos(t, &eos), 1);
    assert_int_equal(eos[0], 2);
    static const int32_t ids[] = {1,   403, 407, 261, 378, 432, 383, 286, 261, 376, 298,
                                  315, 421, 395, 317, 426, 338, 401, 396, 267, 337, 410,
                                  408, 419, 292, 411, 322, 265, 282, 295, 433, 426};
    static const char text[] =
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.";
    check_text(t, ids, sizeof ids / sizeof *ids, false, text);
    struct buf with = {0};
    buf_printf(&with, "<s> %s", text);
    check_text(t, ids, sizeof ids / sizeof *ids, true, with.data);
    buf_free(&with);
    struct ids got = {0};
    assert_int_equal(tokenizer_encode(t, text, strlen(text), TOKENIZE_BOS, &got, &err), 0);
    assert_int_equal(got.n, sizeof ids / sizeof *ids);
    assert_memory_equal(got.data, ids, sizeof ids);
    ids_free(&got);
    check(t, "<s>", TOKENIZE_SPECIAL, "1");
    check(t, "\xe2\x82\xad", 0, "410 229 133 176"); /* no token: the leading space and three bytes */
    tokenizer_close(t);
}

/* ---- GGUF made in memory ---- */

static void put_string(struct buf *b, const char *s)
{
    uint64_t n = strlen(s);
    buf_append(b, &n, 8);
    buf_puts(b, s);
}

/* type: of the format, 5 = i32, 6 = f32, 8 = string, 9 = array. */
static void put_key(struct buf *b, const char *key, uint32_t type)
{
    put_string(b, key);
    buf_append(b, &type, 4);
}

static void put_array(struct buf *b, const char *key, uint32_t type, uint64_t n, const void *items)
{
    put_key(b, key, 9);
    buf_append(b, &type, 4);
    buf_append(b, &n, 8);
    for (uint64_t i = 0; i < n; i++) {
        if (type == 8)
            put_string(b, ((const char *const *)items)[i]);
        else
            buf_append(b, (const char *)items + 4 * i, 4);
    }
}

struct made {
    const char *model, *pre;
    uint64_t n, n_scores, n_merges;
    const char *const *tokens, *const *merges;
    const int32_t *types;
    const float *scores;
    int32_t bos;
};

static int open_made(struct tokenizer **t, const struct made *m, struct err *err)
{
    struct buf b = {0};
    uint64_t counts[2] = {0, 4 + (m->pre != NULL) + (m->scores != NULL) + (m->merges != NULL)};
    buf_append(&b, "GGUF\3\0\0\0", 8);
    buf_append(&b, counts, 16);
    put_key(&b, "tokenizer.ggml.model", 8);
    put_string(&b, m->model);
    if (m->pre) {
        put_key(&b, "tokenizer.ggml.pre", 8);
        put_string(&b, m->pre);
    }
    put_array(&b, "tokenizer.ggml.tokens", 8, m->n, m->tokens);
    put_array(&b, "tokenizer.ggml.token_type", 5, m->n, m->types);
    if (m->scores)
        put_array(&b, "tokenizer.ggml.scores", 6, m->n_scores, m->scores);
    if (m->merges)
        put_array(&b, "tokenizer.ggml.merges", 8, m->n_merges, m->merges);
    put_key(&b, "tokenizer.ggml.bos_token_id", 5);
    buf_append(&b, &m->bos, 4);
    struct file *f;
    assert_false(b.failed);
    if (file_open_gguf_memory(&f, b.data, b.size, err))
        fail_msg("%s", err->message);
    int rc = tokenizer_open(t, f, err);
    file_close(f);
    buf_free(&b);
    return rc;
}

static void test_gguf(void **state)
{
    static const char *const tokens[] = {"<unk>", "<s>", "a", "b", "ab", "\xe2\x96\x81", "<x>", "ba"};
    static const int32_t types[] = {2, 3, 1, 1, 1, 1, 4, 1};
    static const float scores[] = {0, 0, -5, -5, -2, -3, 0, -1};
    const struct made good = {.model = "llama",
                              .n = 8,
                              .n_scores = 8,
                              .tokens = tokens,
                              .types = types,
                              .scores = scores,
                              .bos = 1};
    struct err err = {0};
    struct tokenizer *t = NULL;
    if (open_made(&t, &good, &err))
        fail_msg("%s", err.message);
    check(t, "aba", TOKENIZE_BOS, "1 5 2 7"); /* ba has the better score */
    check(t, "abab", 0, "5 2 7 3");
    check(t, "a<s>", TOKENIZE_SPECIAL, "5 2 1");
    check(t, "a<x>b", 0, "5 2 6 5 3"); /* user-defined: always found; the space after it is llama.cpp's */
    check(t, "a c", 0, "5 2 5 0");
    check_text(t, (int32_t[]){1, 5, 2, 5, 6}, 5, false, "a <x>");
    tokenizer_close(t);

    struct made bad = good;
    bad.model = "bert";
    assert_fault(open_made(&t, &bad, &err), &err, "\"bert\" is not supported");
    bad = good;
    bad.scores = NULL;
    assert_fault(open_made(&t, &bad, &err), &err, "scores is missing");
    bad = good;
    bad.n_scores = 7;
    assert_fault(open_made(&t, &bad, &err), &err, "different lengths");
    bad = good;
    bad.bos = 8;
    assert_fault(open_made(&t, &bad, &err), &err, "bos_token_id is 8");
    static const int32_t bad_types[] = {2, 3, 1, 1, 1, 1, 9, 1};
    bad = good;
    bad.types = bad_types;
    assert_fault(open_made(&t, &bad, &err), &err, "token 6 has unknown type 9");
}

static void test_gguf_byte_level(void **state)
{
    static const char *const tokens[] = {"<s>", "a", "b", "\xc4\xa0", "\xc4\xa0\x61", "1", "11"};
    static const int32_t types[] = {3, 1, 1, 1, 1, 1, 1};
    static const char *const merges[] = {"\xc4\xa0 a", "1 1"};
    struct made m = {.model = "gpt2",
                     .pre = "llama-bpe",
                     .n = 7,
                     .tokens = tokens,
                     .types = types,
                     .n_merges = 2,
                     .merges = merges};
    struct err err = {0};
    struct tokenizer *t = NULL;
    if (open_made(&t, &m, &err))
        fail_msg("%s", err.message);
    check(t, "b a 11", TOKENIZE_BOS, "0 2 4 3 6");
    check_text(t, (int32_t[]){0, 2, 4, 3, 6}, 5, false, "b a 11");
    tokenizer_close(t);
    m.pre = "qwen2"; /* single digits, no begin token */
    if (open_made(&t, &m, &err))
        fail_msg("%s", err.message);
    check(t, "b a11", TOKENIZE_BOS, "2 4 5 5");
    tokenizer_close(t);
    static const char *const names[] = {"default",     "gpt-2",     "smollm", "tekken",
                                        "gpt-4o",      "falcon",    "dbrx",   "deepseek-coder",
                                        "deepseek-v3", "starcoder", NULL};
    for (int i = 0; names[i]; i++) { /* every pattern must compile */
        m.pre = names[i];
        if (open_made(&t, &m, &err))
            fail_msg("%s", err.message);
        tokenizer_close(t);
    }
    m.pre = "made-up";
    assert_fault(open_made(&t, &m, &err), &err, "tokenizer.ggml.pre \"made-up\" is not supported");
    m.pre = "gpt-2";
    m.merges = NULL;
    assert_fault(open_made(&t, &m, &err), &err, "merges is missing");
    static const char *const bad_merges[] = {"a b", "a"};
    m.merges = bad_merges;
    assert_fault(open_made(&t, &m, &err), &err, "\"ab\" is not in the vocabulary");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merge_order),     cmocka_unit_test(test_byte_fallback),
        cmocka_unit_test(test_added_tokens),    cmocka_unit_test(test_template),
        cmocka_unit_test(test_pretokenizers),   cmocka_unit_test(test_pattern_dialect),
        cmocka_unit_test(test_normalizers),     cmocka_unit_test(test_refused),
        cmocka_unit_test(test_damaged),         cmocka_unit_test(test_invalid_utf8),
        cmocka_unit_test(test_slow_pattern),    cmocka_unit_test(test_long_piece),
        cmocka_unit_test(test_stories),         cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_gguf_byte_level),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

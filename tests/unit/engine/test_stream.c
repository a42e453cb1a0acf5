/* test_stream.c - tokens to text: whole UTF-8 characters only, U+FFFD for what is none, nothing of a stop
 * text, nothing lost at the end. The tokenizer is byte-level with one token per byte, so that every character
 * can be cut anywhere. */
#include "support.h"

#include "engine/stream.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct tokenizer *tokenizer;

/* GPT-2's printable stand-in for a byte (the `tokenizers` library, byte-level). */
static unsigned stand_in(unsigned byte)
{
    unsigned next = 256;
    for (unsigned b = 0; b < 256; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        if (b == byte)
            return printable ? b : next;
        next += !printable;
    }
    return 0;
}

/* Token id = byte value. */
static int open_bytes(void **state)
{
    json_t *vocab = json_object();
    for (unsigned byte = 0; byte < 256; byte++) {
        unsigned c = stand_in(byte);
        char utf8[3] = {(char)c, 0, 0};
        if (c >= 0x80) {
            utf8[0] = (char)(0xc0 | c >> 6);
            utf8[1] = (char)(0x80 | (c & 63));
        }
        json_object_set_new(vocab, utf8, json_integer(byte));
    }
    json_t *root =
        json_pack("{s:s, s:n, s:[], s:n, s:{s:s, s:b, s:b, s:b}, s:n, s:{s:s}, s:{s:s, s:o, s:[]}}",
                  "version", "1.0", "truncation", "added_tokens", "normalizer", "pre_tokenizer", "type",
                  "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 1, "post_processor",
                  "decoder", "type", "ByteLevel", "model", "type", "BPE", "vocab", vocab, "merges");
    char *text = json_dumps(root, 0);
    struct err err = {0};
    int rc = tokenizer_open_json(&tokenizer, text, strlen(text), NULL, 0, "bytes", &err);
    if (rc)
        print_error("%s\n", err.message);
    free(text);
    json_decref(root);
    return rc;
}

static int close_bytes(void **state)
{
    tokenizer_close(tokenizer);
    return 0;
}

/* Pushes the bytes one by one; the pieces joined by '|' after every byte that gave text. */
struct result {
    struct buf text, pieces;
    bool stopped;
    size_t pushed;
};

static struct result run(const char *bytes, char *const *stop, size_t n_stop)
{
    struct stream s = {.tokenizer = tokenizer, .first = true, .stop = stop, .n_stop = n_stop};
    struct result r = {0};
    for (const char *b = bytes; *b && !r.stopped; b++) {
        struct buf piece = {0};
        r.stopped = stream_push(&s, (unsigned char)*b, &piece);
        r.pushed++;
        if (piece.size) {
            buf_append(&r.text, piece.data, piece.size);
            buf_append(&r.pieces, piece.data, piece.size);
            buf_puts(&r.pieces, "|");
        }
        buf_free(&piece);
    }
    if (!r.stopped) {
        struct buf rest = {0};
        stream_finish(&s, &rest);
        buf_append(&r.text, rest.data ? rest.data : "", rest.size);
        buf_append(&r.pieces, rest.data ? rest.data : "", rest.size);
        buf_free(&rest);
    }
    stream_free(&s);
    return r;
}

static void expect_pieces(const char *bytes, char *const *stop, size_t n_stop, const char *pieces,
                          bool stopped)
{
    struct result r = run(bytes, stop, n_stop);
    assert_string_equal(r.pieces.data ? r.pieces.data : "", pieces);
    assert_int_equal(r.stopped, stopped);
    buf_free(&r.text);
    buf_free(&r.pieces);
}

static void test_plain(void **state)
{
    expect_pieces("", NULL, 0, "", false);
    expect_pieces("abc", NULL, 0, "a|b|c|", false);
}

static void test_whole_characters(void **state)
{
    expect_pieces("a\xc3\xa9z", NULL, 0, "a|\xc3\xa9|z|", false);
    expect_pieces("\xe2\x82\xac", NULL, 0, "\xe2\x82\xac|", false);
    expect_pieces("\xf0\x9f\x98\x80!", NULL, 0, "\xf0\x9f\x98\x80|!|", false);
}

#define REPLACEMENT "\xef\xbf\xbd"

static void test_invalid_bytes_become_replacements(void **state)
{
    expect_pieces("a\xff"
                  "b",
                  NULL, 0, "a|" REPLACEMENT "|b|", false);
    expect_pieces("\x80", NULL, 0, REPLACEMENT "|", false);
    expect_pieces("\xc0\xaf", NULL, 0, REPLACEMENT "|" REPLACEMENT "|", false); /* overlong */
    expect_pieces("\xe2\x82"
                  "a",
                  NULL, 0, REPLACEMENT REPLACEMENT "a|", false); /* cut short */
    expect_pieces("\xed\xa0\x80", NULL, 0, REPLACEMENT REPLACEMENT "|" REPLACEMENT "|",
                  false); /* a surrogate */
    expect_pieces("\xf4\x90\x80\x80", NULL, 0, REPLACEMENT REPLACEMENT "|" REPLACEMENT "|" REPLACEMENT "|",
                  false);
    expect_pieces("ab\xe2\x82", NULL, 0, "a|b|" REPLACEMENT REPLACEMENT, false); /* the end cuts it */
}

static void test_stop_texts(void **state)
{
    char *stop[] = {"END", "\n\n"};
    expect_pieces("oneENDtwo", stop, 2, "o|n|e|", true);
    expect_pieces("oneEN two", stop, 2, "o|n|e|EN |t|w|o|", false); /* held back, then released */
    expect_pieces("a\n\nb", stop, 2, "a|", true);
    expect_pieces("a\nb", stop, 2, "a|\nb|", false);
    expect_pieces("END", stop, 2, "", true);
    expect_pieces("aEEND", stop, 2, "a|E|", true); /* a beginning inside a beginning */
    expect_pieces("aEN", stop, 2, "a|EN", false);  /* the end of the generation releases it */
}

static void test_overlapping_stop_texts(void **state)
{
    char *stop[] = {"abcd", "bc"}, *repeated[] = {"aab"}, *wide[] = {"\xe2\x82\xac!"};
    expect_pieces("xabcd", stop, 2, "x|a|", true); /* the one that is complete first */
    expect_pieces("aaaab", repeated, 1, "a|a|", true);
    expect_pieces("\xe2\x82\xac?\xe2\x82\xac!", wide, 1, "\xe2\x82\xac?|", true);
}

static void test_nothing_after_stop(void **state)
{
    char *stop[] = {"b"};
    struct result r = run("abcb", stop, 1);
    assert_true(r.stopped);
    assert_int_equal(r.pushed, 2);
    assert_string_equal(r.text.data, "a");
    buf_free(&r.text);
    buf_free(&r.pieces);
}

static void test_without_tokenizer(void **state)
{
    struct stream s = {.tokenizer = NULL};
    struct buf out = {0};
    assert_false(stream_push(&s, 5, &out));
    stream_finish(&s, &out);
    assert_int_equal(out.size, 0);
    buf_free(&out);
    stream_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_whole_characters),
        cmocka_unit_test(test_invalid_bytes_become_replacements),
        cmocka_unit_test(test_stop_texts),
        cmocka_unit_test(test_overlapping_stop_texts),
        cmocka_unit_test(test_nothing_after_stop),
        cmocka_unit_test(test_without_tokenizer),
    };
    return cmocka_run_group_tests_name("stream", tests, open_bytes, close_bytes);
}

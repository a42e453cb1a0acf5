/* test_base.c - the base layer: 16-bit floats over all their values, elementary functions against libm's long
 * double, errors, buffers, JSON helpers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/detmath.h"
#include "base/dtype.h"
#include "base/err.h"
#include "base/half.h"
#include "base/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- half.h ---- */

/* By the definition of the format, in double. */
static double value_of(uint16_t h, int exponent_bits)
{
    int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
    int exponent = (h & 0x7fff) >> mantissa_bits, mantissa = h & ((1 << mantissa_bits) - 1);
    double magnitude;
    if (exponent == (1 << exponent_bits) - 1)
        magnitude = mantissa ? NAN : INFINITY;
    else if (exponent == 0)
        magnitude = ldexp(mantissa, 1 - bias - mantissa_bits);
    else
        magnitude = ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
    return h & 0x8000 ? -magnitude : magnitude;
}

static void check_all(int exponent_bits, float (*widen)(uint16_t), uint16_t (*narrow)(float))
{
    for (uint32_t h = 0; h < 65536; h++) {
        double expected = value_of((uint16_t)h, exponent_bits);
        float x = widen((uint16_t)h);
        if (isnan(expected)) {
            assert_true(isnan(x));
            assert_true(isnan(widen(narrow(x))));
            continue;
        }
        assert_true(x == expected && !signbit(x) == !signbit(expected));
        assert_int_equal(narrow(x), h);
    }
}

/* Between every two neighbours: just below, at, and just above the middle. */
static void check_rounding(int exponent_bits, float (*widen)(uint16_t), uint16_t (*narrow)(float))
{
    uint32_t infinity = ((1u << exponent_bits) - 1) << (15 - exponent_bits);
    for (uint32_t h = 0; h < infinity; h++) {
        double low = value_of((uint16_t)h, exponent_bits);
        /* The largest finite value rounds as if the next power of two were there. */
        double high = h + 1 < infinity ? value_of((uint16_t)(h + 1), exponent_bits)
                                       : 2 * low - value_of((uint16_t)(h - 1), exponent_bits);
        float middle = (float)(low / 2 + high / 2);
        uint32_t even = h + (h & 1);
        assert_int_equal(narrow(middle), even);
        assert_int_equal(narrow(-middle), even | 0x8000);
        assert_int_equal(narrow(nextafterf(middle, 0)), h);
        assert_int_equal(narrow(nextafterf(middle, INFINITY)), h + 1);
    }
    assert_int_equal(narrow(INFINITY), infinity);
    assert_true(isnan(widen(narrow(NAN))));
    assert_true(isnan(widen(narrow(f32_from_bits(0x7f800001))))); /* its payload lies below the cut */
}

static void test_f16(void **state)
{
    check_all(5, f16_to_f32, f32_to_f16);
    check_rounding(5, f16_to_f32, f32_to_f16);
    assert_int_equal(f32_to_f16(3e38f), 0x7c00);
    assert_int_equal(f32_to_f16(-1e-30f), 0x8000);
}

static void test_bf16(void **state)
{
    check_all(8, bf16_to_f32, f32_to_bf16);
    check_rounding(8, bf16_to_f32, f32_to_bf16);
}

/* ---- detmath.h ---- */

static void assert_near(double x, long double expected, double argument)
{
    if (!(fabsl((long double)x - expected) <= 1e-14L * fabsl(expected)))
        fail_msg("f(%a) = %.17g, expected %.17Lg", argument, x, expected);
}

/* Calls check() on a grid that is dense around 0 and hits no special values elsewhere. */
static void sweep(double limit, void (*check)(double))
{
    for (int i = 1; i <= 100000; i++) {
        double x = limit * i / 100000 * 1.0000000123;
        check(x < limit ? x : limit);
        check(-(x < limit ? x : limit));
    }
    for (double x = limit; x > 1e-300; x *= 0.73) {
        check(x);
        check(-x);
    }
}

static void check_exp(double x)
{
    assert_near(det_exp(x), expl(x), x);
}

static void check_log(double x)
{
    if (x > 0)
        assert_near(det_log(x), logl(x), x);
}

static void check_sincos(double x)
{
    double s, c;
    det_sincos(x, &s, &c);
    assert_near(s, sinl(x), x);
    assert_near(c, cosl(x), x);
}

static void test_exp(void **state)
{
    sweep(700, check_exp);
    assert_true(det_exp(0) == 1);
    assert_true(det_exp(701) == INFINITY);
    assert_true(det_exp(INFINITY) == INFINITY);
    assert_true(det_exp(-701) == 0);
    assert_true(det_exp(-INFINITY) == 0);
}

static void test_log(void **state)
{
    sweep(1e300, check_log);
    sweep(3, check_log);
    assert_true(det_log(1) == 0);
}

static void test_pow(void **state)
{
    for (int i = 0; i < 128; i++) { /* RoPE's use of it */
        assert_near(det_pow(10000, -i / 128.0), powl(10000, -i / 128.0L), i);
        assert_near(det_pow(500000, -i / 128.0), powl(500000, -i / 128.0L), i);
    }
}

static void test_sincos(void **state)
{
    sweep(4, check_sincos);
    sweep(1 << 20, check_sincos);
    for (int i = 1; i < 600000; i += 7) /* as near to a multiple of pi / 2 as a double gets */
        check_sincos(i * 1.57079632679489661923);
    double s, c;
    det_sincos(0, &s, &c);
    assert_true(s == 0 && c == 1);
}

/* ---- err.h ---- */

static void test_err(void **state)
{
    struct err err;
    assert_int_equal(err_set(NULL, ERR_INPUT, "nobody listens"), ERR_INPUT);
    assert_int_equal(err_set(&err, ERR_SYSTEM, "%s: %d", "file", 7), ERR_SYSTEM);
    assert_int_equal(err.code, ERR_SYSTEM);
    assert_string_equal(err.message, "file: 7");
    assert_int_equal(err_prefix(&err, "part %d", 2), ERR_SYSTEM);
    assert_string_equal(err.message, "part 2: file: 7");
    err_set(&err, ERR_INPUT, "%s", "a\nb\x1b[31m\x7f\xff\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xe2\x82");
    assert_string_equal(err.message, "a?b?[31m??\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80??");
}

static void test_err_long(void **state)
{
    struct err err;
    char text[3000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    memcpy(text + sizeof err.message - 2, "\xc3\xa9", 2); /* cut in the middle of a character */
    err_set(&err, ERR_INPUT, "%s", text);
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
    assert_int_equal(err.message[sizeof err.message - 2], '?');
    err_prefix(&err, "%s", "in front");
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
    assert_memory_equal(err.message, "in front: xxx", 13);
    err_prefix(&err, "%s", text); /* a prefix that leaves no room */
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
}

/* ---- buf.h ---- */

static void test_buf(void **state)
{
    struct buf b = {0};
    char expected[5000];
    size_t n = 0;
    buf_append(&b, NULL, 0);
    for (int i = 0; i < 500; i++) {
        buf_printf(&b, "%d,", i);
        n += (size_t)snprintf(expected + n, sizeof expected - n, "%d,", i);
    }
    assert_int_equal(b.size, n);
    assert_string_equal(b.data, expected);
    buf_puts(&b, "end");
    buf_append(&b, "\0x", 2);
    assert_int_equal(b.size, n + 5);
    assert_memory_equal(b.data + n, "end\0x", 6);
    assert_false(b.failed);
    buf_free(&b);
    assert_null(b.data);
}

/* ---- json.h ---- */

static void assert_fault(int rc, const struct err *err, const char *expected)
{
    assert_int_equal(rc, ERR_INPUT);
    if (!strstr(err->message, expected))
        fail_msg("expected \"%s\" in \"%s\"", expected, err->message);
}

static void test_json_parse(void **state)
{
    struct err err;
    json_t *v;
    static const char *const bad[] = {"", "{", "[1]", "3", "{\"a\":\"\xff\"}", "{} x"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(json_parse(&v, bad[i], strlen(bad[i]), "text", &err), ERR_INPUT);
        assert_memory_equal(err.message, "text: ", 6);
        assert_null(v);
    }
    assert_int_equal(json_parse(&v, "{\"a\":\"x\\u0000y\"}", 16, "text", &err), 0);
    assert_int_equal(json_string_length(json_object_get(v, "a")), 3);
    json_decref(v);
}

static void test_json_get(void **state)
{
    static const char text[] = "{\"i\":5,\"d\":1.5,\"t\":true,\"s\":\"x\",\"n\":null}";
    struct err err;
    json_t *v;
    int64_t i;
    double d;
    int t;
    const char *s;
    assert_int_equal(json_parse(&v, text, strlen(text), "text", &err), 0);
    assert_int_equal(json_get_int(v, "i", 9, 0, 5, &i, &err), 0);
    assert_int_equal(i, 5);
    assert_int_equal(json_get_int(v, "absent", 9, 0, 5, &i, &err), 0);
    assert_int_equal(i, 9);
    assert_int_equal(json_get_int(v, "n", 9, 0, 5, &i, &err), 0);
    assert_int_equal(i, 9);
    assert_fault(json_get_int(v, "i", 9, 0, 4, &i, &err), &err, "\"i\" is 5, outside [0, 4]");
    assert_fault(json_get_int(v, "d", 9, 0, 4, &i, &err), &err, "\"d\" must be an integer");
    assert_int_equal(json_get_double(v, "d", 9, &d, &err), 0);
    assert_true(d == 1.5);
    assert_int_equal(json_get_double(v, "i", 9, &d, &err), 0);
    assert_true(d == 5);
    assert_fault(json_get_double(v, "s", 9, &d, &err), &err, "\"s\" must be a number");
    assert_int_equal(json_get_bool(v, "t", 0, &t, &err), 0);
    assert_int_equal(t, 1);
    assert_fault(json_get_bool(v, "i", 0, &t, &err), &err, "true or false");
    assert_int_equal(json_get_string(v, "s", NULL, &s, &err), 0);
    assert_string_equal(s, "x");
    assert_int_equal(json_get_string(v, "n", "other", &s, &err), 0);
    assert_string_equal(s, "other");
    assert_fault(json_get_string(v, "t", NULL, &s, &err), &err, "must be a string");
    json_decref(v);
}

static void test_json_file(void **state)
{
    char path[] = P_tmpdir "/yoke-test-XXXXXX";
    struct err err;
    json_t *v;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "{\"a\":1}", 7), 7);
    close(fd);
    assert_int_equal(json_read_file(&v, path, 7, &err), 0);
    json_decref(v);
    assert_fault(json_read_file(&v, path, 6, &err), &err, "7 bytes, more than the 6 allowed");
    unlink(path);
    assert_int_equal(json_read_file(&v, path, 7, &err), ERR_SYSTEM);
    assert_null(v);
    assert_int_equal(json_read_file(&v, P_tmpdir, 7, &err), ERR_SYSTEM);
}

static void test_dtypes(void **state)
{
    for (int t = 0; t < N_DTYPES; t++) {
        assert_non_null(dtype_table[t].name);
        assert_in_range(dtype_table[t].block_elements, 1, 256);
        assert_in_range(dtype_table[t].block_bytes, 1, 256);
    }
    assert_int_equal(dtype_bytes(DTYPE_Q4_K, 512), 288);
    assert_int_equal(dtype_bytes(DTYPE_BF16, 3), 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f16),        cmocka_unit_test(test_bf16),     cmocka_unit_test(test_exp),
        cmocka_unit_test(test_log),        cmocka_unit_test(test_pow),      cmocka_unit_test(test_sincos),
        cmocka_unit_test(test_err),        cmocka_unit_test(test_err_long), cmocka_unit_test(test_buf),
        cmocka_unit_test(test_json_parse), cmocka_unit_test(test_json_get), cmocka_unit_test(test_json_file),
        cmocka_unit_test(test_dtypes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

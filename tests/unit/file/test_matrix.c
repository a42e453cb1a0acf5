/* test_matrix.c - every weight format against what its own implementation decodes (tests/data/matrix_vectors,
 * made by scripts/make-matrix-vectors.py), and synthetic weights against themselves. */
#include "support.h"

#include "base/half.h"
#include "file/matrix.h"

#include <math.h>

enum { MAX_COLS = 4096 };

/* ---- vectors ---- */

static struct file *open_vectors(const char *name, char **bytes)
{
    struct err err = {0};
    struct file *f;
    size_t n;
    char path[4096];
    snprintf(path, sizeof path, "%s/tests/data/matrix_vectors/%s", SOURCE_ROOT, name);
    *bytes = read_file(path, &n);
    if (file_open_safetensors_memory(&f, *bytes, n, NULL, 0, &err))
        fail_msg("%s", err.message);
    return f;
}

static const struct tensor *vector(const struct file *f, const char *key, const char *what)
{
    char name[64];
    snprintf(name, sizeof name, "%s.%s", key, what);
    const struct tensor *t = file_tensor(f, name);
    assert_non_null(t);
    return t;
}

/* row_affine must say the same as row_f32, up to the one rounding of s * q + b. */
static void check_affine(const struct matrix *m)
{
    static float x[MAX_COLS], s[MAX_COLS], b[MAX_COLS], d1[MAX_COLS], d2[MAX_COLS];
    static uint8_t q[MAX_COLS];
    static int16_t sc[MAX_COLS], mn[MAX_COLS];
    const struct affine_row row = {.q = q, .s = s, .b = b, .sc = sc, .mn = mn, .d1 = d1, .d2 = d2};
    const struct affine_row plain = {.q = q, .s = s, .b = b};
    assert_in_range(m->cols, 1, MAX_COLS);
    for (int64_t r = 0; r < m->rows; r++) {
        matrix_row_f32(m, r, x);
        assert_true(matrix_row_affine(m, r, &plain));
        memset(q, 0xff, sizeof q);
        assert_true(matrix_row_affine(m, r, &row));
        for (int64_t k = 0; k < m->cols; k++) {
            int64_t g = k / m->group;
            assert_true(q[k] < 1 << m->bits);
            assert_true(s[g] * (float)q[k] + b[g] == x[k]);
            if (m->format == WEIGHT_Q4_0 || m->format == WEIGHT_Q8_0 || m->format == WEIGHT_Q6_K)
                assert_true(b[g] == -(float)(1 << (m->bits - 1)) * s[g]);
            if (!matrix_is_native(m))
                continue;
            assert_true(s[g] == d1[k / 256] * (float)sc[g]);
            if (m->format == WEIGHT_Q4_K)
                assert_true(b[g] == d2[k / 256] * (float)mn[g]);
            else
                assert_true(mn[g] == 0 && d2[k / 256] == 0);
        }
    }
}

static void test_gguf_formats(void **state)
{
    static const struct {
        const char *key;
        enum dtype dtype;
        enum weight_format format;
        int bits, group;
    } cases[] = {
        {"q4_0", DTYPE_Q4_0, WEIGHT_Q4_0, 4, 32},
        {"q8_0", DTYPE_Q8_0, WEIGHT_Q8_0, 8, 32},
        {"q4_k", DTYPE_Q4_K, WEIGHT_Q4_K, 4, 32},
        {"q6_k", DTYPE_Q6_K, WEIGHT_Q6_K, 6, 16},
    };
    char *bytes;
    struct file *f = open_vectors("gguf.safetensors", &bytes);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct tensor *values = vector(f, cases[i].key, "values"),
                            *data = vector(f, cases[i].key, "data");
        struct tensor t = {.name = cases[i].key,
                           .dtype = cases[i].dtype,
                           .n_dims = 2,
                           .shape = {values->shape[0], values->shape[1]},
                           .data = data->data,
                           .bytes = data->bytes};
        struct matrix m;
        struct err err;
        float x[MAX_COLS];
        assert_int_equal(matrix_from_tensor(&m, &t, &err), 0);
        assert_int_equal(m.format, cases[i].format);
        assert_int_equal(m.bits, cases[i].bits);
        assert_int_equal(m.group, cases[i].group);
        assert_int_equal(matrix_file_bytes(&m), data->bytes);
        for (int64_t r = 0; r < m.rows; r++) {
            matrix_row_f32(&m, r, x);
            assert_memory_equal(x, values->data + (size_t)(r * m.cols) * 4, (size_t)m.cols * 4);
        }
        check_affine(&m);
    }
    file_close(f);
    free(bytes);
}

/* |mlx - x| within what rounding the product and the sum to 16 bits may cost. */
static void check_mlx_result(const struct matrix *m, const float *x, const uint8_t *mlx, float bias)
{
    float unit = m->scale_dtype == DTYPE_F16 ? 0x1p-11f : 0x1p-8f;
    for (int64_t k = 0; k < m->cols; k++) {
        uint16_t h;
        memcpy(&h, mlx + 2 * k, 2);
        float y = m->scale_dtype == DTYPE_F16 ? f16_to_f32(h) : bf16_to_f32(h);
        assert_true(fabsf(y - x[k]) <= unit * (2 * fabsf(x[k]) + bias) + 0x1p-24f);
    }
}

static void check_mlx(const struct file *f, const char *key, int bits, int group)
{
    struct matrix m;
    struct err err;
    float x[MAX_COLS];
    const struct tensor *scales = vector(f, key, "scales"), *values = vector(f, key, "values");
    if (matrix_from_mlx(&m, vector(f, key, "weight"), scales, vector(f, key, "biases"), bits, group, &err))
        fail_msg("%s", err.message);
    assert_int_equal(m.cols, 256);
    assert_int_equal(m.scale_dtype, scales->dtype);
    assert_int_equal(matrix_file_bytes(&m), 2 * 256 * bits / 8 + 2 * 2 * 256 / group * 2);
    for (int64_t r = 0; r < m.rows; r++) {
        matrix_row_f32(&m, r, x);
        assert_memory_equal(x, values->data + r * m.cols * 4, (size_t)m.cols * 4);
        check_mlx_result(&m, x, vector(f, key, "mlx")->data + r * m.cols * 2, 0.25f);
    }
    check_affine(&m);
}

static void test_mlx_formats(void **state)
{
    static const int all_bits[] = {3, 4, 5, 6, 8}, groups[] = {32, 64, 128};
    char *bytes;
    struct file *f = open_vectors("mlx.safetensors", &bytes);
    for (int i = 0; i < 5; i++) {
        for (int j = 0; j < 3; j++) {
            char key[32];
            snprintf(key, sizeof key, "b%d.g%d.f16", all_bits[i], groups[j]);
            check_mlx(f, key, all_bits[i], groups[j]);
            snprintf(key, sizeof key, "b%d.g%d.bf16", all_bits[i], groups[j]);
            check_mlx(f, key, all_bits[i], groups[j]);
        }
    }
    file_close(f);
    free(bytes);
}

static void test_mlx_refusals(void **state)
{
    char *bytes;
    struct file *f = open_vectors("mlx.safetensors", &bytes);
    const struct tensor *w = file_tensor(f, "b4.g64.bf16.weight"), *s = file_tensor(f, "b4.g64.bf16.scales"),
                        *b = file_tensor(f, "b4.g64.bf16.biases"),
                        *half = file_tensor(f, "b4.g64.f16.biases"),
                        *other = file_tensor(f, "b4.g32.bf16.biases");
    struct matrix m;
    struct err err;
    assert_fault(matrix_from_mlx(&m, w, s, b, 2, 64, &err), &err, "2 bits in groups of 64");
    assert_fault(matrix_from_mlx(&m, w, s, b, 4, 48, &err), &err, "4 bits in groups of 48");
    assert_fault(matrix_from_mlx(&m, w, s, b, 4, 0, &err), &err, "in groups of 0");
    assert_fault(matrix_from_mlx(&m, s, s, b, 4, 64, &err), &err, "must be a matrix of type u32");
    assert_fault(matrix_from_mlx(&m, w, w, b, 4, 64, &err), &err, "b4.g64.bf16.weight\": type u32 where");
    assert_fault(matrix_from_mlx(&m, w, s, b, 4, 128, &err), &err,
                 "b4.g64.bf16.scales\": its shape is not (2, 2)");
    assert_fault(matrix_from_mlx(&m, w, s, other, 4, 64, &err), &err, "b4.g32.bf16.biases\": its shape");
    assert_fault(matrix_from_mlx(&m, w, s, half, 4, 64, &err), &err, "type f16, but");
    assert_fault(matrix_from_mlx(&m, w, s, b, 5, 64, &err), &err, "no whole groups");
    file_close(f);
    free(bytes);
}

/* ---- floats, refusals, corruption ---- */

static void test_floats(void **state)
{
    static const float values[6] = {0, -1.5f, 0x1p-20f, 1024, -0.25f, 3};
    uint8_t bytes[1 + 24], raw[24]; /* unaligned on purpose */
    for (int f = 0; f < 3; f++) {
        enum dtype dtype = f == 0 ? DTYPE_F32 : f == 1 ? DTYPE_F16 : DTYPE_BF16;
        size_t size = f == 0 ? 4 : 2;
        for (size_t i = 0; i < 6; i++) {
            uint16_t h = f == 1 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
            memcpy(bytes + 1 + i * size, f == 0 ? (const void *)&values[i] : (const void *)&h, size);
        }
        struct tensor t = {.name = "t", .dtype = dtype, .n_dims = 2, .shape = {2, 3}, .data = bytes + 1};
        struct matrix m;
        struct err err;
        float x[3];
        assert_int_equal(matrix_from_tensor(&m, &t, &err), 0);
        matrix_row_f32(&m, 1, x);
        assert_memory_equal(x, values + 3, sizeof x);
        assert_true(matrix_row_raw(&m, 1, raw));
        assert_memory_equal(raw, bytes + 1 + 3 * size, 3 * size);
        t.n_dims = 1;
        t.shape[0] = 6;
        assert_int_equal(matrix_from_tensor(&m, &t, &err), 0);
        assert_int_equal(m.rows, 1);
        static const uint8_t infinity[3][4] = {{0, 0, 0x80, 0xff}, {0, 0x7c}, {0x80, 0x7f}};
        memcpy(bytes + 1 + 5 * size, infinity[f], size);
        assert_false(matrix_row_raw(&m, 0, raw));
        bytes[1 + 5 * size] ^= 1; /* a NaN */
        assert_false(matrix_row_raw(&m, 0, raw));
    }
}

static void test_tensor_refusals(void **state)
{
    struct matrix m;
    struct err err;
    struct tensor t = {.name = "t", .dtype = DTYPE_Q5_0, .n_dims = 2, .shape = {1, 32}};
    assert_fault(matrix_from_tensor(&m, &t, &err), &err, "tensor \"t\": weights of type q5_0 are not served");
    t.dtype = DTYPE_U32;
    assert_fault(matrix_from_tensor(&m, &t, &err), &err, "type u32");
    t.dtype = DTYPE_Q4_K;
    assert_fault(matrix_from_tensor(&m, &t, &err), &err, "rows of 32 are no multiple of q4_k's block of 256");
    t.n_dims = 3;
    assert_fault(matrix_from_tensor(&m, &t, &err), &err, "3 dimensions");
    t.n_dims = 0;
    assert_fault(matrix_from_tensor(&m, &t, &err), &err, "0 dimensions");
}

static void test_not_finite(void **state)
{
    static const struct {
        enum dtype dtype;
        int64_t cols;
        size_t at; /* of an fp16 in the first block */
    } cases[] = {{DTYPE_Q4_0, 64, 0},
                 {DTYPE_Q8_0, 64, 0},
                 {DTYPE_Q4_K, 256, 0},
                 {DTYPE_Q4_K, 256, 2},
                 {DTYPE_Q6_K, 256, 208}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint8_t bytes[256], q[256];
        float s[16], b[16];
        const struct affine_row row = {.q = q, .s = s, .b = b};
        memset(bytes, 1, sizeof bytes);
        struct tensor t = {
            .name = "t", .dtype = cases[i].dtype, .n_dims = 1, .shape = {cases[i].cols}, .data = bytes};
        struct matrix m;
        struct err err;
        assert_int_equal(matrix_from_tensor(&m, &t, &err), 0);
        assert_true(matrix_row_affine(&m, 0, &row));
        for (int nan = 0; nan < 2; nan++) {
            memcpy(bytes + cases[i].at, &(uint16_t){(uint16_t)(0xfc00 + nan)}, 2);
            assert_false(matrix_row_affine(&m, 0, &row));
        }
    }
}

static void test_mlx_not_finite(void **state)
{
    uint32_t words[8] = {0};
    float scales[2] = {1, 1}, biases[2] = {0, 0}, s[2], b[2];
    uint8_t q[64];
    const struct affine_row row = {.q = q, .s = s, .b = b};
    struct tensor w = {
        .name = "w", .dtype = DTYPE_U32, .n_dims = 2, .shape = {1, 8}, .data = (uint8_t *)words};
    struct tensor sc = {
        .name = "s", .dtype = DTYPE_F32, .n_dims = 2, .shape = {1, 2}, .data = (uint8_t *)scales};
    struct tensor bi = sc;
    struct matrix m;
    struct err err;
    bi.data = (uint8_t *)biases;
    assert_int_equal(matrix_from_mlx(&m, &w, &sc, &bi, 4, 32, &err), 0);
    assert_true(matrix_row_affine(&m, 0, &row));
    scales[1] = NAN;
    assert_false(matrix_row_affine(&m, 0, &row));
    scales[1] = 1;
    biases[1] = -INFINITY;
    assert_false(matrix_row_affine(&m, 0, &row));
}

/* ---- synthetic ---- */

static void check_synthetic(enum weight_format format, int bits, int group, int64_t cols)
{
    static float x[MAX_COLS], y[MAX_COLS];
    struct matrix m, other;
    double sum = 0, squares = 0;
    matrix_synthetic(&m, "synthetic", 40, cols, format, bits, group, 1234);
    matrix_synthetic(&other, "synthetic", 40, cols, format, bits, group, 1235);
    for (int64_t r = 0; r < m.rows; r++) {
        matrix_row_f32(&m, r, x);
        for (int64_t k = 0; k < cols; k++) {
            sum += x[k];
            squares += (double)x[k] * x[k];
        }
    }
    double n = (double)(m.rows * cols), deviation = sqrt(squares / n) * sqrt((double)cols);
    assert_true(deviation > 0.9 && deviation < 1.15);
    assert_true(fabs(sum / n) * sqrt((double)cols) < 0.1);
    matrix_row_f32(&m, 39, y); /* the same again; rows and seeds differ */
    assert_memory_equal(x, y, (size_t)cols * 4);
    matrix_row_f32(&m, 38, y);
    assert_memory_not_equal(x, y, (size_t)cols * 4);
    matrix_row_f32(&other, 39, y);
    assert_memory_not_equal(x, y, (size_t)cols * 4);
    assert_true(cols < 512 || memcmp(x, x + 256, 256 * 4) != 0);
    if (m.bits) {
        check_affine(&m);
    } else {
        static uint8_t raw[MAX_COLS * 4];
        assert_true(matrix_row_raw(&m, 39, raw));
        struct tensor t = {.name = "t",
                           .dtype = format == WEIGHT_F32   ? DTYPE_F32
                                    : format == WEIGHT_F16 ? DTYPE_F16
                                                           : DTYPE_BF16,
                           .n_dims = 1,
                           .shape = {cols},
                           .data = raw};
        struct err err;
        assert_int_equal(matrix_from_tensor(&other, &t, &err), 0);
        matrix_row_f32(&other, 0, y);
        assert_memory_equal(x, y, (size_t)cols * 4);
    }
}

static void test_synthetic(void **state)
{
    static const int all_bits[] = {3, 4, 5, 6, 8}, groups[] = {32, 64, 128};
    for (enum weight_format f = WEIGHT_F32; f <= WEIGHT_BF16; f++) {
        check_synthetic(f, 0, 0, 1024);
        check_synthetic(f, 0, 0, 299);
    }
    for (enum weight_format f = WEIGHT_Q4_0; f <= WEIGHT_Q6_K; f++) {
        check_synthetic(f, 0, 0, 1024);
        check_synthetic(f, 0, 0, MAX_COLS);
        if (f <= WEIGHT_Q8_0)
            check_synthetic(f, 0, 0, 288);
    }
    for (int i = 0; i < 5; i++) {
        for (int j = 0; j < 3; j++) {
            check_synthetic(WEIGHT_MLX, all_bits[i], groups[j], 1024);
            check_synthetic(WEIGHT_MLX, all_bits[i], groups[j], 384);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gguf_formats),    cmocka_unit_test(test_mlx_formats),
        cmocka_unit_test(test_mlx_refusals),    cmocka_unit_test(test_floats),
        cmocka_unit_test(test_tensor_refusals), cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_mlx_not_finite),  cmocka_unit_test(test_synthetic),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

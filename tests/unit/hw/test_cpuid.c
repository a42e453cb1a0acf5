/* test_cpuid.c - what we find out about the CPU agrees with what the kernel lists in /proc/cpuinfo. */
#include "hw/cpuid.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

/* Whether the first CPU's line of flags (x86) or features (ARM) has the word. */
static bool listed(const char *word)
{
    char line[8192], padded[64];
    bool found = false;
    FILE *f = fopen("/proc/cpuinfo", "re");
    if (!f)
        skip();
    snprintf(padded, sizeof padded, " %s ", word);
    while (!found && fgets(line, sizeof line, f)) {
        if (strncmp(line, "flags", 5) != 0 && strncmp(line, "Features", 8) != 0)
            continue;
        line[strcspn(line, "\n")] = ' ';
        found = strstr(line, padded) != NULL;
        break;
    }
    fclose(f);
    return found;
}

static void test_agrees_with_kernel(void **state)
{
    (void)state;
    const struct cpu_features *c = cpu_features();
    assert_ptr_equal(c, cpu_features());
#if defined(__x86_64__)
    bool avx512 = listed("avx512f") && listed("avx512bw") && listed("avx512dq") && listed("avx512vl") &&
                  listed("avx512cd");
    assert_int_equal(c->avx2_fma_f16c, listed("avx2") && listed("fma") && listed("f16c"));
    assert_int_equal(c->avx_vnni, listed("avx_vnni"));
    assert_int_equal(c->avx512, avx512);
    assert_int_equal(c->avx512_vnni, avx512 && listed("avx512_vnni"));
    assert_int_equal(c->avx512_bf16, avx512 && listed("avx512_bf16"));
    if (c->amx_int8) /* the kernel may list it and still refuse the tile state */
        assert_true(listed("amx_int8") && listed("amx_tile"));
    assert_false(c->neon_dotprod || c->neon_i8mm);
#elif defined(__aarch64__)
    assert_int_equal(c->neon_dotprod, listed("asimddp"));
    assert_int_equal(c->neon_i8mm, listed("i8mm"));
    assert_false(c->avx2_fma_f16c || c->avx512 || c->amx_int8);
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_agrees_with_kernel)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

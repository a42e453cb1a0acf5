/* bench.h - times every kernel of the given tables on one core and prints a line each. */
#ifndef TESTS_KERNELS_BENCH_H
#define TESTS_KERNELS_BENCH_H

#include "ops/kernels.h"

int bench_run(const struct kernels *const *tables, int n_tables);

#endif

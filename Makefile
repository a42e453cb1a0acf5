# Thin front of Meson and Ninja. `make help` lists what it does.

FUZZ_SECONDS ?= 20

# One build directory per kind of build; what Meson needs to know to make it.
SETUP_build =
# (gcc's sanitizers confuse its own warnings; the other builds keep warnings as errors.)
SETUP_build-asan = -Db_sanitize=address,undefined -Db_lundef=false -Doptimization=2 -Dwerror=false
SETUP_build-tsan = -Db_sanitize=thread -Db_lundef=false -Doptimization=2 -Dwerror=false
SETUP_build-clang = --native-file scripts/clang.ini
SETUP_build-fuzz = --native-file scripts/clang.ini -Db_sanitize=address,undefined -Db_lundef=false \
	-Doptimization=2 -Dc_args=-fsanitize=fuzzer-no-link -Dtests=false -Dfuzz=true
TARGETS_build-fuzz = $(patsubst %.c,%,$(wildcard tests/fuzz/fuzz_*.c)) # nothing else of the tree, which takes long
BUILD_DIRS = build build-asan build-tsan build-clang build-fuzz

# A report must fail the test that caused it, also one that expects exit status 1 of what it runs.
export ASAN_OPTIONS = abort_on_error=1:exitcode=99:detect_leaks=1:detect_stack_use_after_return=1
export UBSAN_OPTIONS = halt_on_error=1:abort_on_error=1:print_stacktrace=1
export TSAN_OPTIONS = halt_on_error=1:abort_on_error=1:second_deadlock_stack=1

# Older ThreadSanitizers cannot start where the kernel randomizes addresses widely: switch that off where allowed.
NO_ASLR = $(shell setarch -R true 2>/dev/null && echo setarch -R)

.PHONY: all build demo check setup lint sanitize asan tsan clang fuzz clean help $(BUILD_DIRS:%=compile-%)

all: build

help:
	@echo "make            build build/yoke"
	@echo "make demo       install what is missing, build, and let the demo model write with two ranks"
	@echo "make check      install what is missing, build, and run all tests"
	@echo "make setup      install what is missing for building"
	@echo "make sanitize   tests under AddressSanitizer + UBSan (asan), and the threaded ones under TSan (tsan)"
	@echo "make clang      build with clang, warnings as errors, and run all tests"
	@echo "make fuzz       run each fuzz target for FUZZ_SECONDS=$(FUZZ_SECONDS) seconds (needs clang)"
	@echo "make lint       formatting (clang-format) and the layer rule"
	@echo "make clean      remove the build directories"

build:
	@scripts/setup.sh --check
	@$(MAKE) --no-print-directory compile-build

setup:
	@scripts/setup.sh

demo: setup
	@$(MAKE) --no-print-directory compile-build
	build/yoke run demo --tp 2 -p "It was a dark and stormy night" -n 120 --temp 0.8 --seed 1

check: setup
	@$(MAKE) --no-print-directory compile-build
	@scripts/run-tests.py build

sanitize: asan tsan

asan: compile-build-asan
	@scripts/run-tests.py build-asan --no-suite slow --timeout-multiplier 10

tsan: compile-build-tsan
	@$(NO_ASLR) scripts/run-tests.py build-tsan --suite hw --suite parallel --timeout-multiplier 20

clang: compile-build-clang
	@scripts/run-tests.py build-clang

fuzz:
	@scripts/setup.sh build fuzz
	@$(MAKE) --no-print-directory compile-build-fuzz
	@tests/fuzz/run-fuzzers.sh build-fuzz $(FUZZ_SECONDS)

lint:
	@scripts/setup.sh lint
	@scripts/lint.sh

$(BUILD_DIRS:%=compile-%): compile-%:
	@test -f $*/build.ninja || meson setup $* $(SETUP_$*)
	@ninja -C $* $(TARGETS_$*)

clean:
	rm -rf $(BUILD_DIRS)

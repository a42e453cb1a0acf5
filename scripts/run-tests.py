#!/usr/bin/env python3
"""run-tests.py - runs the tests of a build directory and closes with one line, `N passed, N failed, N skipped`.

    scripts/run-tests.py BUILD_DIR [arguments for `meson test`]

Counts are test cases where a test program is written with cmocka (its report is in Meson's log), else test
programs. So a case that skipped itself for want of data is seen as skipped, which Meson alone cannot tell. Exits 1
if anything failed, or if nothing ran of a suite that was asked for.
"""
import json
import pathlib
import re
import subprocess
import sys

# The summary cmocka prints of each group; newer versions put the group's name before the number.
RAN = re.compile(r"\[=+\] (?:[^:\n]+: )?(\d+) test\(s\) run\.")
FAILED = re.compile(r"\[  FAILED  \] (?:[^:\n]+: )?(\d+) test\(s\)")
SKIPPED = re.compile(r"\[  SKIPPED \] (?:[^:\n]+: )?(\d+) test\(s\)")


def count(test):
    """(passed, failed, skipped) of one line of Meson's log."""
    result = test["result"]
    text = test.get("stdout", "") + "\n" + test.get("stderr", "")
    ran, failed, skipped = (sum(map(int, pattern.findall(text))) for pattern in (RAN, FAILED, SKIPPED))
    if result == "SKIP":
        return 0, 0, max(1, skipped)
    if result in ("OK", "EXPECTEDFAIL"):
        return (ran - skipped, 0, skipped) if ran else (1, 0, 0)
    # A program that crashed, hung or leaked has failed even where no case of it says so.
    failed = max(1, failed)
    return max(0, ran - failed - skipped), failed, skipped


def main():
    if len(sys.argv) < 2:
        print("usage: run-tests.py BUILD_DIR [arguments for `meson test`]", file=sys.stderr)
        return 2
    build = sys.argv[1]
    log = pathlib.Path(build, "meson-logs", "testlog.json")
    log.unlink(missing_ok=True)
    status = subprocess.call(["meson", "test", "-C", build, "--no-rebuild", "--print-errorlogs", *sys.argv[2:]],
                             stdin=subprocess.DEVNULL)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    tests = [json.loads(line) for line in lines]
    passed, failed, skipped = (sum(counts) for counts in zip((0, 0, 0), *map(count, tests)))
    # Meson's log names a test "PROJECT:SUITE+SUITE / NAME".
    ran = {suite for test in tests for suite in test["name"].split(" / ")[0].split(":")[-1].split("+")}
    wanted = {value for flag, value in zip(sys.argv, sys.argv[1:]) if flag == "--suite"}
    if not tests or wanted - ran:
        print("run-tests.py: no test ran", *(f"of suite {name}" for name in sorted(wanted - ran)), file=sys.stderr)
        failed += 1
    elif status != 0 and failed == 0:
        print(f"run-tests.py: meson test ended with status {status}", file=sys.stderr)
        failed = 1
    sys.stderr.flush()
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

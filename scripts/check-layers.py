#!/usr/bin/env python3
"""check-layers.py - #include may only point down, and every C file says what it is.

    scripts/check-layers.py [ROOT]        checks a source tree (default: the one this script lies in)
    scripts/check-layers.py --self-test   proves on small made-up trees that violations are found

Prints each violation as FILE:LINE: what, and exits 1 if there is one. The rule is ARCHITECTURE.md's.
"""
import pathlib
import re
import sys
import tempfile

# What each layer may include besides itself and the system's headers.
LAYERS = {
    "base": set(),
    "hw": {"base"},
    "file": {"base"},
    "text": {"file", "base"},
    "ops": {"hw", "base"},
    "model": {"ops", "file", "hw", "base"},
    "engine": {"model", "text", "file", "hw", "base", "include"},  # implements the public header
}
ALLOWED = {**LAYERS, "programs": {"include"}, "include": set()}

SUFFIXES = {".c", ".h", ".inc", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include(?:_next)?\b\s*(?:"([^"]*)"|<([^>]*)>|(.*))')


def room_of(path):
    """Which room a path relative to the root belongs to: a layer, programs, include, or None."""
    parts = path.parts
    if len(parts) > 2 and parts[0] == "src":
        return parts[1]
    return parts[0] if len(parts) > 1 and parts[0] in ("programs", "include") else None


def target_of(root, source, name, quoted):
    """The room an include leads to; None for a system header."""
    if quoted:
        beside = (source.parent / name).resolve()
        if beside.is_file():
            return room_of(beside.relative_to(root)) or "outside" if beside.is_relative_to(root) else "outside"
    for folder in ("src", "include"):
        path = (root / folder / name).resolve()
        if path.is_file():
            return room_of(path.relative_to(root)) or "outside" if path.is_relative_to(root) else "outside"
    first = name.split("/")[0]
    if first in LAYERS and "/" in name:
        return first  # a header that is not there (yet): the compiler will say so
    return "nowhere" if quoted else None


def check_includes(root, source, room, lines):
    found = []
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        quoted, angled, other = match.groups()
        if other is not None:
            found.append((number, "an #include that is not a plain name cannot be checked"))
            continue
        name = quoted if quoted is not None else angled
        target = target_of(root, source, name, quoted is not None)
        if target is None or target == room:
            continue
        if target == "nowhere":
            found.append((number, f'"{name}" is no header of the project; system headers are written <{name}>'))
        elif room not in ALLOWED:
            found.append((number, f"src/{room} is not a layer that scripts/check-layers.py knows"))
        elif target not in ALLOWED[room]:
            may = ", ".join(sorted(ALLOWED[room])) or "nothing"
            found.append((number, f'{room} must not include "{name}" ({target}); below it: {may}'))
    return found


def check_tree(root):
    """All violations as (path relative to the root, line, text), in order."""
    root = root.resolve()
    found = []
    for top in ("include", "src", "programs", "tests"):
        for source in sorted((root / top).rglob("*")):
            if source.suffix not in SUFFIXES or not source.is_file():
                continue
            path = source.relative_to(root)
            lines = source.read_text(encoding="utf-8", errors="replace").splitlines()
            if not lines or not lines[0].startswith(f"/* {source.name} - "):
                found.append((path, 1, f"the first line must say what the file is: /* {source.name} - ..."))
            if top == "tests":
                continue  # tests may look into every layer
            room = room_of(path)
            if room is None:
                found.append((path, 1, "belongs to no layer; a C file of src/ lies in src/LAYER/"))
                continue
            found += [(path, number, text) for number, text in check_includes(root, source, room, lines)]
    return found


def self_test():
    good = {
        "include/yoke.h": "#include <stdint.h>",
        "src/base/err.h": "#include <stdio.h>",
        "src/base/err.c": '#include "base/err.h"\n#include <string.h>',
        "src/hw/team.h": '#include "base/err.h"',
        "src/hw/local.c": '#include "team.h"\n#include <hwloc.h>',
        "src/file/file.h": '#include "base/err.h"',
        "src/text/tokenizer.h": '#include "file/file.h"',
        "src/ops/kernels.h": '#include "hw/team.h"',
        "src/ops/x86/avx2.c": '#include "ops/kernels.h"',
        "src/model/config.h": '#include "ops/kernels.h"\n#include "file/file.h"\n#include "hw/team.h"',
        "src/engine/engine.c": '#include "yoke.h"\n#include "model/config.h"\n#include "text/tokenizer.h"',
        "programs/args.h": "#include <stdbool.h>",
        "programs/run.c": '#include "args.h"\n#include "yoke.h"',
        "tests/unit/test_err.c": '#include "base/err.h"\n#include "yoke.h"',
    }
    # Each: a file to add, its includes, and the line that must be reported (0: the tree stays clean).
    cases = [
        ("src/base/up.c", '#include "hw/team.h"', 2),
        ("src/base/api.c", '#include "yoke.h"', 2),
        ("src/hw/side.c", '#include <stdio.h>\n#include "file/file.h"', 3),
        ("src/file/side.c", '#include "hw/team.h"', 2),
        ("src/text/up.c", '#include "ops/kernels.h"', 2),
        ("src/ops/side.c", '#include "file/file.h"', 2),
        ("src/model/up.c", '#include "engine/engine.h"', 2),
        ("src/model/text.c", '  #  include   "text/tokenizer.h"', 2),
        ("src/model/api.c", "#include <yoke.h>", 2),
        ("src/engine/ops.c", '#include "ops/kernels.h"', 2),
        ("src/base/dots.c", '#include "../hw/team.h"', 2),
        ("src/base/angle.c", "#include <hw/team.h>", 2),
        ("src/base/macro.c", "#include HEADER", 2),
        ("src/base/lost.c", '#include "string.h"', 2),
        ("src/base/programs.c", '#include "../../programs/args.h"', 2),
        ("src/util/new.c", '#include "base/err.h"', 2),
        ("src/stray.c", "", 1),
        ("programs/peek.c", '#include "base/err.h"', 2),
        ("programs/dots.c", '#include "../src/hw/team.h"', 2),
        ("include/more.h", '#include "base/err.h"', 2),
        ("src/engine/fine.c", '#include "hw/team.h"\n#include "file/file.h"', 0),
    ]
    headerless = [("src/base/bare.c", "#include <stdio.h>\n"), ("src/base/empty.c", ""),
                  ("programs/wrong.c", "/* other.c - a copy. */\n"), ("tests/unit/test_bare.c", "int main;\n")]

    def check(extra_path, extra_text):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name, text in {**{n: f"/* {n.split('/')[-1]} - made up. */\n{t}\n" for n, t in good.items()},
                               extra_path: extra_text}.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text, encoding="utf-8")
            return [(str(path), number) for path, number, _ in check_tree(root)]

    failures = []
    for name, includes, line in cases:
        result = check(name, f"/* {name.split('/')[-1]} - made up. */\n{includes}\n")
        if result != ([(name, line)] if line else []):
            failures.append(f"{name} with {includes!r}: expected line {line}, found {result}")
    for name, text in headerless:
        result = check(name, text)
        if result != [(name, 1)]:
            failures.append(f"{name} without a header comment: found {result}")
    for failure in failures:
        print(f"check-layers.py --self-test: {failure}")
    return 1 if failures else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent
    if not (root / "src").is_dir():
        print(f"check-layers.py: {root} has no src/", file=sys.stderr)
        return 2
    found = check_tree(root)
    for path, line, text in found:
        print(f"{path}:{line}: {text}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""check-symbols.py - the shared library exports exactly the functions that the public header declares.

    scripts/check-symbols.py LIBRARY HEADER   prints each difference, exits 1 if there is one
    scripts/check-symbols.py --self-test      proves that the header is read right and differences are found
"""
import re
import subprocess
import sys

# The linker's own; names with two leading underscores are the compiler's (sanitizers, coverage).
LINKER = {"_init", "_fini", "_edata", "_end", "__bss_start"}


def declared(text):
    """Names of the functions a C header declares."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    text = re.sub(r"//[^\n]*", " ", text)
    text = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*$", " ", text, flags=re.M)
    text = re.sub(r'extern\s+"C"\s*\{', " ", text)
    text = re.sub(r"__attribute__\s*\(\((?:[^()]|\([^()]*\))*\)\)", " ", text)
    while (shorter := re.sub(r"\{[^{}]*\}", " ; ", text)) != text:  # bodies, innermost first
        text = shorter
    names = set()
    for statement in text.split(";"):
        match = re.match(r"[^()]*?\b(\w+)\s*\(", statement.strip(), flags=re.S)
        if match and not re.match(r"\s*(typedef|static)\b", statement):
            names.add(match.group(1))
    return names


def exported(nm_output):
    """Names of the defined dynamic symbols in the output of nm -D --defined-only."""
    names = {line.split()[-1].split("@")[0] for line in nm_output.splitlines() if line.strip()}
    return {name for name in names if name not in LINKER and not name.startswith("__")}


def compare(functions, symbols):
    found = [f"{name} is declared in the header but not exported" for name in sorted(functions - symbols)]
    found += [f"{name} is exported but not declared in the header" for name in sorted(symbols - functions)]
    found += [f"{name} does not begin with yoke_" for name in sorted(functions | symbols)
              if not name.startswith("yoke_")]
    return found


def self_test():
    header = r"""
        /* yoke_comment(void); */  // yoke_comment2(void);
        #define YOKE_API __attribute__((visibility("default")))
        #define TWO_LINES(x) \
            yoke_macro(x);
        #ifdef __cplusplus
        extern "C" {
        #endif
        typedef int yoke_progress(void *user, double (*f)(int));
        struct yoke_options { int tp; int (*hook)(void); struct { int a; } inner; };
        enum yoke_e { YOKE_A = (1 + 2) };
        struct yoke;
        YOKE_API const char *yoke_version(void);
        YOKE_API int yoke_open(struct yoke **out, int (*f)(void),
                               int n) __attribute__((warn_unused_result));
        int yoke_without_export(void);
        #ifdef __cplusplus
        }
        #endif
    """
    nm = "0000 T yoke_open\n0000 T yoke_version@@V1\n0000 D table\n0000 T _init\n0000 B __odr_asan.x\n"
    functions, symbols = declared(header), exported(nm)
    wanted = [(functions, {"yoke_version", "yoke_open", "yoke_without_export"}),
              (symbols, {"yoke_version", "yoke_open", "table"}),
              (len(compare(functions, symbols)), 3),
              (compare({"yoke_a"}, {"yoke_a"}), [])]
    bad = [f"found {found}, expected {right}" for found, right in wanted if found != right]
    for line in bad:
        print(f"check-symbols.py --self-test: {line}")
    return 1 if bad else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) != 3:
        print("usage: check-symbols.py LIBRARY HEADER | --self-test", file=sys.stderr)
        return 2
    library, header = sys.argv[1:]
    with open(header, encoding="utf-8") as file:
        functions = declared(file.read())
    nm = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True)
    if not functions:
        print(f"check-symbols.py: no function found in {header}")
        return 1
    found = compare(functions, exported(nm.stdout))
    for line in found:
        print(f"{library}: {line}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

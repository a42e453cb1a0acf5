#!/bin/bash
# lint.sh - formatting of every C file that git tracks, and the layer rule. Changes nothing; exits 1 on a fault.
set -euo pipefail
cd "$(dirname "$0")/.."

# Versions of clang-format disagree with each other; the tree is formatted by Debian 12's.
clang_format=$(command -v clang-format-14 || command -v clang-format) || {
    echo "lint.sh: clang-format is missing; 'scripts/setup.sh lint' installs it" >&2
    exit 1
}
listing=$(git ls-files '*.c' '*.h' 2>/dev/null) ||
    listing=$(find include src programs tests -name '*.[ch]') # an unpacked archive has no git
status=0
while read -r file; do
    [ -f "$file" ] || continue # tracked, but deleted in the working tree
    if ! "$clang_format" --dry-run -Werror "$file" >/dev/null 2>&1; then
        echo "$file: not formatted; '$(basename "$clang_format") -i $file' does it"
        status=1
    fi
done <<<"$listing"
scripts/check-layers.py || status=1
exit $status

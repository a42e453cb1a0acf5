#!/bin/bash
# setup.sh - installs what building needs and this machine lacks. This is the one place where packages are listed.
#
#   scripts/setup.sh [--check] [build] [fuzz] [lint]        default group: build
#
# Says what it will install, and prints nothing when nothing is missing. --check installs nothing: it names what is
# missing and exits 1. Where there is no apt-get it names what is missing and leaves the rest to the user.
set -euo pipefail

# One line each: group, Debian 12 package, and a command that succeeds where the thing came from elsewhere
# (another distribution's package, pip, a compiler built by hand).
packages() {
    cat <<'LIST'
build gcc                command -v gcc
build libc6-dev          test -e /usr/include/stdio.h
build meson              has_meson
build ninja-build        command -v ninja
build pkg-config         command -v pkg-config
build python3            command -v python3
build libhwloc-dev       pkg-config --exists hwloc
build libpcre2-dev       pkg-config --exists libpcre2-8
build libutf8proc-dev    pkg-config --exists libutf8proc
build libjansson-dev     pkg-config --exists jansson
build libcmocka-dev      pkg-config --exists cmocka
fuzz  clang              command -v clang
fuzz  libclang-rt-14-dev has_fuzzer_runtime
fuzz  llvm               command -v llvm-symbolizer
lint  clang-format       command -v clang-format
LIST
}

# Any Meson from 1.0 on, wherever it came from. An older one that comes first in PATH would win over the package.
has_meson() {
    local major
    major=$(meson --version 2>/dev/null | cut -d. -f1) && [[ $major =~ ^[0-9]+$ ]] && [ "$major" -ge 1 ]
}

has_fuzzer_runtime() {
    echo 'int LLVMFuzzerTestOneInput(const char *p, long n) { return 0; }' |
        clang -fsanitize=fuzzer,address -x c -o /dev/null -
}

have() { # package, probe words...
    local package=$1
    shift
    if [ "$package" != meson ] && command -v dpkg-query >/dev/null; then
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] && return 0
    fi
    "$@" >/dev/null 2>&1
}

check_only=no
groups=()
for arg in "$@"; do
    case $arg in
        --check) check_only=yes ;;
        build | fuzz | lint) groups+=("$arg") ;;
        *)
            echo "setup.sh: unknown argument '$arg'; usage: setup.sh [--check] [build] [fuzz] [lint]" >&2
            exit 2
            ;;
    esac
done
[ ${#groups[@]} -gt 0 ] || groups=(build)

missing=()
while read -r group package probe; do
    if [[ " ${groups[*]} " == *" $group "* ]]; then
        read -ra words <<<"$probe"
        have "$package" "${words[@]}" || missing+=("$package")
    fi
done < <(packages)

[ ${#missing[@]} -gt 0 ] || exit 0

if [ $check_only = yes ]; then
    echo "setup.sh: missing: ${missing[*]} (Debian's names); 'scripts/setup.sh ${groups[*]}' installs them" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    echo "setup.sh: no apt-get here. Needed and not found, by Debian's names: ${missing[*]}." \
        "Going on with what there is." >&2
    exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "setup.sh: these Debian packages are missing and installing them takes root or sudo: ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@"
}

echo "setup.sh: installing these Debian packages${as_root[*]:+ with sudo}: ${missing[*]}"
apt update || echo "setup.sh: apt-get update failed; trying with the package lists that are there" >&2
apt install -y --no-install-recommends "${missing[@]}" </dev/null

if [[ " ${groups[*]} " == *" build "* ]] && ! has_meson; then
    echo "setup.sh: Meson 1.0 or later is needed; '$(command -v meson || echo meson)' is" \
        "'$(meson --version 2>&1 | tail -n 1)': remove it or put the Debian package's /usr/bin first in PATH" >&2
    exit 1
fi

# shellcheck shell=bash
# Sourced by run.sh and test.sh: makes .venv, installs cLLM into it and shows progress.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CONSTRAINTS=scripts/constraints.txt # below ROOT: a path with a space would be two for pip
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '%s\n' "cllm: $*" >&2; }

die() {
    say "$1"
    shift
    [ $# -eq 0 ] || printf '      %s\n' "$@" >&2
    exit 1
}

use_venv() {
    VENV=$1
    LOG=$VENV/install.log
}
use_venv "$ROOT/.venv"

# pip in $VENV. It installs the tested versions, also of what it needs to build a package.
pip() {
    (
        cd "$ROOT" || exit
        export PIP_CONSTRAINT=$CONSTRAINTS PIP_BUILD_CONSTRAINT=$CONSTRAINTS
        exec "$VENV/bin/python" -m pip "$@"
    )
}

# ensure_env run|check|test: afterwards $VENV/bin/python has cLLM; for check also what types and quick
# tests need; for test also what all other tests need.
ensure_env() {
    local purpose=$1 python stamp
    python=$(find_python)
    mkdir -p "$VENV"
    # Two terminals may start at the same time; the second one waits and finds everything installed.
    if command -v flock >/dev/null; then
        exec 9>"$VENV/.install-lock"
        flock -n 9 || { say "waiting for another installation into $VENV"; flock 9; }
    fi
    stamp=$(stamp_of)
    if ! usable_venv "$python" || ! up_to_date "$purpose" "$stamp"; then
        install "$purpose" "$python"
        printf '%s %s\n' "$purpose" "$stamp" >>"$VENV/.installed"
    fi
    exec 9>&-
}

# The interpreter: $PYTHON, or the first python3 that is new enough.
find_python() {
    local name
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null || die "PYTHON=$PYTHON: there is no such program"
        new_enough "$PYTHON" ||
            die "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1); cLLM needs Python 3.10 or newer"
        command -v "$PYTHON"
        return
    fi
    for name in python3 python3.13 python3.12 python3.11 python3.10; do
        if command -v "$name" >/dev/null && new_enough "$name"; then
            command -v "$name"
            return
        fi
    done
    die "Python 3.10 or newer is needed; python3 here: $(python3 --version 2>&1 || true)" \
        "Debian, Ubuntu: sudo apt-get install python3 python3-venv" \
        "or name an interpreter: PYTHON=/path/to/python3.12 $0"
}

# other_pythons PYTHON: a line "3.12 /path/to/python3.12" for each version of CPython from 3.10 on that
# is on the PATH or in a version manager's folder, except that of PYTHON.
other_pythons() {
    local version path
    for version in 3.{10..14}; do
        is_python "$version" "$1" && continue
        while IFS= read -r path; do
            if [ -x "$path" ] && is_python "$version" "$path"; then
                printf '%s %s\n' "$version" "$path"
                break
            fi
        done < <(python_places "$version")
    done
}

# Where a version may be; the newest release first. Some of these do not exist, or are a version
# manager's placeholder that only prints an error.
python_places() {
    local name=python$1
    type -ap "$name" || true
    printf '%s\n' "${PYENV_ROOT:-$HOME/.pyenv}/versions"/*/bin/"$name" \
        "$HOME/.local/share/uv/python"/*/bin/"$name" /opt/*/bin/"$name" /opt/*/*/bin/"$name" |
        sort -rV
}

# is_python VERSION PROGRAM: whether it is that version of CPython, with all that a .venv needs.
is_python() {
    local code='import ensurepip, platform, sys, sysconfig, venv
known = platform.python_implementation() == "CPython" and sys.version_info.releaselevel == "final"
usual = known and not sysconfig.get_config_var("Py_GIL_DISABLED")
sys.exit(not (usual and "%d.%d" % sys.version_info[:2] == sys.argv[1]))'
    "$2" -c "$code" "$1" >/dev/null 2>&1
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

# What decides whether an installation is up to date: requirements, tested versions, this file, the place.
stamp_of() {
    (
        cd "$ROOT" || exit
        cat setup.py setup.cfg "$CONSTRAINTS" scripts/_env.sh
        pwd
    ) | cksum | tr ' ' '-'
}

up_to_date() {
    [ -f "$VENV/.installed" ] || return 1
    grep -qxE "($1|test) $2" "$VENV/.installed"
}

# A .venv whose Python is gone, or is not the one that $PYTHON asks for, is made again.
usable_venv() {
    local version='import pip, sys; print(sys.version_info[:2])' has
    has=$("$VENV/bin/python" -c "$version" 2>/dev/null) || return 1
    [ -z "${PYTHON:-}" ] || [ "$has" = "$("$1" -c "${version/pip, /}")" ]
}

install() {
    local purpose=$1 python=$2 requirement what
    if ! usable_venv "$python"; then
        say "creating $VENV with $("$python" --version)"
        find "$VENV" -mindepth 1 -maxdepth 1 ! -name .install-lock -exec rm -rf {} +
        "$python" -m venv "$VENV" >"$LOG" 2>&1 || {
            cat "$LOG" >&2
            rm -rf "$VENV"
            die "$python cannot create a virtual environment" \
                "Debian, Ubuntu: sudo apt-get install python3-venv"
        }
    fi
    renew_pip
    requirement=$(llama_requirement)
    if ! satisfied "$requirement"; then
        compile_llama "$requirement"
    fi
    # Checks import few of these packages: compiling every module would take longer than it saves.
    case $purpose in
    run) what=("${ROOT}[page,tls]") ;;
    check) what=("${ROOT}[check,page]" --no-compile) ;;
    test) what=("${ROOT}[check,test,compat,page]") ;;
    esac
    say "installing cLLM and the packages it needs"
    # compat: a plain path file, which starts faster than the import hook that is the default.
    pip install --use-pep517 --config-settings editable_mode=compat \
        -e "${what[@]}" >"$LOG" 2>&1 || failed "installing the packages"
}

# pip has --config-settings since 22.1 and --dry-run since 22.2; Ubuntu 22.04 makes a .venv with 22.0.
renew_pip() {
    local old='import pip, sys; sys.exit([*map(int, pip.__version__.split(".")[:2])] >= [22, 2])'
    if "$VENV/bin/python" -c "$old" 2>/dev/null; then
        say "upgrading pip"
        pip install --upgrade pip >"$LOG" 2>&1 || failed "upgrading pip"
    fi
}

# The tested version: llama-cpp-python==X.Y.Z
llama_requirement() { sed -n '/^llama-cpp-python==/{s/ *;.*//;p;q}' "$ROOT/$CONSTRAINTS"; }

satisfied() { pip install --no-index --no-deps --dry-run --quiet "$1" >/dev/null 2>&1; }

compile_llama() {
    local requirement=$1 flags compiler cache cores minutes name wheel
    flags=$(sed -n '/^flags/{s/^flags[^:]*: //p;q}' /proc/cpuinfo 2>/dev/null || true)
    choose_compiler "$flags"
    compiler=${CXX:-}
    for name in c++ g++ clang++; do
        [ -n "$compiler" ] || compiler=$(command -v "$name" || true)
    done
    command -v "${compiler:-none}" >/dev/null ||
        die "no C++ compiler is installed${CXX:+ (CXX=$CXX)}; llama.cpp needs one" \
            "Debian, Ubuntu: sudo apt-get install build-essential"
    # llama.cpp is compiled for this very CPU: a wheel kept in pip's cache must not be taken after
    # the compiler or the CPU has changed, so each pair has a cache of its own.
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/cllm/pip/$({
        printf '%s\n' "$flags" "${CMAKE_ARGS:-}"
        uname -m
        "$compiler" --version
    } | cksum | cut -d' ' -f1)
    mkdir -p "$cache"
    # Of several installations at once one compiles; the others then find its wheel.
    if command -v flock >/dev/null; then
        exec 8>"$cache/.lock"
        flock 8
    fi
    wheel=$(compiled_wheel "$cache" "$requirement")
    if [ -n "$wheel" ]; then
        say "installing llama.cpp from the earlier build"
        pip install --no-deps "$wheel" >"$LOG" 2>&1 || failed "installing the compiled llama.cpp"
        exec 8>&-
        return
    fi
    cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
    minutes=$(((10 + cores - 1) / cores))
    say "compiling llama.cpp with $compiler: about $minutes min on $cores cores (log: $LOG)"
    pip install -v --progress-bar off --cache-dir "$cache" \
        --no-binary llama-cpp-python "$requirement" 2>&1 |
        show_progress || failed "compiling llama.cpp"
    exec 8>&-
}

# pip's cache has a wheel for each Python that built one; this package's suits every Python 3.
compiled_wheel() {
    find "$1" -type f -name "llama_cpp_python-${2#*==}-py3-none-*.whl" -print -quit
}

# GCC's AMX kernels crash (llama.cpp#20824); clang's work and are faster.
choose_compiler() {
    local name
    case " $1 " in *" amx_tile "*) ;; *) return 0 ;; esac
    if [ -n "${CC:-}${CXX:-}" ]; then
        say "this CPU has AMX; using the compiler that CC and CXX name"
        return 0
    fi
    for name in clang-{22,21,20,19,18,17} clang; do
        if command -v "$name" >/dev/null && command -v "${name/clang/clang++}" >/dev/null; then
            export CC=$name CXX=${name/clang/clang++}
            return 0
        fi
    done
    say "this CPU has AMX, which llama.cpp can use only if clang compiles it; to use it:"
    say "  sudo apt-get install clang-19 libomp-19-dev && rm -r $VENV, then run this script again"
}

# The chat templates that tests render: llama.cpp's, from the source distribution of llama-cpp-python.
# Without them those tests are skipped.
ensure_templates() {
    local version folder work source
    version=$(sed -n '/"llama-cpp-python"/{s/.*: "\(.*\)".*/\1/p;q}' \
        "$ROOT/tests/api/templates/digests.json")
    folder=${XDG_CACHE_HOME:-$HOME/.cache}/cllm/templates-$version
    [ ! -d "$folder" ] || return 0
    say "fetching chat templates for the tests"
    mkdir -p "${folder%/*}"
    work=$(mktemp -d "$folder.XXXXXX")
    source=llama_cpp_python-$version
    if timeout --kill-after=10 300 "$VENV/bin/python" -m pip download --no-deps --no-binary llama-cpp-python --dest "$work" \
        "llama-cpp-python==$version" >"$LOG" 2>&1 &&
        tar -xzf "$work/$source.tar.gz" -C "$work" "$source/vendor/llama.cpp/models/templates" \
            >>"$LOG" 2>&1 &&
        mv "$work/$source/vendor/llama.cpp/models/templates" "$folder"; then
        rm -r "$work"
    else
        rm -r "$work"
        say "fetching them failed; their tests will be skipped (log: $LOG)"
    fi
}

# The browser for the tests of the page: Debian's, or Playwright's in the user's cache. Without one
# those tests are skipped.
ensure_browser() {
    local reason
    ! browser_starts >/dev/null 2>&1 || return 0
    say "installing Chromium for the tests of the page"
    if debian_install chromium && browser_starts >/dev/null 2>&1; then return 0; fi
    timeout --kill-after=10 300 "$VENV/bin/python" -m playwright install chromium \
        >"$LOG" 2>&1 </dev/null || true
    reason=$(browser_starts 2>&1) || say "the tests of the page are skipped: $reason"
}

# Node for the tests of its clients. Without it they are skipped.
ensure_node() {
    command -v node >/dev/null && command -v npm >/dev/null && return 0
    say "installing Node for the tests of its clients"
    debian_install nodejs npm ||
        say "the tests of Node's clients are skipped (Debian, Ubuntu: sudo apt-get install nodejs npm)"
}

browser_starts() {
    (cd "$ROOT" && timeout --kill-after=10 90 "$VENV/bin/python" -m scripts.bench.clients.browser)
}

# debian_install PACKAGE…: fails elsewhere, or where it would need a password. Every step is bounded:
# a network may be missing. What can take long is the download, without dpkg's lock.
# Ubuntu is left out: its package chromium is a snap, which containers do not run.
debian_install() {
    local get=(timeout --kill-after=10 300 apt-get -q -o Acquire::Retries=1
        -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=60)
    grep -qsx 'ID=debian' /etc/os-release && command -v apt-get >/dev/null && as_root true || return 1
    {
        as_root "${get[@]}" update
        as_root "${get[@]}" install -y --download-only --no-install-recommends "$@" &&
            as_root env DEBIAN_FRONTEND=noninteractive \
                "${get[@]}" install -y --no-download --no-install-recommends "$@"
    } >"$LOG" 2>&1 </dev/null
}

# as_root COMMAND…: fails where that would ask for a password.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo -n "$@" 2>/dev/null
    fi
}

# Reads pip's output: keeps it in the log and turns ninja's [117/193], or make's [ 60%], into a
# bar on a terminal and into a line every 10 % elsewhere.
show_progress() {
    local line percent shown=-1 begun=$SECONDS bar
    : >"$LOG"
    while IFS= read -r line; do
        printf '%s\n' "$line" >>"$LOG"
        if [[ $line =~ ^\ *\[([0-9]+)/([0-9]+)\]\  ]]; then
            percent=$((100 * BASH_REMATCH[1] / BASH_REMATCH[2]))
        elif [[ $line =~ ^\ *\[\ *([0-9]+)%\] ]]; then
            percent=${BASH_REMATCH[1]}
        else
            continue
        fi
        if [ -t 2 ]; then
            printf -v bar '%*s' $((percent * 40 / 100)) ''
            printf '\r  [%-40s] %3d %%  %d:%02d ' "${bar// /#}" "$percent" \
                $(((SECONDS - begun) / 60)) $(((SECONDS - begun) % 60)) >&2
        elif ((percent / 10 > shown / 10)) || ((shown < 0)); then
            say "  compiled $percent % after $((SECONDS - begun)) s"
        fi
        shown=$percent
    done
    if [ -t 2 ] && ((shown >= 0)); then printf '\n' >&2; fi
}

failed() {
    local remedy="see the log in $LOG, fix the cause and run this script again"
    case $(tail -n 400 "$LOG") in
    *"No space left on device"*) remedy="the disk is full: free some space and run this script again" ;;
    *"Temporary failure in name resolution"* | *"Failed to establish a new connection"* | \
        *"No matching distribution found"*)
        remedy="the Python package index is not reachable: check the network or pip's configuration"
        ;;
    *"signal terminated program cc1plus"* | *"Killed"*)
        remedy="memory ran out: CMAKE_BUILD_PARALLEL_LEVEL=1 $0 compiles one file at a time"
        ;;
    *"No CMAKE_C"*"COMPILER could be found"* | *"is not able to compile a simple test program"*)
        remedy="the compiler does not work: sudo apt-get install build-essential"
        ;;
    esac
    printf '%s\n' '…' >&2
    tail -n 25 "$LOG" | cut -c1-240 >&2
    die "$1 failed" "$remedy"
}

#!/usr/bin/env bash
# Runs linter, formatter check, types, smoke test and tests. Installs missing packages first.
#   scripts/test.sh                        everything; types and quick tests also with every other Python
#   scripts/test.sh --this-python          everything, with the default Python only
#   scripts/test.sh tests/http -k parser   pytest only, with these arguments
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

# What differs between Pythons shows here: sockets, threads, parsing, typing, a generation.
QUICK=(
    tests/http/test_{parser,parser_properties,handler,response,rfc_vectors,sse,streaming}.py
    tests/test_imports.py tests/test_options.py
    tests/api/test_{formats,chat_template,generate,generate_stream}.py
    tests/engine/{text,scheduling/test_{inbox,pacing,planning,scheduler}.py,cache/test_radix.py,machine/test_user_cache.py}
)

ensure_env test
ensure_templates
ensure_browser
ensure_node
cd "$ROOT"
fetch_model() { "$VENV/bin/python" -m tests.tools.fetch_model; }
fetch_node() { "$VENV/bin/python" -m tests.tools.fetch_node; }

if [ $# -gt 0 ] && [ "$1" != --this-python ]; then
    fetch_model || say "the tests that need the model are skipped"
    fetch_node || say "the tests that need these packages are skipped"
    exec "$VENV/bin/python" -m pytest "$@"
fi

results=()
failures=0
unstable=$(mktemp)
trap 'rm -f "$unstable"' EXIT

# step NAME COMMAND…: runs it, keeps going, remembers how it ended.
step() {
    local name=$1 begun=$SECONDS status=0
    shift
    printf '\n== %s\n' "$name"
    "$@" </dev/null || status=$?
    report "$name" $((SECONDS - begun)) $status
}

# report NAME SECONDS STATUS
report() {
    local verdict=ok
    [ "$3" = 0 ] || { verdict="FAILED (exit status $3)"; failures=$((failures + 1)); }
    results+=("$(printf '%-8s %5d s  %s' "$1" "$2" "$verdict")")
}

# tests PYTHON LIMIT ARGUMENTS…: pytest. One or two tests that fail run once more, without others next
# to them. A test that then passes depends on the machine's load: a fault too, which the last lines name.
tests() {
    local python=$1 limit=$2 status=0 failed=()
    local cache=${python%/bin/python}/pytest
    shift 2
    timeout --foreground --kill-after=10 "$limit" \
        "$python" -m pytest -o cache_dir="$cache" --cache-clear "$@" || status=$?
    [ $status = 1 ] || return $status
    mapfile -t failed < <("$python" -c 'import json, sys; print(*json.load(sys.stdin), sep="\n")' \
        <"$cache/v/cache/lastfailed")
    [ ${#failed[@]} -gt 0 ] && [ ${#failed[@]} -le 2 ] || return 1
    printf '\n== once more what failed\n'
    timeout --foreground --kill-after=10 4m \
        "$python" -m pytest -o cache_dir="$cache" "${failed[@]}" || return
    printf '%s\n' "${failed[@]}" >>"$unstable"
}

# check_with VERSION PYTHON FOLDER: types of the package and quick tests in an environment of its own.
check_with() {
    local begun=$SECONDS status python=$ROOT/.venv-$1/bin/python
    set +e # after the installation, a failed step does not stop the next
    printf '\n== Python %s\n' "$1"
    (
        set -e
        export PYTHON=$2
        use_venv "$ROOT/.venv-$1"
        ensure_env check
    )
    status=$?
    if [ $status = 0 ]; then
        "$python" -m mypy cllm || status=$?
        tests "$python" 15m -q "${QUICK[@]}" || status=$?
    fi
    echo "$((SECONDS - begun)) $status" >"$3/$1.end"
}

# All other Pythons at once: much of it waits for the network, the disk or a single core.
check_others() {
    local folder version path jobs=() seconds status
    folder=$(mktemp -d)
    set -m # each job has a process group, which Ctrl-C does not reach but the trap does
    while read -r version path; do
        say "checking with $path in parallel"
        check_with "$version" "$path" "$folder" >"$folder/$version.log" 2>&1 </dev/null &
        jobs+=("$!")
        others+=("$version")
    done < <(other_pythons "$VENV/bin/python")
    set +m
    trap 'kill -- "${jobs[@]/#/-}" 2>/dev/null; rm -rf "$folder"; exit 130' INT TERM
    wait "${jobs[@]}" || true
    trap - INT TERM
    for version in "${others[@]}"; do
        cat "$folder/$version.log"
        read -r seconds status <"$folder/$version.end" || { seconds=0 status=1; }
        report "$version" "$seconds" "$status"
    done
    rm -rf "$folder"
}

others=()
step ruff "$VENV/bin/python" -m ruff check
step format "$VENV/bin/python" -m ruff format --check
step mypy "$VENV/bin/python" -m mypy
[ $# -gt 0 ] || check_others
step smoke env PYTHON="$VENV/bin/python" scripts/smoke.sh
step model fetch_model
printf '\n'
fetch_node </dev/null || say "the tests that need these packages are skipped"
# Three processes, which share the files of tests and the processors (tests/conftest.py): many tests
# wait more than they compute. Once one of them has died, the plugin may wait for it forever: the run
# ends there.
step pytest tests "$VENV/bin/python" 24m -n 3 --dist loadfile --max-worker-restart=0

printf '\n'
printf '%s\n' "${results[@]}"
[ ! -s "$unstable" ] || printf '\nunstable: failed, then passed\n%s\n' "$(<"$unstable")"
printf '\nall tests: %s; ' "$("$VENV/bin/python" --version)"
printf 'types and quick tests: %s\n' "${others[*]:-no other Python}"
exit $((failures > 0))

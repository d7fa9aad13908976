#!/usr/bin/env bash
# Checks everything: linter, formatting, types, shell smoke test, tests. Installs what is missing first.
#   scripts/test.sh                        everything
#   scripts/test.sh tests/http -k parser   only pytest, with these arguments
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
ensure_env test
ensure_templates
cd "$ROOT"

if [ $# -gt 0 ]; then
    exec "$VENV/bin/python" -m pytest "$@"
fi

results=()
failures=0

# step NAME COMMAND…: runs it, keeps going, remembers how it ended.
step() {
    local name=$1 begun=$SECONDS verdict=ok
    shift
    printf '\n== %s\n' "$name"
    "$@" </dev/null || { verdict="FAILED (exit status $?)"; failures=$((failures + 1)); }
    results+=("$(printf '%-6s %5d s  %s' "$name" $((SECONDS - begun)) "$verdict")")
}

step ruff "$VENV/bin/python" -m ruff check
step format "$VENV/bin/python" -m ruff format --check
step mypy "$VENV/bin/python" -m mypy
step smoke env PYTHON="$VENV/bin/python" scripts/smoke.sh
step pytest "$VENV/bin/python" -m pytest

printf '\n'
printf '%s\n' "${results[@]}"
exit $((failures > 0))

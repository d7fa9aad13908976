#!/usr/bin/env bash
# Serves a model over HTTP: installs missing packages, then runs cllm with the given arguments.
#   scripts/run.sh                         the built-in model on http://127.0.0.1:8080
#   scripts/run.sh --model FILE.gguf …     your own model; --help lists every option
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
ensure_env run
exec "$VENV/bin/python" -m cllm.main "$@"

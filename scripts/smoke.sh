#!/usr/bin/env bash
# Sends one request to every endpoint with curl; checks status, JSON and stream events.
#   scripts/smoke.sh                       starts a server with the built-in model
#   scripts/smoke.sh http://127.0.0.1:8080 tests that server, with the key in CLLM_API_KEY if set
# Needs bash, curl and python3. Prints one line per check; stops at the first failure.
set -euo pipefail

case ${1:-} in
-*)
    sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}"
    [ "$1" = -h ] || [ "$1" = --help ]
    exit
    ;;
esac

for tool in curl python3; do
    command -v "$tool" >/dev/null || {
        echo "FAIL $tool is not installed; Debian, Ubuntu: sudo apt-get install $tool"
        exit 1
    }
done

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WORK=$(mktemp -d)
SERVER=''
TRUST=(--proto '=http,https') # options of every curl

stop_server() {
    [ -n "$SERVER" ] || return 0
    kill "$SERVER" 2>/dev/null || true
    wait "$SERVER" 2>/dev/null || true
    SERVER=''
}

cleanup() {
    stop_server
    rm -rf "$WORK"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

fail() {
    printf 'FAIL %s\n' "$1"
    if [ -s "$WORK/body" ]; then
        echo '--- response'
        head -c 2000 "$WORK/body"
        echo
    fi
    if [ -s "$WORK/server.log" ]; then
        echo '--- last lines of the server log'
        tail -n 30 "$WORK/server.log"
    fi
    exit 1
}

# check NAME STATUS CONDITION CURL_ARGS…: CONDITION is Python over `body` (parsed JSON), `data`
# (its "data"), `text` (the raw body), `events` (parsed SSE events) and `kind` (the content type).
check() {
    local name=$1 status=$2 condition=$3 result code kind
    shift 3
    : >"$WORK/body"
    result=$(curl -sS --max-time 60 "${TRUST[@]}" -H @"$WORK/key" -o "$WORK/body" \
        -w '%{http_code} %{content_type}' "$@" 2>"$WORK/curl") || fail "$name: $(cat "$WORK/curl")"
    code=${result%% *}
    kind=${result#* }
    [ "$code" = "$status" ] || fail "$name: status $code, expected $status"
    python3 - "$condition" "$kind" "$WORK/body" <<'PYTHON' || fail "$name: expected $condition"
import json, sys

condition, kind, file = sys.argv[1:]
text = open(file, encoding="utf-8").read()
body = data = None
events = []
if kind.startswith("application/json") and text:
    body = json.loads(text)
    data = body.get("data")
elif kind.startswith("text/event-stream"):
    for block in text.split("\n\n"):
        if block.startswith("data: "):
            events.append(json.loads(block[len("data: "):]))
sys.exit(not eval(f"({condition})"))
PYTHON
    printf 'ok   %s\n' "$name"
}

# check_post NAME STATUS CONDITION PATH JSON
check_post() {
    check "$1" "$2" "$3" -X POST "$BASE$4" -H 'Content-Type: application/json' -d "$5"
}

# start_server SCHEME OPTIONS…: sets BASE.
start_server() {
    local scheme=$1
    shift
    local python=${PYTHON:-python3} try
    [ -n "${PYTHON:-}" ] || [ ! -x "$ROOT/.venv/bin/python" ] || python=$ROOT/.venv/bin/python
    python=$(command -v "$python") || {
        echo "FAIL PYTHON=$PYTHON: there is no such program"
        exit 1
    }
    case $python in /*) ;; *) python=$PWD/$python ;; esac
    # Elsewhere: in the source tree Python would import that instead of what is installed.
    (cd "$WORK" && "$python" -c 'import cllm, llama_cpp, msgspec') 2>/dev/null || {
        echo "FAIL cLLM is not installed for $python; scripts/run.sh installs it into .venv"
        exit 1
    }
    (cd "$WORK" && exec "$python" -m cllm.main --port 0 "$@") >"$WORK/server.log" 2>&1 &
    SERVER=$!
    for ((try = 0; try < 600; try++)); do
        kill -0 "$SERVER" 2>/dev/null || fail 'the server ended during startup'
        [ -n "$BASE" ] || BASE=$(grep -o -m 1 "$scheme://[0-9.]*:[0-9]*" "$WORK/server.log" || true)
        if [ -n "$BASE" ] && curl -fs --max-time 5 "${TRUST[@]}" -o /dev/null "$BASE/health"; then
            printf 'ok   server     ready on %s\n' "$BASE"
            return
        fi
        sleep 0.1
    done
    fail 'the server was not healthy within 60 s'
}

# In a file: other users can see command lines.
printf '%s\n' "${CLLM_API_KEY:+Authorization: Bearer ${CLLM_API_KEY%%,*}}" >"$WORK/key"

BASE=${1:-}
BASE=${BASE%/}
[ -n "$BASE" ] || start_server http

check 'GET  /                    name, version, endpoints' 200 \
    'data["name"] and data["version"] and {"/generate", "/health"} <= {e["path"] for e in data["endpoints"]}' \
    "$BASE/"
check 'GET  /health              healthy, model loaded' 200 \
    'body["success"] and data["status"] == "healthy" and data["model_loaded"] is True' "$BASE/health"
check 'GET  /health?level=full   components, metrics, dependencies' 200 \
    'data["components"] and data["metrics"] and data["dependencies"]' "$BASE/health?level=full"
check_post 'POST /generate            text, id, counts, timings' 200 \
    'body["success"] and len(data["id"]) == 32 and isinstance(data["text"], str)
     and data["response_time"] > 0 and data["tokens_per_second"] > 0
     and 1 <= data["usage"]["completion_tokens"] <= 5' \
    /generate '{"prompt":"Hello","max_tokens":5}'
check_post 'POST /generate            a Chinese prompt' 200 \
    'body["success"] and data["finish_reason"] in ("stop", "length") and data["usage"]["prompt_tokens"] > 0' \
    /generate '{"prompt":"人工智能是计算机科学的一个分支","max_tokens":8,"seed":1}'
check_post 'POST /generate_stream     events, one end with its reason' 200 \
    'events and all(e["done"] is False and "token" in e for e in events[:-1])
     and events[-1]["done"] is True and events[-1]["finish_reason"] in ("stop", "length")
     and len({e["id"] for e in events}) == 1' \
    /generate_stream '{"prompt":"Once upon a time","max_tokens":10,"temperature":0.7}'
check_post 'POST /generate            "stream": true streams too' 200 'events and events[-1]["done"] is True' \
    /generate '{"prompt":"Hello","max_tokens":3,"stream":true}'
check_post 'POST /encode              tokens and their number' 200 \
    'len(data["tokens"]) == data["length"] > 0 and all(type(t) is int for t in data["tokens"])' \
    /encode '{"text":"Hello world"}'
check_post 'POST /encode              Chinese' 200 'data["length"] > 0' \
    /encode '{"text":"人工智能是计算机科学的一个分支","add_special":false}'
tokens=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["data"]["tokens"])' <"$WORK/body")
check_post 'POST /decode              gives the encoded text back' 200 \
    'data["text"] == "人工智能是计算机科学的一个分支"' /decode "{\"tokens\":$tokens}"
check_post 'POST /benchmark           five requests, two at a time' 200 \
    'data["total_requests"] == data["successful_requests"] == 5 and data["failed_requests"] == 0
     and data["avg_throughput"] > 0 and data["max_response_time"] >= data["min_response_time"] > 0' \
    /benchmark '{"requests":5,"concurrency":2,"max_tokens":10,"prompt":"Hello"}'
check 'GET  /model/info          the model and its context' 200 \
    'data["model_name"] and data["vocab_size"] > 0 and data["num_layers"] > 0 and data["llama_cpp"]' \
    "$BASE/model/info"
check 'GET  /metrics             Prometheus text' 200 \
    'kind.startswith("text/plain") and "# TYPE" in text' "$BASE/metrics"
check_post 'POST /generate            malformed JSON is refused' 400 \
    'body["success"] is False and body["error"]' /generate '{"prompt":'
check_post 'POST /generate            an empty prompt is refused' 400 \
    'body["success"] is False and "prompt" in body["error"]' /generate '{"prompt":""}'
check 'GET  /nowhere             404' 404 'body["success"] is False' "$BASE/nowhere"
check 'GET  /generate            405' 405 'body["success"] is False' "$BASE/generate"

if [ -n "$SERVER" ]; then
    stop_server
    BASE=''
    CERTIFICATES=$ROOT/tests/http/certificates
    TRUST+=(--cacert "$CERTIFICATES/server-ca.pem")
    start_server https --tls-cert "$CERTIFICATES/localhost.pem" --tls-key "$CERTIFICATES/localhost.key"
    check 'GET  /health              over TLS' 200 'data["status"] == "healthy"' "$BASE/health"
    check_post 'POST /generate_stream     over TLS' 200 'events and events[-1]["done"] is True' \
        /generate_stream '{"prompt":"Once upon a time","max_tokens":10}'
    check 'GET  /health              http:// on the TLS port is refused in words' 400 \
        '"https://" in body["error"]' "http${BASE#https}/health"
fi
echo 'all checks passed'

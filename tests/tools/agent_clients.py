"""Runs agents' command-line clients against a server, and prints what came of it as a table.

    python -m tests.tools.agent_clients --model FILE.gguf --folder FOLDER

Installs Codex CLI, Claude Code and opencode of pinned versions with npm into FOLDER (1 GB), starts
cLLM on a free port, and gives each client one task. A small model would not call the right tool by
itself. So this program forces a call in each conversation: the tool that runs a command, with a
schema that allows one harmless command only. The table tells whether the model made the call and
whether the client sent back what the command printed. Each client runs in an empty folder with a
home folder of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cllm.api import Service, create_handler
from cllm.engine import Engine
from cllm.http import HttpRequest, HttpResponse, Server
from cllm.http.deferred import DeferredResponse

PACKAGES = ("@openai/codex@0.171.0", "@anthropic-ai/claude-code@2.1.197", "opencode-ai@1.18.33")
TASK = "Run a command that greets."
COMMAND = "printf %s-%s cllm 42"
PRINTED = "cllm-42"
RUNNERS = ("exec_command", "shell_command", "shell", "Bash", "bash")
ANSWER = "The command greeted."
Answer = HttpResponse | DeferredResponse


@dataclass
class Client:
    """A client: its command, its environment, and files that it needs in its home folder."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Seen:
    """The requests that a client sent, with their statuses, and how far the forced call came."""

    requests: list[str] = field(default_factory=list)
    forced: str = ""
    returned: bool = False

    def told(self) -> str:
        """How far the call came."""
        if not self.forced:
            return "no tool that runs commands was offered"
        return f"{self.forced}: " + ("called, result returned" if self.returned else "no result")


def clients(url: str, model: str) -> list[Client]:
    """The clients, told where the server is."""
    codex = (
        f'model = "{model}"\nmodel_provider = "cllm"\n[model_providers.cllm]\nname = "cLLM"\n'
        f'base_url = "{url}/v1"\nwire_api = "responses"\n'
    )
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{url}/v1", "apiKey": "none"},
        "models": {model: {"name": model}},
    }
    opencode = {"provider": {"cllm": provider}, "model": f"cllm/{model}", "autoupdate": False}
    claude = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_SMALL_FAST_MODEL": model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "512",
    }
    return [
        Client(
            "Codex CLI",
            ["codex", "exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", TASK],
            {},
            {".codex/config.toml": codex},
        ),
        Client(
            "Claude Code",
            [
                "claude",
                "--print",
                TASK,
                "--system-prompt",
                "Be brief.",
                "--tools",
                "Bash",
                "--allowedTools",
                "Bash",
            ],
            claude,
        ),
        Client(
            "opencode",
            ["opencode", "run", TASK],
            {"OPENCODE_DISABLE_MODELS_FETCH": "1"},
            {".config/opencode/opencode.json": json.dumps(opencode)},
        ),
    ]


def attempt(client: Client, bin: Path, timeout: float) -> tuple[str, float]:
    """How it ended, and the seconds that it took."""
    with tempfile.TemporaryDirectory() as home:
        for name, text in client.files.items():
            path = Path(home) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        work = Path(home) / "work"
        work.mkdir()
        environment = {"PATH": f"{bin}:{os.environ['PATH']}", "HOME": home, **client.environment}
        started = time.monotonic()
        try:
            run = subprocess.run(
                client.command, cwd=work, env=environment, timeout=timeout, check=False,
                stdin=subprocess.DEVNULL, capture_output=True,
            )  # fmt: skip
            said = (run.stderr if run.returncode else run.stdout).decode(errors="replace")
            ended = f"exit {run.returncode}: {' '.join(said.split())[-120:]}"
        except subprocess.TimeoutExpired:
            ended = "timed out"
        return ended, time.monotonic() - started


def forced(body: dict[str, Any], seen: Seen) -> None:
    """Change a request: the first with the tool must call it, others must say the answer."""
    seen.returned = seen.returned or PRINTED in json.dumps(body.get("messages", body.get("input")))
    tools = {
        (each := tool.get("function", tool)).get("name"): each for tool in body.get("tools", ())
    }
    runner = next((name for name in RUNNERS if name in tools), None)
    if runner is None or seen.forced:
        for name in ("tools", "tool_choice", "parallel_tool_calls", "output_config"):
            body.pop(name, None)
        body["guided_choice"] = [ANSWER]
        return
    seen.forced = runner
    tool = tools[runner]
    key = next(key for key in ("parameters", "input_schema") if key in tool)
    known = tool[key].get("properties", {})
    command = next(name for name in ("cmd", "command") if name in known)
    listed = known[command].get("type") == "array"
    values: dict[str, Any] = {command: ["bash", "-c", COMMAND] if listed else COMMAND}
    if "description" in known:
        values["description"] = "Greets"
    tool[key] = {
        "type": "object",
        "properties": {name: {"const": value} for name, value in values.items()},
        "required": list(values),
        "additionalProperties": False,
    }
    if key == "input_schema":
        body["tool_choice"] = {"type": "tool", "name": runner, "disable_parallel_tool_use": True}
        return
    named = {"function": {"name": runner}} if "messages" in body else {"name": runner}
    body |= {"parallel_tool_calls": False, "tool_choice": {"type": "function", **named}}


def watching(seen: Seen) -> Callable[[HttpRequest, Callable[[HttpRequest], Answer]], Answer]:
    """Middleware that notes each request and its status, and forces the call."""

    def note(request: HttpRequest, next: Callable[[HttpRequest], Answer]) -> Answer:
        line = f"{request.method} {request.path}"
        if request.method == "POST" and not request.path.endswith("count_tokens"):
            body = json.loads(request.body)
            forced(body, seen)
            request.body = json.dumps(body).encode()
        try:
            answer = next(request)
        except Exception as error:
            seen.requests.append(f"{line} {getattr(error, 'status', '')} {error}"[:200])
            raise
        status = answer.status if isinstance(answer, HttpResponse) else "later"
        seen.requests.append(f"{line} {status}")
        return answer

    return note


def main() -> None:
    """Run them all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--folder", type=Path, required=True, help="where npm installs the clients")
    parser.add_argument("--ctx-size", type=int, default=32768)
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for each client")
    parser.add_argument("--only", help="the clients with this text in their names")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    given.folder.joinpath("package.json").write_text('{"private": true}', encoding="utf-8")
    install = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", *PACKAGES]
    subprocess.run(install, cwd=given.folder, check=True)
    seen = Seen()
    with Engine.load(given.model, parallel=1, ctx_size=given.ctx_size) as engine:
        service = Service(engine)
        handler = create_handler(service)
        handler.add_middleware(watching(seen))
        server = Server(handler, port=0)
        server.start()
        try:
            print("| client | ended | seconds | call | requests |\n|---|---|---|---|---|")
            for client in clients(f"http://127.0.0.1:{server.port}", service.model_id):
                if given.only and given.only not in client.name:
                    continue
                seen.requests.clear()
                seen.forced, seen.returned = "", False
                ended, took = attempt(client, given.folder / "node_modules/.bin", given.timeout)
                requests = "; ".join(dict.fromkeys(seen.requests)) or "none"
                cells = (client.name, ended, f"{took:.1f}", seen.told(), requests)
                print("|", " | ".join(cell.replace("|", "/") for cell in cells), "|", flush=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main()

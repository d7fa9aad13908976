"""HTTP/2 with the clients that people use, with and without TLS."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cllm.http import HttpHandler, HttpRequest, HttpResponse, Server, ServerConfig, TlsConfig
from tests.http.http2.http2_wire import Http2Client
from tests.http.http_wire import CERTIFICATES, basic_handler, certificate, client_context

CA = str(CERTIFICATES / "server-ca.pem")


def chat(request: HttpRequest) -> Any:
    """As much of /v1/chat/completions as a client reads."""
    asked = request.json()
    base = {"id": "x", "created": 0, "model": "m"}
    if not asked.get("stream"):
        message = {"role": "assistant", "content": asked["messages"][0]["content"]}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return {**base, "object": "chat.completion", "choices": [choice]}

    def events() -> Iterator[str]:
        for word in asked["messages"][0]["content"].split():
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            yield json.dumps({**base, "object": "chat.completion.chunk", "choices": [choice]})
        yield "[DONE]"

    return events()


def handler() -> HttpHandler:
    handler = basic_handler()
    handler.post_streaming(
        "/v1/chat/completions",
        lambda request: (
            answer if not isinstance(answer := chat(request), dict) else HttpResponse.json(answer)
        ),
    )
    handler.get("/large", lambda request: HttpResponse.bytes(bytes(range(256)) * 8192))
    return handler


@pytest.fixture(scope="module", params=["http", "https"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    tls = TlsConfig((certificate("localhost"),)) if request.param == "https" else None
    config = ServerConfig(workers=4)
    with Server(handler(), "127.0.0.1", 0, config, tls) as server:
        yield server


def url(server: Server, path: str = "") -> str:
    return f"{server.scheme}://localhost:{server.port}{path}"


def run(program: str, *arguments: str) -> bytes:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    done = subprocess.run([program, *arguments], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def curl(server: Server, path: str, *arguments: str) -> bytes:
    version = "--http2" if server.tls else "--http2-prior-knowledge"
    return run("curl", "-sS", version, "--cacert", CA, *arguments, url(server, path))


def test_curl(server: Server, tmp_path: Path) -> None:
    version = curl(server, "/health", "-w", "%{http_version} %{response_code}")
    assert version == b'{"status":"healthy"}2 200'
    assert len(curl(server, "/large")) == 2 * 2**20
    upload = tmp_path / "upload"
    upload.write_bytes(bytes(range(256)) * 20_000)  # 5 MB
    assert curl(server, "/echo", "--data-binary", f"@{upload}") == upload.read_bytes()
    # An announced body and an expectation
    assert curl(server, "/echo", "-H", "Expect: 100-continue", "-d", "x" * 2000) == b"x" * 2000
    head = curl(server, "/large", "-I").decode()
    assert "content-length: 2097152" in head


def test_curl_with_several_streams(server: Server, tmp_path: Path) -> None:
    if server.tls is None:
        pytest.skip("curl 7.88 sends a preface for each stream, to any server")
    output = ("-o", str(tmp_path / "#1"), "-w", "%{http_version} %{response_code}\n")
    printed = curl(server, "/path/[1-50]", "--parallel", *output)
    assert printed.split(b"\n") == [b"2 200"] * 50 + [b""]
    assert all((tmp_path / str(n)).read_text() == str(n) for n in range(1, 51))


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    http1 = server.tls is not None  # without TLS, httpx speaks HTTP/2 only if it has no choice
    with httpx.Client(http2=True, http1=http1, verify=client_context(), timeout=60) as client:
        yield client


def test_httpx(server: Server, client: httpx.Client) -> None:
    reply = client.get(url(server, "/health"))
    assert (reply.http_version, reply.json()) == ("HTTP/2", {"status": "healthy"})
    body = bytes(range(256)) * 20_000
    assert client.post(url(server, "/echo"), content=body).content == body
    assert len(client.get(url(server, "/large")).content) == 2 * 2**20
    assert client.get(url(server, "/nothing")).status_code == 404


def test_httpx_with_many_requests_at_once(server: Server) -> None:
    async def ask(client: httpx.AsyncClient, number: int) -> str:
        return (await client.get(url(server, f"/path/{number}"))).text

    async def ask_all() -> list[str]:
        http1 = server.tls is not None
        async with httpx.AsyncClient(http2=True, http1=http1, verify=client_context()) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(200)))

    assert asyncio.run(ask_all()) == [str(n) for n in range(200)]
    assert server.stats().http2_limits == {}


def test_openai(server: Server) -> None:
    http1 = server.tls is not None
    client = openai.DefaultHttpxClient(http2=True, http1=http1, verify=client_context())
    with openai.OpenAI(
        base_url=url(server, "/v1"), api_key="secret", http_client=client, max_retries=0
    ) as api:
        messages: Any = [{"role": "user", "content": "one two three"}]
        answer = api.chat.completions.create(model="m", messages=messages)
        assert answer.choices[0].message.content == "one two three"
        stream = api.chat.completions.create(model="m", messages=messages, stream=True)
        assert [chunk.choices[0].delta.content for chunk in stream] == ["one", "two", "three"]
        raw = api.chat.completions.with_raw_response.create(model="m", messages=messages)
        assert raw.http_response.http_version == "HTTP/2"


def test_nghttp(server: Server) -> None:
    printed = run("nghttp", "-nv", "-m", "10", url(server, "/large"), url(server, "/health"))
    assert printed.count(b":status: 200") == 11 or printed.count(b":status: 200") == 20
    assert b"GOAWAY frame <length=8" in printed
    assert b"error_code=NO_ERROR" in printed


def test_h2load(server: Server) -> None:
    printed = run("h2load", "-n", "2000", "-c", "5", "-m", "20", url(server, "/health"))
    assert b"2000 succeeded, 0 failed, 0 errored" in printed
    printed = run("h2load", "-n", "100", "-c", "2", "-m", "10", "-w", "20", url(server, "/large"))
    assert b"100 succeeded, 0 failed, 0 errored" in printed


def test_alpn_chooses_the_protocol(server: Server) -> None:
    if server.tls is None:
        pytest.skip("there is no ALPN without TLS")
    for offered, chosen in ((["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), (["x"], None)):
        context = client_context()
        context.set_alpn_protocols(offered)
        with Http2Client(server.port, tls=context, greet=False) as raw:
            assert raw.socket.selected_alpn_protocol() == chosen
    context.set_alpn_protocols(["h2"])
    with Http2Client(server.port, tls=context) as raw:
        assert raw.request("GET", "/health").json() == {"status": "healthy"}
        assert len(raw.request("GET", "/large").body) == 2 * 2**20

"""The native API: its endpoints and errors."""

from __future__ import annotations

from functools import partial

from cllm.api.envelopes import error_body
from cllm.api.metrics import Metrics
from cllm.api.native import tokens
from cllm.api.native.benchmark import Benchmarks
from cllm.api.native.generate import Generating
from cllm.api.native.health import LEVELS, health
from cllm.api.native.model_info import model_info
from cllm.api.native.monitor import Monitor
from cllm.api.native.monitor_view import Moment
from cllm.api.native.schemas import BENCHMARK, DECODE, ENCODE, GENERATE
from cllm.api.native.usage import usage
from cllm.api.openapi import answers
from cllm.api.route import Family, Route
from cllm.api.service import Service
from cllm.api.submission import Submission

NATIVE = Family("native", ("/",), error_body, answers.Failure)


def routes(service: Service, submission: Submission, metrics: Metrics) -> tuple[Route, ...]:
    """The native endpoints, except the lists of all endpoints."""
    generating = Generating(service, submission)
    level = {"level": LEVELS}
    return (
        Route("GET", "/health", "State of the server; ?level=basic|detailed|full",
              partial(health, service), None, answers.Success[answers.Health], level),
        Route("POST", "/generate", "Continue a prompt",
              generating.generate, GENERATE, answers.Success[answers.Generated], events=True),
        Route("POST", "/generate_stream", "Continue a prompt, as server-sent events",
              generating.generate_stream, GENERATE, events=True),
        Route("POST", "/encode", "Text to tokens",
              partial(tokens.encode, service), ENCODE, answers.Success[answers.Encoded]),
        Route("POST", "/decode", "Tokens to text",
              partial(tokens.decode, service), DECODE, answers.Success[answers.Decoded]),
        Route("POST", "/benchmark", "Measure throughput and latency",
              Benchmarks(service).endpoint, BENCHMARK, answers.Success[answers.Benchmarked]),
        Route("GET", "/model/info", "Model metadata and context settings",
              partial(model_info, service), None, answers.Success[answers.ModelInfo]),
        Route("GET", "/usage", "Requests and tokens of the key, or of all for an admin key",
              partial(usage, service), None, answers.Success[answers.Accounts]),
        Route("GET", "/monitor", "What the engine does, as events, at most four a second",
              Monitor(service).endpoint, events=True, event=Moment),
        Route("GET", "/metrics", "Metrics in Prometheus text format", metrics.endpoint),
    )  # fmt: skip

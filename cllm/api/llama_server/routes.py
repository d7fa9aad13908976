"""llama-server's API: its endpoints and errors."""

from __future__ import annotations

from functools import partial

from cllm.api.llama_server.completion import Completion
from cllm.api.llama_server.errors import error_body, too_long
from cllm.api.llama_server.infill import Infill
from cllm.api.llama_server.predict import PREDICT, Predict
from cllm.api.llama_server.schemas import (
    APPLY_TEMPLATE,
    COMPLETION,
    DETOKENIZE,
    INFILL,
    TOKENIZE,
)
from cllm.api.llama_server.server import Server
from cllm.api.llama_server.slot_actions import ACTIONS, FILE, SlotActions
from cllm.api.llama_server.text import Text
from cllm.api.lora_adapters import LORA_SCALES, LoraAdapters
from cllm.api.native.health import LEVELS, health
from cllm.api.openapi import answers
from cllm.api.openapi import llama_answers as llama
from cllm.api.route import Family, Route
from cllm.api.service import Service
from cllm.api.submission import Submission
from cllm.api.vectors.embeddings import LLAMA_SERVER, Embeddings
from cllm.api.vectors.rerank import RERANK, Reranking
from cllm.http import HttpHandler

FAMILY = Family(
    "llama-server",
    (
        *("/completion", "/infill", "/tokenize", "/detokenize", "/apply-template"),
        *("/props", "/slots", "/embedding", "/rerank", "/predict", "/lora-adapters"),
    ),
    error_body,
    llama.LlamaFailure,
    too_long,
)

_COMPLETED = llama.Completed | list[llama.Completed]
_RANKED = llama.Ranking | list[llama.Score]


def routes(service: Service, submission: Submission, handler: HttpHandler) -> tuple[Route, ...]:
    """Its endpoints; handler: formats errors that occur after an endpoint has returned."""
    completion = Completion(service, submission)
    embed = Embeddings(service, submission).llama_server
    rank = Reranking(service, submission).endpoint
    server, text, lora = Server(service), Text(service), LoraAdapters(service)
    return (
        Route("POST", "/completion", "llama-server: continue prompts",
              completion.endpoint, COMPLETION, _COMPLETED, events=True),
        Route("POST", "/completions", "llama-server: the same",
              completion.endpoint, COMPLETION, _COMPLETED, events=True),
        Route("POST", "/infill", "llama-server: fill a gap in a text",
              Infill(service, completion).endpoint, INFILL, _COMPLETED, events=True),
        Route("POST", "/predict", "Vertex AI: several requests in one",
              Predict(handler).endpoint, PREDICT, llama.Predictions),
        Route("POST", "/tokenize", "llama-server: text to tokens",
              text.tokenize, TOKENIZE, llama.Tokenized),
        Route("POST", "/detokenize", "llama-server: tokens to text",
              text.detokenize, DETOKENIZE, llama.Detokenized),
        Route("GET", "/tokenizer_info", "vLLM: special tokens and chat template",
              text.tokenizer_info, None, llama.TokenizerInfo),
        Route("POST", "/apply-template", "llama-server: a conversation as a prompt",
              text.apply_template, APPLY_TEMPLATE, llama.Applied),
        Route("GET", "/props", "llama-server: server properties",
              server.props, None, llama.Props),
        Route("POST", "/props", "llama-server: not supported", server.change_props, asleep=True),
        Route("GET", "/slots", "llama-server: state of the slots",
              server.slots, None, list[llama.Slot], {"fail_on_no_slot": ("1",)}),
        Route("GET", "/lora-adapters", "llama-server: LoRA adapters and their default scales",
              lora.listed, None, list[llama.LoraAdapter]),
        Route("POST", "/lora-adapters", "llama-server: change the default scales",
              lora.change, LORA_SCALES, llama.LoraApplied),
        Route("POST", "/slots/{id}", "Save, restore or erase a slot's prefix: ?action=",
              SlotActions(service, handler).endpoint, FILE, llama.SlotAction, {"action": ACTIONS}),
        Route("POST", "/embedding", "llama-server: texts to vectors",
              embed, LLAMA_SERVER, list[llama.Vectors]),
        Route("POST", "/embeddings", "The same", embed, LLAMA_SERVER, list[llama.Vectors]),
        Route("POST", "/v1/rerank", "Rank documents by relevance to a query",
              rank, RERANK, _RANKED),
        Route("POST", "/v1/reranking", "The same", rank, RERANK, _RANKED),
        Route("POST", "/rerank", "The same", rank, RERANK, _RANKED),
        Route("POST", "/reranking", "The same", rank, RERANK, _RANKED),
        Route("GET", "/v1/health", "llama-server: the same as /health",
              partial(health, service), None, answers.Success[answers.Health], {"level": LEVELS}),
    )  # fmt: skip

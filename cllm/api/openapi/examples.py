"""A request to each endpoint, by the type of its body."""

from __future__ import annotations

from typing import Any

from cllm.api.anthropic import schemas as anthropic
from cllm.api.llama_server import schemas as llama_server
from cllm.api.llama_server.predict import PredictRequest
from cllm.api.llama_server.slot_actions import File
from cllm.api.lora_adapters import LORA_SCALES
from cllm.api.native import schemas as native
from cllm.api.ollama import schemas as ollama
from cllm.api.openai import schemas as openai
from cllm.api.openai.responses.schemas import ResponsesRequest
from cllm.api.vectors import embeddings, rerank

_STORY = "Tell me a story about a fox and a lantern."
_TALK = [{"role": "user", "content": _STORY}]
_BEGUN = "Once upon a time"
_SERVED = "cllm-stories-q8_0"  # the built-in model
_CHAT = {"messages": _TALK, "max_completion_tokens": 40, "temperature": 0}

EXAMPLES: dict[Any, Any] = {
    native.GenerateRequest: {"prompt": _BEGUN, "max_tokens": 40, "seed": 3},
    native.EncodeRequest: {"text": "Hello world"},
    native.DecodeRequest: {"tokens": [3, 260, 800]},
    native.BenchmarkRequest: {"requests": 8, "concurrency": 4, "max_tokens": 10},
    openai.CompletionRequest: {"prompt": [_BEGUN, "从前，"], "max_tokens": 20, "logprobs": 2},
    openai.ChatRequest: _CHAT,
    ResponsesRequest: {"input": _STORY, "max_output_tokens": 40},
    embeddings.OpenAIRequest: {"input": ["the cat", "a dog"], "encoding_format": "float"},
    anthropic.MessagesRequest: {"model": "any", "max_tokens": 40, "messages": _TALK},
    anthropic.CountRequest: {"model": "any", "messages": _TALK},
    ollama.ChatRequest: {"model": _SERVED, "messages": _TALK, "options": {"num_predict": 40}},
    ollama.GenerateRequest: {"model": _SERVED, "prompt": _STORY, "options": {"num_predict": 40}},
    ollama.EmbedRequest: {"model": _SERVED, "input": ["the cat", "a dog"]},
    ollama.EmbeddingsRequest: {"model": _SERVED, "prompt": "the cat"},
    ollama.ModelRequest: {"model": _SERVED},
    llama_server.CompletionRequest: {"prompt": _BEGUN, "n_predict": 8, "n_probs": 1},
    llama_server.InfillRequest: {"input_prefix": "def a():", "input_suffix": "return b"},
    PredictRequest: {"instances": [{"@requestFormat": "completion", "prompt": _BEGUN}]},
    llama_server.TokenizeRequest: {"content": "Hello world", "with_pieces": True},
    llama_server.DetokenizeRequest: {"tokens": [3, 260, 800]},
    embeddings.LlamaServerRequest: {"content": "the cat"},
    rerank.RerankRequest: {"query": "What is a panda?", "documents": ["hi", "it is a bear"]},
    LORA_SCALES.type: [],
    File: {"filename": "talk.bin"},
}

"""Ollama's API: its endpoints and errors."""

from __future__ import annotations

from cllm.api.ollama.chat import Chat
from cllm.api.ollama.errors import error_body
from cllm.api.ollama.generate import Generate
from cllm.api.ollama.lines import LINES
from cllm.api.ollama.models import Models
from cllm.api.ollama.schemas import CHAT, EMBED, EMBEDDINGS, GENERATE, MODEL
from cllm.api.ollama.vectors import Vectors
from cllm.api.openapi import ollama_answers as answers
from cllm.api.route import Family, Route
from cllm.api.service import Service
from cllm.api.submission import Submission

FAMILY = Family("Ollama", ("/api/",), error_body, answers.OllamaFailure)


def routes(service: Service, submission: Submission) -> tuple[Route, ...]:
    """Its endpoints; those that change its store of models answer 501."""
    models, vectors = Models(service), Vectors(service, submission)
    return (
        Route("POST", "/api/chat", "Ollama: answer a conversation",
              Chat(service, submission).endpoint, CHAT, answers.OllamaChat, events=True,
              event_type=LINES),
        Route("POST", "/api/generate", "Ollama: answer or continue a prompt",
              Generate(service, submission).endpoint, GENERATE, answers.OllamaGenerate,
              events=True, event_type=LINES),
        Route("POST", "/api/embed", "Ollama: texts to vectors",
              vectors.embed, EMBED, answers.OllamaEmbeddings),
        Route("POST", "/api/embeddings", "Ollama: one text to a vector",
              vectors.embeddings, EMBEDDINGS, answers.OllamaEmbedding),
        Route("GET", "/api/version", "Ollama: the version of its API",
              models.version, None, answers.OllamaVersion),
        Route("GET", "/api/tags", "Ollama: list the loaded model",
              models.tags, None, answers.OllamaModels),
        Route("GET", "/api/ps", "Ollama: list the running model",
              models.running, None, answers.OllamaModels),
        Route("POST", "/api/show", "Ollama: describe the loaded model",
              models.show, MODEL, answers.OllamaShow, asleep=True),
        Route("POST", "/api/pull", "Ollama: succeeds for the loaded model",
              models.pull, MODEL, answers.OllamaStatus, events=True, event_type=LINES,
              asleep=True),
        *(
            Route(method, f"/api/{name}", "Ollama: not supported",
                  models.unsupported, None, answers.OllamaFailure, asleep=True)
            for method, name in (
                ("POST", "create"), ("POST", "copy"), ("POST", "push"), ("DELETE", "delete"),
            )
        ),
    )  # fmt: skip

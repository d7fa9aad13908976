"""OpenAI's API: its endpoints and errors."""

from __future__ import annotations

from cllm.api.openai.chat import ChatCompletions
from cllm.api.openai.completions import Completions
from cllm.api.openai.errors import error_body, too_long
from cllm.api.openai.models import Models
from cllm.api.openai.responses import Responses, ResponseStore, StoredResponses
from cllm.api.openai.responses.schemas import RESPONSES
from cllm.api.openai.schemas import CHAT, COMPLETION
from cllm.api.openai.timing import timed
from cllm.api.openapi import answers, stored_answers
from cllm.api.route import Family, Route
from cllm.api.service import Service
from cllm.api.submission import Submission
from cllm.api.vectors.embeddings import OPENAI, Embeddings

FAMILY = Family(
    "OpenAI",
    ("/v1/", "/chat/", "/models", "/responses"),
    error_body,
    answers.OpenAIFailure,
    too_long,
    timed,
)


def routes(service: Service, submission: Submission) -> tuple[Route, ...]:
    """What is served of it, and llama-server's other names for some."""
    chat = ChatCompletions(service, submission)
    completions = Completions(service, submission)
    models = Models(service)
    store = ResponseStore(service.settings.response_memory)
    responses, stored = Responses(service, submission, store), StoredResponses(store)
    return (
        Route("POST", "/v1/chat/completions", "OpenAI: answer a conversation",
              chat.endpoint, CHAT, answers.ChatCompletion, events=True),
        Route("POST", "/v1/responses", "OpenAI: create a response",
              responses.create, RESPONSES, answers.Response, events=True),
        Route("GET", "/v1/responses/{id}", "OpenAI: read a stored response",
              stored.read, None, answers.Response),
        Route("DELETE", "/v1/responses/{id}", "OpenAI: delete a stored response",
              stored.delete, None, stored_answers.Deleted),
        Route("GET", "/v1/responses/{id}/input_items", "OpenAI: what a response was made from",
              stored.input_items, None, stored_answers.ItemList),
        Route("POST", "/responses", "llama-server: the same as /v1/responses",
              responses.create, RESPONSES, answers.Response, events=True),
        *(
            Route("POST", f"{prefix}/chat/completions/input_tokens", "Count a prompt's tokens",
                  chat.count_tokens, CHAT, answers.Counted)
            for prefix in ("/v1", "")
        ),
        *(
            Route("POST", f"{prefix}/responses/input_tokens", "Count a prompt's tokens",
                  responses.count_tokens, RESPONSES, answers.Counted)
            for prefix in ("/v1", "")
        ),
        Route("POST", "/v1/completions", "OpenAI: continue prompts",
              completions.endpoint, COMPLETION, answers.TextCompletion, events=True),
        Route("POST", "/v1/embeddings", "OpenAI: texts to vectors",
              Embeddings(service, submission).openai, OPENAI, answers.EmbeddingList),
        Route("GET", "/v1/models", "OpenAI: list the loaded model",
              models.listed, None, answers.ModelList),
        Route("GET", "/v1/models/{id}", "OpenAI: the loaded model by name",
              models.model, None, answers.Model),
        Route("GET", "/models", "llama-server: the same as /v1/models",
              models.listed, None, answers.ModelList),
        Route("POST", "/chat/completions", "llama-server: the same as /v1/chat/completions",
              chat.endpoint, CHAT, answers.ChatCompletion, events=True),
    )  # fmt: skip

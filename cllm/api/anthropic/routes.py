"""Anthropic's API: its endpoints and errors."""

from __future__ import annotations

from cllm.api.anthropic.errors import error_body
from cllm.api.anthropic.messages import Messages
from cllm.api.anthropic.schemas import COUNT, MESSAGES
from cllm.api.openapi import answers
from cllm.api.route import Family, Route
from cllm.api.service import Service
from cllm.api.submission import Submission

FAMILY = Family("Anthropic", ("/v1/messages",), error_body, answers.AnthropicFailure)


def routes(service: Service, submission: Submission) -> tuple[Route, ...]:
    """Its endpoints."""
    messages = Messages(service, submission)
    return (
        Route("POST", "/v1/messages", "Anthropic: answer a conversation",
              messages.create, MESSAGES, answers.AnthropicMessage, events=True),
        Route("POST", "/v1/messages/count_tokens", "Anthropic: count a conversation's tokens",
              messages.count_tokens, COUNT, answers.Count),
    )  # fmt: skip

"""The choices of a whole text completion: which are the best, and what is shown of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cllm.api.openai.logprobs import TextLogprobs, joined, prompt_logprobs
from cllm.api.openai.reply import Reply
from cllm.api.openai.schemas import CompletionRequest
from cllm.http import HttpResponse

if TYPE_CHECKING:
    from cllm.engine import Engine, Generation
    from cllm.engine.generation import TokenRecord

    Recorded = tuple[Generation, list[TokenRecord]]

_KIND = "text_completion"


def choice_of(
    index: int, text: str, reason: str | None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A choice, or a part of one."""
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def whole(reply: Reply, echoes: Sequence[str], asked: CompletionRequest) -> HttpResponse:
    """The response. echoes: what each prompt's choices begin with."""
    choices: list[dict[str, Any]] = []
    made, shown = asked.made, asked.n or 1
    for number, echo in enumerate(echoes):
        generations = reply.generations[number * made : (number + 1) * made]
        prompt = generations[0].take_prompt_tokens()
        recorded = [(generation, generation.take_tokens()) for generation in generations]
        if made > shown:
            recorded = sorted(recorded, key=_mean_logprob, reverse=True)[:shown]
        for generation, records in recorded:
            text = echo + "".join(generation.take())
            logprobs = _logprobs(reply.engine, asked, prompt, echo, records)
            choice = choice_of(len(choices), text, generation.finish_reason, logprobs)
            if asked.prompt_logprobs is not None:
                found = prompt_logprobs(reply.engine, prompt, asked.prompt_logprobs)
                choice["prompt_logprobs"] = found
            choices.append(choice)
    return reply.whole(_KIND, choices, reply.usage())


def _mean_logprob(recorded: Recorded) -> float:
    _, records = recorded
    return sum(record.logprob for record in records) / max(1, len(records))


def _logprobs(
    engine: Engine,
    asked: CompletionRequest,
    prompt: Sequence[TokenRecord],
    echo: str,
    records: Sequence[TokenRecord],
) -> dict[str, Any] | None:
    if asked.shown_logprobs is None:
        return None
    by_number = bool(asked.return_tokens_as_token_ids)
    told = TextLogprobs(engine, asked.shown_logprobs, by_number)
    if not asked.echo:
        return told.of(records)
    return joined([told.of_prompt(prompt, echo), told.of(records)])

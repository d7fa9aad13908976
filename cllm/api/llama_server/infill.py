"""``/infill``: fills the gap between two pieces of text, with the model's tokens for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cllm.api.llama_fields import most_tokens
from cllm.api.llama_server.completion import Completion
from cllm.api.llama_server.prompts import mixed_tokens
from cllm.api.llama_server.schemas import INFILL, Chunk, InfillRequest
from cllm.api.service import Service
from cllm.engine import InvalidRequest
from cllm.http import DeferredResponse, HttpError, HttpRequest, HttpResponse

if TYPE_CHECKING:
    from cllm.engine import Engine
    from cllm.engine.info import FimTokens

_SNIPPET = "\n\n--- snippet ---\n\n"  # before a further file, for models without a token for it


class Infill:
    """The endpoint."""

    __slots__ = ("_completion", "_service")

    def __init__(self, service: Service, completion: Completion) -> None:
        self._service = service
        self._completion = completion

    def endpoint(self, request: HttpRequest) -> HttpResponse | DeferredResponse:
        """POST ``/infill``.

        Raises HttpError 501 for a model without such tokens, else as Completion's.
        """
        engine = self._service.engine
        fim = engine.info().fim
        missing = [name for name in ("prefix", "suffix", "middle") if getattr(fim, name) is None]
        if missing:
            raise HttpError(
                501, f"infill is not supported by this model: it has no {', '.join(missing)} token"
            )
        asked = INFILL.decode(request.body)
        tokens = gap(engine, fim, asked, self._service.settings.sampling)
        engine.check_prompt(tokens)
        return self._completion.answer(request, asked, [tokens])


def gap(
    engine: Engine, fim: FimTokens, asked: InfillRequest, defaults: Mapping[str, Any]
) -> list[int]:
    """Further files, prefix, suffix and the start of the inserted text, as a prompt.

    A text that does not fit keeps the part nearest to the gap, three quarters of it before the gap
    (server-common.cpp, format_prompt_infill). Raises InvalidRequest.
    """
    if not isinstance(asked.prompt, str | None):
        raise InvalidRequest("prompt", "a list", "text, the beginning of what is filled in")
    context = engine.info().context
    begun = mixed_tokens(engine, asked.prompt or "", add_special=False, parse_special=True)
    before, after = _plain(engine, asked.input_prefix), _plain(engine, asked.input_suffix)
    bos = engine.tokenize("", add_special=True)
    most = most_tokens(defaults, asked.n_predict, asked.max_tokens) or 1
    wanted = min(most, context.ctx_size // 2)
    room = context.ctx_size - wanted - len(bos) - len(begun) - 3
    quarter = max(0, min(context.batch_size, room)) // 4
    before = before[max(0, len(before) - 3 * quarter) :]
    after = after[:quarter]
    assert fim.prefix is not None and fim.suffix is not None and fim.middle is not None
    tokens = [fim.prefix, *before, fim.suffix, *after, fim.middle, *begun]
    extra = _files(engine, fim, asked.input_extra)
    room = max(0, context.ctx_size - wanted - len(bos) - len(tokens))
    return [*bos, *extra[max(0, len(extra) - room) :], *tokens]


def _files(engine: Engine, fim: FimTokens, chunks: list[Chunk]) -> list[int]:
    tokens: list[int] = []
    if fim.repository is not None:
        tokens += [fim.repository, *_plain(engine, "myproject\n")]
    for chunk in chunks:
        if fim.file is None:
            tokens += _plain(engine, _SNIPPET)
        else:
            tokens += [fim.file, *_plain(engine, chunk.filename + "\n")]
        tokens += _plain(engine, chunk.text)
    if fim.file is not None:
        tokens += [fim.file, *_plain(engine, "filename\n")]
    return tokens


def _plain(engine: Engine, text: str) -> list[int]:
    return engine.tokenize(text, add_special=False)

"""Fields of other servers that change what an answer may be and are not served: refused by name.

Sources: vLLM's, SGLang's and Text Generation Inference's references. A client that sends one with a
value that changes nothing is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cllm.api.sharing_fields import SharingFields

# Field -> the values that ask for nothing, and what to use in its place.
UNSERVED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "min_tokens": ((0,), "use ignore_eos with max_tokens, or a constraint"),
    "min_new_tokens": ((0,), "use ignore_eos with max_tokens, or a constraint"),
    "max_new_tokens": ((), "use max_tokens"),
    "stop_token_ids": (([],), "use stop"),
    "stop_regex": (("", []), "use stop, or regex for the whole text"),
    "include_stop_str_in_output": ((False,), "leave it out"),
    "no_stop_trim": ((False,), "leave it out"),
    "bad_words": (([],), "use logit_bias"),
    "allowed_token_ids": (([],), "use logit_bias, or a constraint"),
    "logits_processors": (([],), "use logit_bias, or a constraint"),
    "custom_logit_processor": (("",), "use logit_bias, or a constraint"),
    "length_penalty": ((1,), "leave it out"),
    "use_beam_search": ((False,), "use n"),
    "early_stopping": ((False,), "leave it out"),
    "truncate_prompt_tokens": ((), "shorten the prompt"),
    "prompt_logprobs": ((), "use /v1/completions or /v1/chat/completions"),
    "structural_tag": ((), "use tools, or grammar"),
    "guided_whitespace_pattern": ((), "leave it out: JSON has one layout here"),
    "lora_path": (("",), "start the server with --lora and use lora"),
}


class UnservedFields(SharingFields, kw_only=True):
    """The fields; each is refused when the body is read, unless the API serves it."""

    SERVED: ClassVar[frozenset[str]] = frozenset()

    min_tokens: Any = None
    min_new_tokens: Any = None
    max_new_tokens: Any = None
    stop_token_ids: Any = None
    stop_regex: Any = None
    include_stop_str_in_output: Any = None
    no_stop_trim: Any = None
    bad_words: Any = None
    allowed_token_ids: Any = None
    logits_processors: Any = None
    custom_logit_processor: Any = None
    length_penalty: Any = None
    use_beam_search: Any = None
    early_stopping: Any = None
    truncate_prompt_tokens: Any = None
    prompt_logprobs: Any = None
    structural_tag: Any = None
    guided_whitespace_pattern: Any = None
    lora_path: Any = None

    def __post_init__(self) -> None:
        """Refuse what is not served: ValueErrors become the 400's text."""
        for name, (nothing, instead) in UNSERVED.items():
            value = getattr(self, name)
            if value is not None and value not in nothing and name not in self.SERVED:
                raise ValueError(f"{name}: is not supported; {instead}")

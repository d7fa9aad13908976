"""From a conversation to a prompt and to what its answer must be."""

from __future__ import annotations

import pytest

from cllm.api.chat.chat_template import CHATML, ChatTemplate
from cllm.api.chat.constraint import Thinking, thinking_of
from cllm.api.chat.conversation import Conversation
from cllm.api.chat.dialect import dialect_of
from cllm.api.chat.prepare import prepare
from cllm.api.constraint_fields import Asked
from cllm.engine import Constraint, PromptTooLong
from tests.api.api_client import Live

USER = {"role": "user", "content": "Hello"}
WITH_THOUGHTS = CHATML + "{# <think> </think> #}"  # the source tells that a model thinks
WITHOUT = CHATML
OPENED = "<|im_start|>assistant\n<think>\n"
BEGUN = "<|im_start|>assistant\n"


def answering(said: str) -> Conversation:
    return Conversation([USER, {"role": "assistant", "content": said}], continued=True)


@pytest.mark.parametrize(
    ("conversation", "template", "prompt", "thinking"),
    [
        (Conversation([USER]), WITH_THOUGHTS, OPENED, Thinking.OPENED),
        (Conversation([USER]), WITH_THOUGHTS, BEGUN, Thinking.ALLOWED),
        (Conversation([USER]), WITHOUT, BEGUN, Thinking.UNASKED),
        (Conversation([USER], reasoning=False), WITH_THOUGHTS, BEGUN, Thinking.UNASKED),
        (Conversation([USER], reasoning="none"), WITH_THOUGHTS, BEGUN, Thinking.UNASKED),
        (Conversation([USER], reasoning=False), WITH_THOUGHTS, OPENED, Thinking.OPENED),
        (answering("<think>Hm"), WITH_THOUGHTS, BEGUN, Thinking.OPENED),
        (answering("<think>Hm</think>Yes"), WITH_THOUGHTS, BEGUN, Thinking.NONE),
        (answering("Yes"), WITH_THOUGHTS, OPENED, Thinking.NONE),
        (
            Conversation([USER], response=Asked(Constraint("json_object"), "response_format")),
            WITH_THOUGHTS,
            BEGUN,
            Thinking.ALLOWED,
        ),
        (
            Conversation([USER], response=Asked(Constraint("regex", "a+"), "regex")),
            WITH_THOUGHTS,
            OPENED,
            Thinking.NONE,
        ),
    ],
)
def test_whether_thoughts_come_before_an_answer(
    conversation: Conversation, template: str, prompt: str, thinking: Thinking
) -> None:
    dialect = dialect_of(ChatTemplate(template))
    assert thinking_of(conversation, dialect, prompt) is thinking


def test_a_format_that_tells_thoughts_itself_has_none_before_its_answer() -> None:
    dialect = dialect_of(ChatTemplate("{# <|channel|> <|message|> #}"))
    assert dialect.format.channels
    assert thinking_of(Conversation([USER]), dialect, OPENED) is Thinking.NONE


def test_a_prompt_has_the_text_of_its_tokens(live: Live) -> None:
    template = live.service.chat_template
    prompt = template.prompt(live.engine, [USER])
    assert prompt.text == template.render([USER])
    assert live.engine.detokenize(prompt.tokens) == prompt.text


def test_a_conversation_that_does_not_fit_is_refused(live: Live) -> None:
    size = live.engine.info().context.ctx_size
    long = {"role": "user", "content": "Hello " * size}
    with pytest.raises(PromptTooLong) as refused:
        prepare(live.service, Conversation([long]))
    assert refused.value.prompt_tokens >= size

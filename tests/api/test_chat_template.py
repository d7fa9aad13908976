"""Promises of chat templates: transformers' environment, a sandbox, errors in one line."""

from __future__ import annotations

import pytest

from cllm.api.chat_template import CHATML, ChatTemplate, TemplateError

USER = [{"role": "user", "content": "Hi"}]


def test_chatml() -> None:
    assert ChatTemplate(CHATML).render(USER) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_blocks_leave_no_blank_lines_and_loops_can_be_left() -> None:
    source = (
        "{% for m in messages %}\n    {% if loop.index > 1 %}{% break %}{% endif %}\n"
        "{{ m.role }}\n{% endfor %}"
    )
    assert ChatTemplate(source).render(USER * 3) == "user\n"


def test_tokens_of_the_model_and_variables_of_the_request() -> None:
    template = ChatTemplate("{{ bos_token }}{{ eos_token }}{{ enable_thinking }}", "<s>", "</s>")
    assert template.render(USER, enable_thinking=False) == "<s></s>False"


def test_json_is_not_escaped_for_html() -> None:
    template = ChatTemplate("{{ messages[0] | tojson }}")
    assert template.render([{"content": "<é>"}]) == '{"content": "<é>"}'


def test_the_mark_for_training_is_text() -> None:
    assert ChatTemplate("a{% generation %}b{% endgeneration %}c").render(USER) == "abc"


def test_an_answer_that_has_begun_is_left_open() -> None:
    talk = [*USER, {"role": "assistant", "content": "Hel"}]
    rendered = ChatTemplate(CHATML).render(talk, continued=True)
    assert rendered.endswith("<|im_start|>assistant\nHel")


def test_the_time_can_be_told() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}").render(USER).isdigit()


@pytest.mark.parametrize("source", ["{% if %}", "{{ x", "{% nonsense %}"])
def test_a_template_that_cannot_be_read(source: str) -> None:
    with pytest.raises(TemplateError, match="cannot be read"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{% for _ in range(10 ** 9) %}{% endfor %}", "too big"),
    ],
)
def test_a_template_that_refuses_or_reaches_out(source: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        ChatTemplate(source).render(USER)

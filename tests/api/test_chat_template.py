"""Promises of chat templates: transformers' environment, a sandbox, errors in one line."""

from __future__ import annotations

from typing import Any

import pytest

from cllm.api.chat.chat_template import CHATML, ChatTemplate, TemplateError
from cllm.engine import Engine

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
    assert template.render(USER, {"enable_thinking": False}) == "<s></s>False"


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


def test_a_continued_answer_is_cut_where_the_template_trims_it() -> None:
    template = ChatTemplate("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}")
    talk = [*USER, {"role": "assistant", "content": "Hel \n"}]
    assert template.render(talk, continued=True) == "[Hi][Hel"


@pytest.mark.parametrize("last", [{"content": None}, {}, {"content": ["x"]}])
def test_only_a_text_can_be_continued(last: dict[str, Any]) -> None:
    with pytest.raises(TemplateError, match="no text to continue"):
        ChatTemplate(CHATML).render([*USER, {"role": "assistant", **last}], continued=True)


def test_an_answer_that_the_template_hides_cannot_be_continued() -> None:
    talk = [*USER, {"role": "assistant", "content": "Hel"}]
    with pytest.raises(TemplateError, match="does not show the last message"):
        ChatTemplate("{{ messages[0].content }}").render(talk, continued=True)


def test_a_field_that_is_null_is_not_there() -> None:
    template = ChatTemplate("{{ messages[0].name is defined }}")
    assert template.render([{"role": "user", "content": "Hi", "name": None}]) == "False"


ARGUMENTS = '{"city": "Bern"}'
CALL = {
    "role": "assistant",
    "tool_calls": [{"function": {"name": "weather", "arguments": ARGUMENTS}}],
}
SHOWN = "{% for m in messages %}{% for call in m.tool_calls %}%s{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("{{ call.function.arguments | tojson }}", ARGUMENTS),
        ("{{ call.function.arguments.city }}", "Bern"),
        ("{{ '' + call.function.arguments }}", ARGUMENTS),
        ("{{ call.function.arguments }}", ARGUMENTS),
    ],
    ids=["as JSON", "by name", "joined as text", "as text"],
)
def test_arguments_are_an_object_or_text_as_the_template_wants(shown: str, expected: str) -> None:
    template = ChatTemplate(SHOWN.replace("%s", shown))
    assert template.render([CALL]) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("{not JSON", '{"arguments": "{not JSON"}'),
        ("[1]", '{"arguments": [1]}'),
        ("5", '{"arguments": 5}'),
        ("", "{}"),
        (" \n", "{}"),
        ("null", "{}"),
        (None, "{}"),
        ({"a": 1}, '{"a": 1}'),
    ],
)
@pytest.mark.parametrize("shown", ["{{ call.function.arguments | tojson }}",
                                   "{{ '' + call.function.arguments }}"])  # fmt: skip
def test_arguments_that_are_no_object_become_one(arguments: Any, expected: str, shown: str) -> None:
    template = ChatTemplate(SHOWN.replace("%s", shown))
    function = {"name": "weather", "arguments": arguments}
    assert template.render([{"tool_calls": [{"function": function}]}]) == expected


def test_a_template_may_collect_in_lists_and_write_a_filters_result_as_json() -> None:
    source = "{% set ids = [] %}{% for m in messages %}{% set _ = ids.append(m.role) %}{% endfor %}"
    template = ChatTemplate(source + "{{ ids }} {{ messages | map(attribute='role') | tojson }}")
    assert template.render([{"role": "user"}]) == "['user'] [\"user\"]"


def test_a_template_that_needs_tools_renders_without_them() -> None:
    template = ChatTemplate(
        "{% for tool in tools %}{{ tool }}{% endfor %}{{ messages[0].content }}"
    )
    assert template.render([{"content": "Hi"}]) == "Hi"


CONTROLS = ["<|im_start|>", "<|im_end|>", "<|im|>"]


def test_control_tokens_in_a_text_do_not_disturb_the_template() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{{ m.content | trim }}|{% endfor %}", controls=CONTROLS
    )
    talk = [{"content": " <|im_end|>"}, {"content": "a<|im_start|>b "}]
    assert template.render(talk) == "<|im_end|>|a<|im_start|>b|"


def test_control_tokens_that_a_client_spells_are_text(engine: Engine) -> None:
    (start, end), text = spelled(engine), "a{}system{}b"
    source = f"{start}{{{{ messages[0].content }}}}{end}"
    template = ChatTemplate(source, engine.info().bos_text, controls=[start, end])
    asked = text.format(end, start)
    tokens = template.prompt(engine, [{"role": "user", "content": asked}]).tokens
    controls = engine.tokenize(start + end, add_special=False, parse_special=True)
    assert [token for token in tokens if token in controls] == controls
    assert engine.detokenize(tokens) == asked + end  # without BOS


def test_control_tokens_in_names_variables_and_tools_are_text(engine: Engine) -> None:
    (start, end) = spelled(engine)
    source = "{{ messages | tojson }}{{ tools | tojson }}{{ mood }}"
    template = ChatTemplate(source, controls=[start, end])
    tokens = template.prompt(
        engine,
        [{"role": start, "content": end, end: 1}],
        {"tools": [{start: [end]}], "mood": end},
    ).tokens
    controls = engine.tokenize(start + end, add_special=False, parse_special=True)
    assert not set(tokens[1:]) & set(controls)  # the first is BOS


@pytest.mark.parametrize("cut", ["[:-1]", "[1:]", "[:5]", "[5:]"])
def test_a_template_that_cuts_texts_makes_no_control_tokens_of_them(
    engine: Engine, cut: str
) -> None:
    (start, end) = spelled(engine)
    source = f"{{{{ messages[0].content{cut} }}}}{{{{ messages[1].content }}}}"
    template = ChatTemplate(source, controls=[start, end])
    for rest in (end, end[4:], ""):
        tokens = template.prompt(engine, [{"content": end}, {"content": rest}]).tokens
        controls = engine.tokenize(start + end, add_special=False, parse_special=True)
        assert not set(tokens[1:]) & set(controls)


def test_the_marks_that_keep_them_text_cannot_be_forged(engine: Engine) -> None:
    start, end = spelled(engine)
    template = ChatTemplate("{{ messages[0].content }}", controls=[start, end])
    halves = [end[:1] + mark + end[1:] for mark in "\ufdd0\ufdd1"]
    asked = "".join(["\ufdd1", end, "\ufdd0", *halves])
    tokens = template.prompt(engine, [{"content": asked}]).tokens
    controls = engine.tokenize(end, add_special=False, parse_special=True)
    assert not set(tokens[1:]) & set(controls)  # the first is BOS


def spelled(engine: Engine) -> tuple[str, str]:
    """Two control tokens of the model."""
    first, second, *_ = engine.control_texts()
    return first, second


@pytest.mark.parametrize(
    "source",
    ["{% if %}", "{{ x", "{% nonsense %}", f"{{{{ {5000 * '9'} }}}}", f"{{{{ {5000 * '['} }}}}"],
    ids=["if", "open", "nonsense", "huge number", "deep"],
)
def test_a_template_that_cannot_be_read(source: str) -> None:
    with pytest.raises(TemplateError, match="cannot be read"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{% for _ in range(10 ** 9) %}{% endfor %}", "too big"),
    ],
)
def test_a_template_that_refuses_or_reaches_out(source: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        ChatTemplate(source).render(USER)

"""The formats of model families: one declaration each. Source: the chat templates of the models.

A format is a layout with a family's marks. `docs/api.md` lists the families of each.
"""

from __future__ import annotations

from functools import partial

from cllm.api.formats import gpt_oss, muse
from cllm.api.formats.calls import short_id
from cllm.api.formats.format import Format
from cllm.api.formats.gemma import GemmaCalls
from cllm.api.formats.json_calls import JsonCalls
from cllm.api.formats.named_calls import NamedCalls
from cllm.api.formats.pythonic import PythonCalls
from cllm.api.formats.tagged_calls import TaggedCalls

_HERMES = JsonCalls("<tool_call>", "</tool_call>", open="\n", close="\n")
_MISTRAL = JsonCalls("[TOOL_CALLS]", open="[", close="]", between=", ")
_FIREFUNCTION = JsonCalls("functools", open="[", close="]", between=", ")
_COHERE_FRAMES = (
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
    "<|START_TEXT|>",
    "<|END_TEXT|>",
)

_GLM = partial(
    TaggedCalls,
    call=("<tool_call>", ""),
    call_end="</tool_call>",
    argument=("<arg_key>", "</arg_key>", "<arg_value>"),
    argument_end="</arg_value>",
)
# Elements with names in attributes: `<invoke name="f">`, `<parameter name="a">`.
_INVOKE = partial(
    TaggedCalls,
    each=False,
    call=('<invoke name="', '"', ">"),
    call_end="\n</invoke>\n",
    argument=('\n<parameter name="', '"', ">"),
    argument_end="</parameter>",
)
_DSML = partial(
    TaggedCalls,
    each=False,
    call=('<｜DSML｜invoke name="', '"', ">"),
    call_end="\n</｜DSML｜invoke>\n",
    argument=('\n<｜DSML｜parameter name="', '"', ">"),
    argument_end="</｜DSML｜parameter>",
    attribute=lambda kind: f' string="{"true" if kind == "string" else "false"}"',
)
_FUNCTION = partial(
    TaggedCalls, call=("<function=", ">"), call_end="\n</function>", argument=("\n<parameter=", ">")
)
_NS = "]<]minimax[>["  # MiniMax-M3's mark before every element

GENERIC = Format(
    "generic",
    JsonCalls("<tool_call>", "</tool_call>", open="\n", close="\n", bare=True),
    spell_special=False,
)

FORMATS = (
    Format(
        "gpt-oss",
        gpt_oss.HarmonyCalls(),
        hints=("<|channel|>", "<|message|>"),
        channels=True,
        answer=gpt_oss.answer,
    ),
    Format("muse", muse.MuseCalls(), channels=True, answer=muse.answer),
    Format("gemma-4", GemmaCalls("<|tool_call>", "<tool_call|>", '<|"|>'), ("<|tool_call>",)),
    Format(
        "functiongemma",
        GemmaCalls("<start_function_call>", "<end_function_call>", "<escape>"),
        ("<start_function_call>",),
    ),
    Format(
        "deepseek-fenced",
        NamedCalls(
            section="<｜tool▁calls▁begin｜>",
            section_end="<｜tool▁calls▁end｜>",
            begin="<｜tool▁call▁begin｜>",
            heads=("function<｜tool▁sep｜>{name}",),
            middle="\n```json\n",
            fence="\n```",
            end="<｜tool▁call▁end｜>",
            gap="\n",
        ),
        ("<｜tool▁calls▁begin｜>", "```json"),
    ),
    Format(
        "deepseek",
        NamedCalls(
            section="<｜tool▁calls▁begin｜>",
            section_end="<｜tool▁calls▁end｜>",
            begin="<｜tool▁call▁begin｜>",
            middle="<｜tool▁sep｜>",
            end="<｜tool▁call▁end｜>",
        ),
        ("<｜tool▁calls▁begin｜>",),
    ),
    Format(
        "deepseek-dsml",
        _DSML(outer="<｜DSML｜function_calls>\n", outer_end="</｜DSML｜function_calls>"),
    ),
    Format(
        "deepseek-dsml-calls",
        _DSML(outer="<｜DSML｜tool_calls>\n", outer_end="</｜DSML｜tool_calls>"),
    ),
    Format(
        "kimi-k2",
        NamedCalls(
            section="<|tool_calls_section_begin|>",
            section_end="<|tool_calls_section_end|>",
            begin="<|tool_call_begin|>",
            heads=("functions.{name}:{index}", "{name}:{index}", "functions.{name}", "{name}"),
            middle="<|tool_call_argument_begin|>",
            end="<|tool_call_end|>",
        ),
        ("<|tool_calls_section_begin|>",),
    ),
    Format(
        "kimi-k3",
        TaggedCalls(
            outer="<|open|>tools<|sep|>",
            outer_end="<|close|>tools<|sep|>",
            each=False,
            call=('<|open|>call tool="', '"', "<|sep|>"),
            number=' index="{}"',
            call_end="<|close|>call<|sep|>",
            argument=('<|open|>argument key="', '"', "<|sep|>"),
            attribute=lambda kind: f' type="{"number" if kind == "integer" else kind}"',
            argument_end="<|close|>argument<|sep|>",
        ),
        frames=(
            "<|open|>response<|sep|>",
            "<|close|>response<|sep|>",
            "<|close|>message<|sep|>",
            "<|end_of_msg|>",
        ),
    ),
    Format(
        "solar",
        NamedCalls(
            section="<|tool_calls|>",
            section_end="<|calls|>",
            begin="<|tool_call:begin|>",
            heads=("{id}<|tool_call:name|>{name}",),
            middle="<|tool_call:args|>",
            end="<|tool_call:end|>",
        ),
        frames=("<|begin|>assistant", "<|content|>", "<|end|>"),
    ),
    Format("mistral", _MISTRAL, ("[TOOL_CALLS]",), new_id=short_id),
    Format(
        "mistral-args",
        NamedCalls(
            "[TOOL_CALLS]",
            "[ARGS]",
            heads=("{name}", "{name}[CALL_ID]{id}"),
            listed=_MISTRAL,
        ),
        ("[TOOL_CALLS]", "[ARGS]"),
        new_id=short_id,
    ),
    Format(
        "seed",
        _FUNCTION(
            outer="<seed:tool_call>\n",
            outer_end="\n</seed:tool_call>",
            argument_end="</parameter>",
        ),
        ("<seed:tool_call>",),
    ),
    Format(
        "minimax",
        _INVOKE(outer="<minimax:tool_call>\n", outer_end="</minimax:tool_call>"),
        ("<minimax:tool_call>",),
    ),
    Format(
        "minimax-m3",
        TaggedCalls(
            outer=f"{_NS}<tool_call>\n",
            outer_end=f"{_NS}</tool_call>",
            each=False,
            call=(f'{_NS}<invoke name="', '"', ">"),
            call_end=f"{_NS}</invoke>\n",
            argument=(f"{_NS}<", ">"),
            argument_end=f"{_NS}</{{}}>",
            nested=_NS,
        ),
    ),
    Format(
        "minimax-m1",
        JsonCalls("<tool_calls>", "</tool_calls>", open="\n", close="\n", between="\n"),
    ),
    Format(
        "apriel",
        JsonCalls("<tool_calls>", "</tool_calls>", open="[", close="]", between=", "),
        ("<tool_calls>[",),
    ),
    Format(
        "nemotron",
        JsonCalls("<TOOLCALL>", "</TOOLCALL>", open="[", close="]", between=", "),
        ("<TOOLCALL>",),
    ),
    Format(
        "granite",
        JsonCalls("<|tool_call|>", open="[", close="]", between=", "),
        ("<|tool_call|>",),
        frames=("<response>", "</response>"),
    ),
    Format(
        "cohere",
        JsonCalls(
            "<|START_ACTION|>",
            "<|END_ACTION|>",
            open="[\n    ",
            close="\n]",
            between=",\n    ",
            id="tool_call_id",
            name="tool_name",
            arguments="parameters",
        ),
        ("<|START_ACTION|>",),
        frames=_COHERE_FRAMES,
    ),
    Format(
        "command-r-plus",
        JsonCalls(
            "Action:",
            "```",
            open="\n```json\n[\n    ",
            close="\n]",
            between=",\n    ",
            name="tool_name",
            arguments="parameters",
        ),
        ("Action:\\n```json",),
    ),
    Format(
        "apertus",
        JsonCalls(
            "<|tools_prefix|>",
            "<|tools_suffix|>",
            open="[",
            close="]",
            between=", ",
            keyed=True,
        ),
        ("<|tools_prefix|>",),
    ),
    Format("gigachat", JsonCalls("<|function_call|>"), ("<|function_call|>",)),
    Format(
        "gigachat-roles",
        JsonCalls("<|message_sep|>\n\nfunction call<|role_sep|>\n"),
    ),
    Format("firefunction", _FIREFUNCTION, ("functools[",)),
    Format("functionary", NamedCalls("<function=", ">", end="</function>")),
    Format(
        "functionary-recipients",
        NamedCalls(
            ">>>",
            "\n",
            text_name="all",
        ),
        given=">>>",
    ),
    Format(
        "hy3",
        TaggedCalls(
            outer="<tool_calls:opensource>\n",
            outer_end="</tool_calls:opensource>",
            each=False,
            call=("<tool_call:opensource>", "<tool_sep:opensource>"),
            call_end="\n</tool_call:opensource>\n",
            argument=(
                "\n<arg_key:opensource>",
                "</arg_key:opensource>",
                "\n<arg_value:opensource>",
            ),
            argument_end="</arg_value:opensource>",
        ),
    ),
    Format("lfm2", PythonCalls("<|tool_call_start|>", "<|tool_call_end|>"), ("List of tools: ",)),
    Format("hermes", _HERMES, ("<tool_call>", "arguments"), spell_special=False),
    Format(
        "qwen3-coder",
        _FUNCTION(
            outer="<tool_call>\n",
            outer_end="\n</tool_call>",
            argument_end="\n</parameter>",
            padded=True,
        ),
        ("<tool_call>", "<function=", "<parameter="),
        spell_special=False,
    ),
    Format(
        "glm",
        _GLM(
            call_end="\n</tool_call>",
            argument=("\n<arg_key>", "</arg_key>", "\n<arg_value>"),
        ),
        ("<tool_call>", "<arg_key>"),
    ),
    Format("glm-tight", _GLM()),
    Format(
        "minicpm",
        TaggedCalls(
            call=('<function name="', '"', ">"),
            call_end="</function>",
            argument=('<param name="', '"', ">"),
            argument_end="</param>",
            cdata=True,
        ),
    ),
    Format(
        "pythonic",
        PythonCalls("<|python_start|>", "<|python_end|>", bare=True, marked=False),
        ("<|python_start|>",),
    ),
    Format(
        "llama3",
        JsonCalls("<|python_tag|>", between="; ", arguments="parameters", bare=True, marked=False),
        ("<|python_tag|>",),
    ),
    GENERIC,
)

"""Let a model call functions until it answers: the loop of an agent, with OpenAI's client.

    pip install openai
    python docs/examples/tool_loop.py "What is 17 times 23?"

The server holds calls to the schema of their parameters, so that arguments are always valid JSON
of the right shape. --force has the first answer be a call: small models seldom call by themselves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from openai import OpenAI

MOST_TURNS = 5  # so that a model which calls again and again comes to an end


def multiply(a: int, b: int) -> int:
    """What the model may call."""
    return a * b


FUNCTIONS: dict[str, Callable[..., Any]] = {"multiply": multiply}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "multiply",
            "description": "The product of two whole numbers",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "minimum": 0, "maximum": 9999},
                    "b": {"type": "integer", "minimum": 0, "maximum": 9999},
                },
                "required": ["a", "b"],
                "additionalProperties": False,
            },
        },
    }
]


def call(name: str, arguments: str) -> str:
    """Run one function. An error is told to the model, which may try again."""
    try:
        return json.dumps(FUNCTIONS[name](**json.loads(arguments)))
    except Exception as error:
        return json.dumps({"error": f"{type(error).__name__}: {error}"})


def main() -> None:
    """Ask, run what the model calls, give it the results, until it calls nothing more."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("question")
    options.add_argument("--url", default="http://127.0.0.1:8080/v1")
    options.add_argument("--api-key", default="none", help="as the server's --api-key")
    options.add_argument("--force", action="store_true", help="the first answer must be a call")
    given = options.parse_args()

    client = OpenAI(base_url=given.url, api_key=given.api_key)
    model = client.models.list().data[0].id
    messages: list[Any] = [{"role": "user", "content": given.question}]
    for turn in range(MOST_TURNS):
        answer = client.chat.completions.create(
            model=model,
            messages=messages,
            tools=TOOLS,
            tool_choice="required" if given.force and turn == 0 else "auto",
            max_tokens=200,
            temperature=0,
        )
        message = answer.choices[0].message
        if not message.tool_calls:
            print(f"answer: {message.content}")
            return
        messages.append(message.model_dump(exclude_none=True))
        for wanted in message.tool_calls:
            if wanted.type != "function":  # cLLM offers no other kind
                continue
            result = call(wanted.function.name, wanted.function.arguments)
            print(f"call: {wanted.function.name}({wanted.function.arguments}) = {result}")
            messages.append({"role": "tool", "tool_call_id": wanted.id, "content": result})
    print(f"no answer after {MOST_TURNS} turns")


if __name__ == "__main__":
    main()

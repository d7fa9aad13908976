"""Get an answer as an object: a pydantic model is the schema that the text is held to.

    pip install openai
    python docs/examples/structured_output.py "Invent an animal for a story."

Whatever the model, what it writes is valid; how sensible it is depends on the model.
"""

from __future__ import annotations

import argparse
from typing import Annotated, Literal

from openai import LengthFinishReasonError, OpenAI
from pydantic import BaseModel, Field

Name = Annotated[str, Field(min_length=1, max_length=20)]


class Animal(BaseModel):
    """Bounds keep a small model from writing without end."""

    name: Name
    kind: Literal["fox", "hedgehog", "owl", "panda"]
    age: int = Field(ge=1, le=99)
    friends: list[Name] = Field(min_length=1, max_length=3)


def main() -> None:
    """Ask for one animal and print it."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("question")
    options.add_argument("--url", default="http://127.0.0.1:8080/v1")
    options.add_argument("--api-key", default="none", help="as the server's --api-key")
    given = options.parse_args()

    client = OpenAI(base_url=given.url, api_key=given.api_key)
    try:
        answer = client.chat.completions.parse(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": given.question}],
            response_format=Animal,
            max_tokens=300,
            temperature=0,
        )
    except LengthFinishReasonError:
        raise SystemExit("the answer was cut off: raise max_tokens, or bound the fields") from None
    animal = answer.choices[0].message.parsed
    assert animal is not None, "only a refusal has none, and cLLM gives none"
    print(f"{animal.name}, a {animal.kind}, is {animal.age} years old.")
    print(f"Friends: {', '.join(animal.friends)}.")
    print(animal.model_dump_json())


if __name__ == "__main__":
    main()

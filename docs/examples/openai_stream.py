"""Stream a chat answer with OpenAI's client, and count its tokens.

pip install openai
python docs/examples/openai_stream.py "Tell me a story about a fox and a lantern."

For a server with --tls-self-signed: --url https://localhost:8080/v1 --cacert FILE. The server's
banner names the file.
"""

from __future__ import annotations

import argparse
import ssl

from openai import DefaultHttpxClient, OpenAI


def main() -> None:
    """Ask one question and print the answer as it comes."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("question")
    options.add_argument("--url", default="http://127.0.0.1:8080/v1")
    options.add_argument("--api-key", default="none", help="as the server's --api-key")
    options.add_argument("--cacert", help="trust the certificates in this file")
    given = options.parse_args()

    trusted = DefaultHttpxClient(verify=ssl.create_default_context(cafile=given.cacert))
    client = OpenAI(base_url=given.url, api_key=given.api_key, http_client=trusted)
    model = client.models.list().data[0].id
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": given.question}],
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=200,
        temperature=0,
    )
    with stream:  # leaving early closes the connection, and the server stops generating
        for chunk in stream:
            for choice in chunk.choices:  # none in the last chunk, which has the usage
                print(choice.delta.content or "", end="", flush=True)
            if chunk.usage:
                usage = chunk.usage
                print(f"\n[{model}: {usage.prompt_tokens} + {usage.completion_tokens} tokens]")


if __name__ == "__main__":
    main()

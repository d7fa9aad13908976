"""Writes the pictures in docs/page.md: each view of the page in both themes.

They are small: 64 colors, without what only a camera needs. Needs Chromium and Pillow.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from cllm.engine import Engine, SamplingParams
from cllm.models import demo_path
from scripts.bench.clients.browser import chromium
from tests.page.conftest import Site, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page as Tab

FOLDER = Path(__file__).resolve().parent.parent.parent / "docs" / "images"
SIZE: Any = {"width": 960, "height": 640}
COLORS = 64
ANSWER = """The mean of $n$ numbers is $\\bar{x} = \\frac{1}{n}\\sum_{i=1}^{n} x_i$. In Python:

```python
def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)
```

| numbers | mean |
|---|--:|
| 1, 2, 3 | 2.0 |
| 2, 4, 9 | 5.0 |
"""


def chat(tab: Tab, site: Site) -> None:
    """A stored answer with code, a table and a formula, then one of the built-in model."""
    messages = [
        {"id": "a", "role": "user", "content": "What is the mean of some numbers?"},
        {"id": "b", "parent": "a", "role": "assistant", "content": ANSWER, "state": "done"},
    ]
    tab.goto(site.url)
    tab.wait_for_selector("#prompt")
    for title, path in (("A story", messages[:1]), ("The mean of some numbers", messages)):
        with tab.expect_file_chooser() as chooser:
            tab.click("#import")
        chooser.value.set_files(exported(title, path))
        tab.wait_for_selector(f".conversations >> text={title}")
    tab.wait_for_selector("math")
    tab.fill("#prompt", "Tell me a story about a fox.")
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".message.assistant:nth-of-type(4) footer .regenerate")


def exported(title: str, messages: list[dict[str, str]]) -> Any:
    """A file of one conversation."""
    record = {"title": title, "leaf": messages[-1]["id"], "messages": messages}
    file = {"format": "cllm-conversations", "version": 1, "conversations": [record]}
    data = json.dumps(file).encode()
    return {"name": "a.json", "mimeType": "application/json", "buffer": data}


def inspector(tab: Tab, site: Site) -> None:
    """An answer with the alternatives of one token."""
    tab.goto(f"{site.url}#/inspector")
    tab.fill("#question", "Tell me a story about a fox.")
    tab.fill("#warmth", "0")
    tab.fill("#most", "48")
    tab.click("#run")
    tab.wait_for_selector("[aria-label=Answer][aria-busy=false]")
    tab.hover("[aria-label=Answer] .token >> nth=9")


def monitor(tab: Tab, site: Site) -> None:
    """Eight slots at work and two requests that wait."""
    params = SamplingParams(ignore_eos=True)
    for number in range(10):
        site.engine.submit(f"Story {number}:", params, tenant="fox")
    tab.goto(f"{site.url}#/monitor")
    tab.wait_for_selector(".minute svg")
    tab.wait_for_timeout(6000)  # so that the curves have a few seconds


def bench(tab: Tab, site: Site) -> None:
    """A run with one, two and four requests at a time."""
    tab.goto(f"{site.url}#/bench")
    tab.fill("#bench-requests", "8")
    tab.fill("#bench-concurrency", "1, 2, 4")
    tab.click("#bench-run")
    tab.wait_for_selector("[role=status] >> text=Done.", timeout=120_000)


VIEWS: tuple[Callable[[Tab, Site], None], ...] = (chat, inspector, monitor, bench)


def small(picture: bytes) -> bytes:
    """The same picture with few colors."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    packed = io.BytesIO()
    image.quantize(COLORS, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    return packed.getvalue()


def main() -> None:
    """Write the pictures; one line for each."""
    FOLDER.mkdir(exist_ok=True)
    with chromium() as browser:
        for show, theme in product(VIEWS, ("light", "dark")):
            # Each picture has an engine of its own: no request of another one is in it.
            with Engine.load(demo_path(), parallel=8) as engine, serving(engine) as site:
                site.fields = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}
                dark = theme == "dark"
                context = browser.new_context(
                    viewport=SIZE, color_scheme="dark" if dark else "light", locale="en-US"
                )
                tab = context.new_page()
                if show is inspector:
                    site.fields = {}
                show(tab, site)
                file = FOLDER / f"page_{show.__name__}_{theme}.png"
                file.write_bytes(small(tab.screenshot()))
                print(f"{file}: {file.stat().st_size} bytes", flush=True)
                context.close()


if __name__ == "__main__":
    main()

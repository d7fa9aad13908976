"""Chromium under Playwright: the system's, or the one in Playwright's cache.

As a program: exit status 0 if it starts, otherwise the reason.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
REMEDY = "install it with apt-get install chromium, or python -m playwright install chromium"
START = 60_000  # ms


class BrowserError(RuntimeError):
    """There is no browser, or it does not start; the text says why and what helps."""


def program(playwright: Playwright) -> str | None:
    """The path of the browser; None if there is none."""
    own = playwright.chromium.executable_path
    found = (path for name in PROGRAMS if (path := shutil.which(name)))
    return next(found, own if Path(own).is_file() else None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser for the duration of a with statement. Raises BrowserError."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise BrowserError(
            "the package playwright is not installed: pip install playwright"
        ) from None
    with sync_playwright() as playwright:
        path = program(playwright)
        if path is None:
            raise BrowserError(f"Chromium is not installed; {REMEDY}")
        try:
            # As root the sandbox of Chromium does not start.
            browser = playwright.chromium.launch(
                executable_path=path, args=["--no-sandbox"], timeout=START
            )
        except Error as error:
            reason = str(error).partition("\n")[0]
            raise BrowserError(f"{path} does not start ({reason}); {REMEDY}") from None
        try:
            yield browser
        finally:
            browser.close()


class Received:
    """What a tab receives from now on, as the browser's network layer counts it."""

    def __init__(self, tab: Page) -> None:
        self.responses = 0
        self.bytes = 0  # heads included, bodies as they were sent: compressed
        session = tab.context.new_cdp_session(tab)
        session.on("Network.loadingFinished", self._add)
        session.send("Network.enable")

    def _add(self, event: dict[str, float]) -> None:
        self.responses += 1
        self.bytes += int(event["encodedDataLength"])


def main() -> None:
    """Start it once."""
    try:
        with chromium() as browser:
            print(f"Chromium {browser.version}")
    except BrowserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

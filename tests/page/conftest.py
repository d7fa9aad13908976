"""One server with the built-in model and one browser for each file of tests of the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from cllm.api import ApiSettings, Service, create_handler
from cllm.engine import Engine
from cllm.http import HttpError, HttpRequest, Server, ServerConfig
from cllm.http.handler import Answer, Next
from cllm.models import demo_path
from cllm.page import UNCOUNTED, Page, needs_no_key
from scripts.bench.clients.browser import BrowserError, chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog
    from playwright.sync_api import Page as Tab

WAIT = 45_000  # ms that any single wait may take before it fails
NOTED = ("error", "warning")  # kinds of lines in the console that fail a test
TEST = 300  # seconds that a whole test may take


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that wait for a browser the time of a slow machine."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(TEST))


@dataclass
class Site:
    """A server with the page. `fields` are added to the bodies of chat completions."""

    server: Server
    engine: Engine
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/"


@contextmanager
def serving(
    engine: Engine, settings: ApiSettings | None = None, prefix: str = "", port: int = 0
) -> Iterator[Site]:
    """Joined as the program does it. prefix: removed from paths, as a proxy would."""
    service = Service(engine, settings)
    handler = create_handler(service, needs_no_key, UNCOUNTED)

    def remove_prefix(request: HttpRequest, next: Next) -> Answer:
        if not request.path.startswith(prefix + "/"):
            raise HttpError(404, "not below the prefix")
        request.path = request.path.removeprefix(prefix)
        return next(request)

    handler.add_middleware(remove_prefix)
    Page().attach(handler)
    site = Site(Server(handler, port=port, config=ServerConfig(grace=1.0)), engine)

    def add_fields(request: HttpRequest, next: Next) -> Answer:
        if site.fields and request.path == "/v1/chat/completions":
            request.body = json.dumps({**request.json(), **site.fields}).encode()
        return next(request)

    handler.add_middleware(add_fields)
    site.server.start()
    try:
        yield site
    finally:
        site.server.stop()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(demo_path(), parallel=4) as engine:
        yield engine


@pytest.fixture(scope="module")
def site(engine: Engine) -> Iterator[Site]:
    with serving(engine) as site:
        yield site


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        with chromium() as browser:
            yield browser
    except BrowserError as error:
        pytest.skip(str(error))


@dataclass
class Faults:
    """What the browser complained of."""

    seen: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()

    def note(self, text: str) -> None:
        if not any(part in text for part in self.expected):
            self.seen.append(text)


_REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) => console.error(
    `violation of ${event.effectiveDirective} by ${event.blockedURI}`));
"""


@pytest.fixture
def faults() -> Iterator[Faults]:
    """Errors of the console, exceptions and violations of the policy fail a test."""
    faults = Faults()
    yield faults
    assert faults.seen == []


@pytest.fixture
def new_tab(browser: Browser, faults: Faults) -> Iterator[Callable[..., Tab]]:
    """Make tabs, each of a new user, with options of playwright's new_context."""
    contexts = []

    def dismiss(dialog: Dialog) -> None:
        faults.note("a script opened a dialog")
        dialog.dismiss()

    def make(**options: Any) -> Tab:
        context = browser.new_context(**{"locale": "en-US", **options})
        contexts.append(context)
        context.set_default_timeout(WAIT)
        context.add_init_script(_REPORT_VIOLATIONS)
        tab = context.new_page()
        tab.on("console", lambda line: faults.note(line.text) if line.type in NOTED else None)
        tab.on("pageerror", lambda error: faults.note(str(error)))
        tab.on("dialog", dismiss)
        return tab

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def tab(site: Site, new_tab: Callable[..., Tab]) -> Iterator[Tab]:
    """A tab with the chat."""
    site.fields = {}
    tab = new_tab()
    tab.goto(site.url)
    tab.wait_for_selector("#prompt")
    yield tab
    site.fields = {}

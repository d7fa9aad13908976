"""The server's program: settings to engine, handler and server, and from loading to the stop."""

from __future__ import annotations

import logging
import resource
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from cllm.messages import Loaded, LoadFailed, Message, ReloadSignal, Stopped, StopSignal
from cllm.option_table import Settings, SettingsError
from cllm.wiring import (
    api_settings,
    check_model_files,
    engine_config,
    key_ring,
    server_config,
    tls_config,
)

if TYPE_CHECKING:
    from cllm.api.idling import Idling
    from cllm.engine import Engine
    from cllm.engine.unloaded import Unloaded

log = logging.getLogger("cllm.main")

OK = 0
BUG = 1
UNUSABLE = 2
"""Exit status when something the user gave cannot be used: one line on standard error."""


_OTHER_FILES = 256  # besides connections: listeners, pollers, the model's parts, libraries, logs
_LOOK_UP = 1.0  # seconds until a signal that another thread received is handled


def refuse(message: str) -> int:
    """Print in one line on standard error why the server cannot start."""
    print("cllm: " + " ".join(message.split()), file=sys.stderr, flush=True)
    return UNUSABLE


def allow_open_files(connections: int) -> None:
    """Raise this process's limit of open files, often 1024, so that it can hold the connections."""
    wanted = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    granted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
    except (OSError, ValueError):
        granted = soft
    if granted < wanted:
        log.warning(
            "the limit of %d open files is too low for --max-connections %d; connections beyond it "
            "wait (raise it with ulimit -n)",
            granted, connections,
        )  # fmt: skip


class Program:
    """One run: listen, load, serve, stop.

    The main thread only waits for messages, so that it can react to a signal at any time;
    loading and stopping, which take long, have their own threads.
    """

    def __init__(self, settings: Settings, mailbox: SimpleQueue[Message]) -> None:
        from cllm.api import Service, create_handler
        from cllm.api.idling import Idling
        from cllm.http import Server
        from cllm.page import UNCOUNTED, Page, needs_no_key

        check_model_files(settings)
        self.settings = settings
        self.mailbox = mailbox
        self.engine_config = engine_config(settings)
        self.service = Service(settings=api_settings(settings))
        if settings.page:
            self.handler = create_handler(self.service, needs_no_key, UNCOUNTED)
            Page().attach(self.handler)
        else:
            self.handler = create_handler(self.service)
        tls = tls_config(settings)
        config = server_config(settings)
        self.server = Server(self.handler, settings.host, settings.port, config, tls)
        self.service.server_stats = self.server.stats
        self.engine: Engine | None = None
        self.stopping = False
        self.idling: Idling | None = None
        if settings.sleep_idle_seconds:
            self.idling = self.service.idling = Idling(
                settings.sleep_idle_seconds, self._unload, self._load_again
            )

    def run(self) -> int:
        """Listen at once, load meanwhile, serve until a stop; returns the exit status."""
        from cllm.http import HttpServerError
        from cllm.startup import warn_of_strangers

        self._watch_hangups()
        allow_open_files(self.settings.max_connections)
        try:
            self.server.start()
        except HttpServerError as error:
            return refuse(str(error))
        if not self.service.tenants.keyed:
            warn_of_strangers(self.settings.host)
        log.info("loading %s", self.settings.model or "the built-in model")
        _start_thread("cllm-loader", self._load)
        while True:
            message = self._next_message()
            if isinstance(message, Loaded):
                self._serve(message.engine)
            elif isinstance(message, LoadFailed):
                if self.stopping:
                    continue  # the loaded engine no longer matters
                self.server.stop(0)
                return self._explain(message.error)
            elif isinstance(message, ReloadSignal):
                self._reload()
            elif isinstance(message, StopSignal):
                self._begin_stop(message.number)
            else:
                return self._end(message.error)

    def _watch_hangups(self) -> None:
        """SIGHUP, which has waited since the process began: read files again if there are any.

        Otherwise it ends the process, as when its terminal is closed; under `nohup` it does not.
        """
        if self.server.tls is not None or self.settings.api_keys_file is not None:
            signal.signal(signal.SIGHUP, lambda *_: self.mailbox.put(ReloadSignal()))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGHUP,))

    def _next_message(self) -> Message:
        """The next message. Looks up now and then, as the system may give a signal to any thread.

        It interrupts no other one; Python runs the handler on the main thread, once that goes on.
        """
        while True:
            with suppress(Empty):
                return self.mailbox.get(timeout=_LOOK_UP)

    @property
    def url(self) -> str:
        """The server's URL for programs on this machine."""
        host = self.settings.host.split(",")[0].strip()
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"{self.server.scheme}://{f'[{host}]' if ':' in host else host}:{self.server.port}"

    @property
    def trust(self) -> str:
        """The file that a client must trust; "" if its own authorities do."""
        tls = self.server.tls
        return tls.certificates[0][0] if tls is not None and self.settings.tls_self_signed else ""

    def _load(self) -> None:
        """On the loader's thread: read the model, send the engine or the error."""
        try:
            from cllm.engine import Engine
            from cllm.startup import showing_progress

            with showing_progress(self.settings, self.service.loading_progress) as (read, tuned):
                engine = Engine.load(
                    self._model(), self.engine_config, progress=read, tuning_progress=tuned
                )
            self.mailbox.put(Loaded(engine))
        except BaseException as error:
            self.mailbox.put(LoadFailed(error))

    def _model(self) -> str:
        from cllm.models import demo_path

        return self.settings.model or str(demo_path())

    def _unload(self) -> Unloaded:
        """On the thread of `idling`."""
        known = self.service.rest()
        try:
            self._close_engine()
        except Exception:  # no request uses it any more, so another one can follow
            log.exception("the unloaded model's memory may not be free")
        return known

    def _close_engine(self) -> None:
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.close()

    def _load_again(self, before: Unloaded) -> None:
        """On the same thread."""
        from cllm.engine import Engine
        from cllm.startup import calm_collector

        self.engine = Engine.load(self._model(), self.engine_config, before=before)
        calm_collector()
        self.service.ready(self.engine)

    def _reload(self) -> None:
        """Read the files of certificates and keys again; what cannot be used stays as it is."""
        for what, reload in (
            ("certificates", self.server.reload_certificates),
            ("keys", self._reload_keys),
        ):
            try:
                reload()
            except Exception:  # whatever is wrong with them, the server goes on
                log.exception("SIGHUP: the %s could not be read again", what)

    def _reload_keys(self) -> None:
        try:
            ring = key_ring(self.settings)
        except SettingsError as error:
            log.error("SIGHUP: %s; the keys stay as they are", error)
            return
        if ring is not None:
            self.service.renew_keys(ring)
            log.info("SIGHUP: %s has %d keys", self.settings.api_keys_file, len(ring.keys))

    def _serve(self, engine: Engine) -> None:
        from cllm.startup import announce, calm_collector

        self.engine = engine
        calm_collector()
        if not self.stopping:
            self.service.ready(engine)
            if self.idling is not None:
                self.idling.start()
            announce(self.settings, self.url, engine.info(), self.handler.routes(), self.trust)

    def _explain(self, error: BaseException) -> int:
        """Report an error that the user can fix in one line, a bug with a traceback in the log."""
        from cllm.engine import EngineError

        if isinstance(error, MemoryError):
            message = "out of memory; use a smaller model, or lower --ctx-size or --parallel"
        elif isinstance(error, (EngineError, ValueError, FileNotFoundError)):
            message = str(error)
        else:
            log.error("unexpected error while loading the model", exc_info=error)
            return BUG
        if self.settings.log_file is not None:
            log.error("%s", message)
        return refuse(message)

    def _begin_stop(self, number: int) -> None:
        self.stopping = True
        name = signal.Signals(number).name
        grace = self.settings.grace
        # In this order: the thread of `idling` sets the engine before it ends the rest.
        rests = self.service.resting is not None
        engine = self.engine  # which that thread may close meanwhile
        if engine is None and not rests:
            log.info("%s: stopping while the model is loading", name)
            grace = 0.0
        elif engine is None:
            log.info(
                "%s: stopping while the model is unloaded; requests that wait for it have %g s to "
                "finish; a second signal ends the process now",
                name, grace,
            )  # fmt: skip
        else:
            stats = engine.stats()
            running = stats.slots_busy + stats.queue_depth
            finish = f"generations in flight ({running}) have {grace:g} s to finish; "
            log.info(
                "%s: stopping; %sa second signal ends the process now",
                name, finish if running else "",
            )  # fmt: skip
        _start_thread("cllm-stopper", lambda: self._stop(grace))

    def _stop(self, grace: float) -> None:
        try:
            self.server.stop(grace)
            if self.idling is not None:
                self.idling.stop()
            self._close_engine()
            self.mailbox.put(Stopped())
        except BaseException as error:
            self.mailbox.put(Stopped(error))

    def _end(self, error: BaseException | None) -> int:
        if error is not None:
            log.error("unexpected error while stopping", exc_info=error)
            return BUG
        log.info("stopped")
        return OK


def _start_thread(name: str, target: Callable[[], None]) -> None:
    threading.Thread(target=target, name=name, daemon=True).start()

"""Each package's configuration, made from the settings."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cllm.key_file import KeyFileError, read_key_file
from cllm.option_kinds import is_visible_ascii
from cllm.option_table import Settings, SettingsError

if TYPE_CHECKING:
    from cllm.api import ApiSettings
    from cllm.api.tenants import KeyRing
    from cllm.engine.config import EngineConfig
    from cllm.http.certificates import TlsConfig
    from cllm.http.limits import ServerConfig


def check_model_files(settings: Settings) -> None:
    """Raise SettingsError if a model file cannot be read; its content is checked later."""
    from cllm.engine.overrides import LoraFile

    draft = settings.model_draft if settings.draft_max else None
    files = [("--model", settings.model), ("--model-draft", draft)]
    with _as_settings_error():
        files += [("--lora", str(LoraFile.parse(text).path)) for text in settings.lora]
    for flag, name in files:
        if name is None:
            continue
        try:
            is_folder = stat.S_ISDIR(os.stat(name).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            raise SettingsError(
                f"{flag}: there is no file {name}; check the path, or download the model first"
            ) from None
        except OSError as error:
            raise SettingsError(f"{flag}: {name} cannot be read: {error.strerror}") from None
        if is_folder:
            raise SettingsError(f"{flag}: {name} is a directory; give the .gguf file in it")
        if not os.access(name, os.R_OK):
            raise SettingsError(f"{flag}: {name} cannot be read; check its permissions")


def server_config(settings: Settings) -> ServerConfig:
    """The HTTP server's configuration; raises SettingsError for a contradiction."""
    from cllm.http.limits import Limits, ServerConfig

    with _as_settings_error():
        limits = Limits(
            request_line=settings.max_request_line,
            head=settings.max_head,
            fields=settings.max_fields,
            body=settings.max_body,
        )
        return ServerConfig(
            limits=limits,
            high_water=settings.stream_buffer,
            **_fields_shared_with(ServerConfig, settings),
        )


def tls_config(settings: Settings) -> TlsConfig | None:
    """The server's certificates, or None for plain HTTP; raises SettingsError."""
    from cllm.http.certificates import TlsConfig

    certificates, keys = settings.tls_cert, settings.tls_key
    if settings.tls_self_signed:
        from cllm.self_signed import self_signed

        if certificates or keys:
            raise SettingsError("--tls-self-signed and --tls-cert: give one of them")
        made = self_signed(settings.host)
        certificates, keys = (made[0],), (made[1],)
    if len(certificates) != len(keys):
        raise SettingsError(
            f"--tls-cert names {len(certificates)} files and --tls-key {len(keys)}; give one key "
            "for each certificate, in the same order"
        )
    if not certificates:
        if settings.tls_client_ca is not None:
            raise SettingsError("--tls-client-ca needs --tls-cert and --tls-key")
        return None
    return TlsConfig(
        tuple(zip(certificates, keys, strict=True)),
        settings.tls_client_ca,
        settings.tls_client_auth,
    )


def engine_config(settings: Settings) -> EngineConfig:
    """The engine's configuration; raises SettingsError for a contradiction."""
    from cllm.engine.config import EngineConfig

    with _as_settings_error():
        return EngineConfig(**_fields_shared_with(EngineConfig, _with_ctx_size(settings)))


def _with_ctx_size(settings: Settings) -> Settings:
    """The settings with --ctx-size in place of --ctx-total."""
    total = settings.ctx_total
    if total is None:
        return settings
    if settings.ctx_size is not None:
        raise SettingsError("--ctx-size and --ctx-total: give one of them")
    if settings.kv_unified:
        return replace(settings, ctx_size=total, kv_cells=settings.kv_cells or total)
    return replace(settings, ctx_size=max(2, total // settings.parallel))


def api_settings(settings: Settings) -> ApiSettings:
    """The API's settings; raises SettingsError if a template cannot be read."""
    from cllm.api.llama_fields import sampling_defaults
    from cllm.api.service import ApiSettings

    template, file = settings.chat_template, settings.chat_template_file
    if file is not None:
        if template is not None:
            raise SettingsError("--chat-template and --chat-template-file: give one of them")
        template = _read_file("--chat-template-file", file)
    elif template is not None:
        template = _named_template(template)
    with _as_settings_error():
        return ApiSettings(
            request_timeout=settings.request_timeout,
            body_memory=settings.body_memory,
            response_memory=settings.response_memory,
            expose_model_path=settings.expose_model_path,
            chat_template=template,
            api_keys=_api_keys(settings),
            key_ring=key_ring(settings),
            share_prefixes=None if settings.share_prefixes == "auto" else settings.share_prefixes,
            alias=tuple(sorted(set(settings.alias))),
            tags=tuple(sorted(set(settings.tags))),
            sampling=sampling_defaults(settings.sampling or {}),
            template_kwargs=settings.chat_template_kwargs or {},
            reasoning={"on": True, "off": False}.get(settings.reasoning),
            reasoning_budget=settings.reasoning_budget,
            shows_thoughts=settings.reasoning_format == "none",
            metrics=settings.metrics,
            slots=settings.slots,
            page=settings.page,
            verbose=settings.log_level == "debug",
        )


def _named_template(template: str) -> str:
    """A Jinja template as it is, and for a name one that uses the built-in template."""
    if not re.fullmatch(r"[\w.-]+", template):
        return template
    from cllm.engine.llama.builtin_templates import names

    if template not in names():
        raise SettingsError(
            f'--chat-template: there is no built-in template "{template}"; '
            f"expected Jinja or one of {', '.join(names())}"
        )
    return f"{{{{ builtin_template({template!r}) }}}}"


def _api_keys(settings: Settings) -> tuple[str, ...]:
    """The keys given and those in the file; lines starting with "#" are comments."""
    keys, file = list(settings.api_key or ()), settings.api_key_file
    if file is None:
        return tuple(keys)
    lines = [line.strip() for line in _read_file("--api-key-file", file).splitlines()]
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            if not is_visible_ascii(line):
                raise SettingsError(
                    f"--api-key-file: {file} line {number}: expected a key of visible ASCII "
                    "characters"
                )
            keys.append(line)
    if not keys:
        raise SettingsError(f"--api-key-file: {file} holds no key; put one on a line")
    return tuple(keys)


def key_ring(settings: Settings) -> KeyRing | None:
    """The content of --api-keys-file, if there is one; raises SettingsError."""
    if settings.api_keys_file is None:
        return None
    try:
        return read_key_file(settings.api_keys_file)
    except KeyFileError as error:
        raise SettingsError(f"--api-keys-file: {error}") from None


def _read_file(source: str, file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{source}: cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{source}: {file} is not UTF-8 text") from None


def _fields_shared_with(target: type[Any], settings: Settings) -> dict[str, Any]:
    own = {item.name for item in fields(settings)}
    return {f.name: getattr(settings, f.name) for f in fields(target) if f.name in own}


@contextmanager
def _as_settings_error() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise SettingsError(re.sub(_FIELD, _as_flag, str(error))) from None


# A field in a package's error: "ServerConfig.workers", "flash_attn", "parallel=4".
_FIELD = re.compile(r"\b(?:ServerConfig\.)(\w+)|\b([a-z]+(?:_[a-z]+)+)\b|\b([a-z]+)(?==)")


def _as_flag(found: re.Match[str]) -> str:
    """The option's name for the user: --workers, --flash-attn, --parallel=4."""
    name = next(group for group in found.groups() if group)
    known = name in Settings.__dataclass_fields__
    return f"--{name.replace('_', '-')}" if known else found[0]

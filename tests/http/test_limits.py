"""Limits and settings refuse impossible values, by name and with the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from cllm.http.limits import Limits, ServerConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("request_line", 0),
        ("head", -1),
        ("fields", 0),
        ("body", -1),
        ("chunk_line", 8),
        ("body", 1.5),
        ("body", True),
        ("body", "16"),
    ],
)
def test_a_limit_that_cannot_be_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"Limits\.{name} is .*; give a whole number"):
        Limits(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", 0),
        ("max_connections", 0),
        ("high_water", 0),
        ("head_timeout", 0),
        ("body_timeout", -1.0),
        ("write_timeout", float("nan")),
        ("keep_alive_timeout", "75"),
        ("grace", -0.1),
        ("body_memory", (16 << 20) - 1),
        ("min_rate", -1),
        ("max_connections_per_client", -1),
        ("max_connections_per_client", True),
        ("limits", None),
        ("cors_origins", "*"),
        ("cors_origins", ("page.example",)),
        ("cors_origins", ("https://page.example/path",)),
        ("server_name", "two words"),
        ("server_name", "a\r\nb"),
    ],
)
def test_a_setting_that_cannot_be_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"ServerConfig\.{name} .*; give "):
        ServerConfig(**{name: value})


def test_whole_seconds_and_odd_origins_are_fine() -> None:
    config = ServerConfig(
        head_timeout=1,
        grace=0,
        cors_origins=("*", "null", "http://localhost:3000", "app://x"),
        server_name="",
    )
    assert config.limits == Limits()

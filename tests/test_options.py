"""Settings: four sources, one precedence, and complaints that name source, value and remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cllm.engine.config import CACHE_TYPES, EngineConfig
from cllm.engine.layout.layout import Layout
from cllm.http.limits import ServerConfig
from cllm.option_sources import options_of
from cllm.option_table import Settings, SettingsError, load_settings, make_parser
from cllm.wiring import api_settings, engine_config, server_config

DOCUMENT = Path(__file__).parent.parent / "docs" / "configuration.md"


def load(*argv: str, **environ: str) -> Settings:
    return load_settings(argv, environ)


def complaint(*argv: str, **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(*argv, **environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    return tmp_path / "cllm.yaml"


# Defaults


def test_defaults_are_the_address_and_the_sequences_that_the_manual_names() -> None:
    settings = load()
    assert (settings.host, settings.port, settings.parallel) == ("127.0.0.1", 8080, 8)
    assert settings.model is None


def test_defaults_are_the_rooms_own_defaults() -> None:
    assert server_config(load()) == ServerConfig()
    assert engine_config(load()) == EngineConfig()


def test_every_field_of_the_engines_configuration_can_be_set() -> None:
    own = {item.name for item in options_of(Settings)}
    assert set(EngineConfig.__dataclass_fields__) <= own


def test_cache_types_are_the_engines() -> None:
    for name in ("cache_type_k", "cache_type_v"):
        (item,) = (o for o in options_of(Settings) if o.name == name)
        assert item.kind.choices == CACHE_TYPES


def test_defaults_pass_their_own_bounds() -> None:
    for item in options_of(Settings):
        if item.default is not None:
            assert item.kind.parse(item.kind.show(item.default)) == item.default


# Precedence


def test_command_line_over_environment_over_file_over_default(yaml_file: Path) -> None:
    yaml_file.write_text("port: 1\nparallel: 2\nworkers: 3\n")
    settings = load("--config", str(yaml_file), "--port", "11", CLLM_PORT="12", CLLM_PARALLEL="13")
    assert (settings.port, settings.parallel, settings.workers) == (11, 13, 3)
    assert settings.batch_size == 2048


def test_the_environment_can_name_the_file(yaml_file: Path) -> None:
    yaml_file.write_text("port: 5\n")
    assert load(CLLM_CONFIG=str(yaml_file)).port == 5


def test_a_switch_that_the_environment_turned_on_can_be_turned_off() -> None:
    assert load(CLLM_MLOCK="1").mlock
    assert not load("--no-mlock", CLLM_MLOCK="1").mlock


def test_auto_takes_back_what_a_weaker_source_set() -> None:
    assert load("--ctx-size", "auto", CLLM_CTX_SIZE="512").ctx_size is None


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load(CLLM_PORT="", CLLM_MODEL="").port == 8080


def test_other_programs_variables_are_left_alone() -> None:
    assert load(PORT="x", CLLMX="y", HOME="/root").port == 8080


# Values


@pytest.mark.parametrize(
    ("text", "expected"),
    [("65536", 65536), ("64K", 65536), ("64k", 65536), ("64KiB", 65536), ("16M", 16 << 20),
     ("16mb", 16 << 20), ("2G", 2 << 30), ("1.5K", 1536), ("0", 0)],
)  # fmt: skip
def test_sizes_take_units(text: str, expected: int) -> None:
    assert load("--max-body", text).max_body == expected
    assert load(CLLM_MAX_BODY=text).max_body == expected


@pytest.mark.parametrize("word", ["on", "true", "YES", "1"])
def test_switches_take_the_usual_words(word: str) -> None:
    assert load(CLLM_LOG_JSON=word).log_json
    assert load(CLLM_NO_MMAP=word).mmap is False


@pytest.mark.parametrize(
    ("word", "meant"), [("auto", None), ("on", True), ("off", False), ("0", False)]
)
def test_a_switch_may_be_left_to_cllm(word: str, meant: bool | None) -> None:
    assert load().kv_unified is None
    assert load(CLLM_KV_UNIFIED=word).kv_unified is meant
    assert load(CLLM_NO_KV_UNIFIED="auto").kv_unified is None
    assert load("--no-kv-unified", CLLM_KV_UNIFIED=word).kv_unified is False
    assert "expected on, off or auto" in complaint(CLLM_KV_UNIFIED="maybe")


def test_a_small_batch_needs_no_second_option() -> None:
    config = engine_config(load("--batch-size", "64"))
    assert Layout.of(config).ubatch_size == 64
    with pytest.raises(SettingsError, match="--ubatch-size=128 is more than --batch-size=64"):
        engine_config(load("--batch-size", "64", "--ubatch-size", "128"))


def test_yaml_values_have_their_own_types(yaml_file: Path) -> None:
    yaml_file.write_text(
        "model: ~/m.gguf\nlog-json: true\nno_mmap: true\nmax_body: 1M\nmax-head: 4096\n"
        "head-timeout: 2.5\nflash-attn: off\nctx-size: null\n"
        "cors-origins: [https://a.example, https://b.example]\n"
    )
    settings = load("--config", str(yaml_file))
    assert settings.model == str(Path.home() / "m.gguf")
    assert settings.log_json and not settings.mmap
    assert (settings.max_body, settings.max_head, settings.head_timeout) == (1 << 20, 4096, 2.5)
    assert (settings.flash_attn, settings.ctx_size) == ("off", None)
    assert settings.cors_origins == ("https://a.example", "https://b.example")


def test_an_empty_file_sets_nothing(yaml_file: Path) -> None:
    yaml_file.write_text("# port: 1\n")
    assert load("--config", str(yaml_file)).port == 8080


def test_lists_are_separated_by_commas_on_the_command_line() -> None:
    assert load("--cors-origins", "https://a.example, *").cors_origins == ("https://a.example", "*")


def test_limits_reach_the_http_room() -> None:
    config = server_config(
        load("--max-body", "1K", "--stream-buffer", "2K", "--grace", "0", "--no-access-log")
    )
    assert (config.limits.body, config.high_water, config.grace) == (1024, 2048, 0.0)
    assert config.access_log is False
    config = server_config(load("--max-connections-per-client", "7", "--min-rate", "1K"))
    assert (config.max_connections_per_client, config.min_rate) == (7, 1024)
    assert server_config(load()).max_connections_per_client is None


# Complaints


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--port", "x"], '--port: got "x", expected a whole number from 0 to 65535'),
        (["--port", "65536"], '--port: got "65536", expected a whole number from 0 to 65535'),
        (["--port"], "--port: expected one argument"),
        (["--prot", "1"], 'unknown option "--prot"; did you mean "--port"?'),
        (["--cache-type-k", "q80"], 'did you mean "q8_0"?'),
        (["--flash-attn", "maybe"], "expected one of auto, on, off"),
        (["--max-body", "3X"], "expected a size like 65536, 64K, 16M or 2G"),
        (["--ctx-size", "0"], "or auto"),
        (["--head-timeout", "nan"], "expected a number of seconds"),
        (["--head-timeout", "inf"], "expected a number of seconds"),
        (["--model", ""], "--model: got"),
        (["model.gguf"], "--model model.gguf"),
        (["--", "a=b.gguf"], "--model a=b.gguf"),
        (["--max-head", "17"], "--max-head: got"),
        (["--mode", "x"], 'unknown option "--mode"; did you mean "--model"?'),
        (["--lora", "a\nb"], "without line breaks"),
        (["--override-kv", "a=int:1\nb=int:2"], "without line breaks"),
        (["--override-tensor", "a=CPU\nb=CPU"], "without line breaks"),
    ],
)
def test_a_bad_argument_is_named_with_what_was_expected(argv: list[str], said: str) -> None:
    assert said in complaint(*argv)


# Python does not read the first, does not spell the second, and makes infinity of the third.
HUGE = {"decimal": 5000 * "9", "hexadecimal": f"0x{5000 * 'f'}", "exponent": "1.0e+400"}
NUMBERS = [
    item.name
    for item in options_of(Settings)
    if item.kind.metavar in ("N", "N,…", "SECONDS", "BYTES")
]


@pytest.mark.parametrize("value", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("name", NUMBERS)
def test_a_huge_number_is_refused_in_one_short_line(name: str, value: str, yaml_file: Path) -> None:
    yaml_file.write_text(f"{name}: {value}")
    flag = "--" + name.replace("_", "-")
    for source, said in (
        (flag, complaint(flag, value)),
        (f"CLLM_{name.upper()}", complaint(**{f"CLLM_{name.upper()}": value})),
        (f"{yaml_file}: {name}", complaint("--config", str(yaml_file))),
    ):
        assert said.startswith(f"{source}: got "), said
        assert "expected " in said and len(said) < len(source) + 200


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("mlock", "on or off"), ("model", "text"), ("alias", "a list of words"),
        ("sampling", "NAME=VALUE"), ("flash_attn", "one of"), ("tls_cert", "a list"),
    ],
)  # fmt: skip
def test_a_huge_number_where_none_is_expected(value: str, kind: str, yaml_file: Path) -> None:
    yaml_file.write_text(f"{value}: {HUGE['hexadecimal']}")
    said = complaint("--config", str(yaml_file))
    assert f"expected {kind}" in said and len(said) < len(str(yaml_file)) + 300


@pytest.mark.parametrize(
    "value", ["!!bool x", "!!timestamp x", "!!int ''", "!!float x", "2020-99-99"]
)
def test_a_value_that_is_not_what_it_says_is_text(value: str, yaml_file: Path) -> None:
    yaml_file.write_text(f"port: {value}")
    assert "port: got " in complaint("--config", str(yaml_file))
    yaml_file.write_text(f"? {value}\n: 1")
    assert "there is no such setting" in complaint("--config", str(yaml_file))


def test_what_is_nested_too_deeply_is_refused(yaml_file: Path) -> None:
    yaml_file.write_text("port: " + 20_000 * "[")
    assert f"{yaml_file} is nested too deeply" in complaint("--config", str(yaml_file))
    said = complaint("--chat-template-kwargs", 100_000 * "[")
    assert "expected a JSON object" in said and len(said) < 300


def test_a_bad_variable_is_named() -> None:
    assert complaint(CLLM_PORT="x") == (
        'CLLM_PORT: got "x", expected a whole number from 0 to 65535'
    )


def test_an_unknown_variable_is_named_with_the_nearest() -> None:
    assert complaint(CLLM_PARALEL="2") == (
        'CLLM_PARALEL: there is no such setting; did you mean "CLLM_PARALLEL"?'
    )


def test_a_bad_value_counts_even_where_a_stronger_source_overrides_it() -> None:
    assert "CLLM_PORT" in complaint("--port", "1", CLLM_PORT="x")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("prot: 1", 'cllm.yaml: prot: there is no such setting; did you mean "port"?'),
        ("max_bdoy: 1", 'did you mean "max-body"?'),
        ("port: x", 'cllm.yaml: port: got "x", expected a whole number'),
        ("port: true", "expected a whole number"),
        ("port: [1]", "expected a whole number"),
        ("mlock: maybe", "expected on or off"),
        ("max-body: 1\nmax_body: 2", "max-body is given twice"),
        ("port: 1\nhost: x\nport: 2", "port is given twice"),
        ("mmap: true\nno-mmap: true", "mmap is given twice"),
        ("config: other.yaml", "config: there is no such setting"),
        ("- port", 'must hold "name: value" lines'),
        ("a: b: c", "line 1 is not valid YAML"),
        ("cors-origins: [1]", "expected a list of words"),
        ('model: "a\\0b"', "expected a file name"),
        ('tls-cert: ["a\\0b"]', "expected a file name"),
        ('lora: ["a\\0b"]', "expected a file name"),
    ],
)
def test_a_bad_file_is_named_with_its_key(yaml_file: Path, content: str, said: str) -> None:
    yaml_file.write_text(content)
    message = complaint("--config", str(yaml_file))
    assert said in message
    assert str(yaml_file) in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "No such file" in complaint("--config", str(tmp_path / "no.yaml"))
    assert "Is a directory" in complaint("--config", str(tmp_path))


@pytest.mark.parametrize("option", ["slot-save-path", "cache-disk"])
def test_a_directory_that_the_system_refuses_is_named(option: str) -> None:
    with pytest.raises(SettingsError, match=rf"^--{option}=x.* \(File name too long\); name a "):
        engine_config(load(f"--{option}", "x" * 300))


def test_contradictions_that_only_a_room_can_see_are_settings_errors() -> None:
    with pytest.raises(SettingsError, match=r"^--batch-size=4 .*; raise --batch-size or lower"):
        engine_config(load("--batch-size", "4"))
    with pytest.raises(SettingsError, match=r"^--cors-origins has 'foo'; .*scheme://host"):
        server_config(load("--cors-origins", "foo"))
    with pytest.raises(SettingsError, match=r"^--body-memory is .* --max-body=.*; give at least"):
        server_config(load("--max-body", "1G"))


def test_the_least_that_an_option_takes_is_taken_by_the_http_room() -> None:
    least = server_config(
        load(
            "--max-head", "18", "--max-request-line", "14", "--max-fields", "1", "--max-body", "0",
            "--stream-buffer", "1K", "--head-timeout", "0.05", "--body-timeout", "0.05",
            "--keep-alive-timeout", "0.05", "--write-timeout", "0.05", "--grace", "0",
            "--workers", "1", "--max-connections", "1", "--backlog", "1", "--body-memory", "0",
            "--max-connections-per-client", "0", "--min-rate", "0",
        )
    )  # fmt: skip
    assert (least.limits.head, least.limits.request_line, least.grace) == (18, 14, 0)


# Keys


def keys(*argv: str, **environ: str) -> tuple[str, ...]:
    return api_settings(load(*argv, **environ)).api_keys


def test_keys_come_from_every_place_and_from_a_file_with_comments(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\n\n  sk-3 \nsk-4\n")
    assert keys() == ()
    assert keys("--api-key", "sk-1,sk-2", "--api-key", "sk-3") == ("sk-1", "sk-2", "sk-3")
    assert keys(CLLM_API_KEY="sk-1") == ("sk-1",)
    assert keys("--api-key-file", str(file)) == ("sk-3", "sk-4")
    assert keys("--api-key", "sk-1", CLLM_API_KEY_FILE=str(file)) == ("sk-1", "sk-3", "sk-4")


def test_whoever_asks_for_keys_never_gets_an_open_server(tmp_path: Path) -> None:
    assert "expected keys" in complaint("--api-key", "")
    assert "expected keys" in complaint("--api-key", " , ")
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(SettingsError, match="holds no key"):
        keys("--api-key-file", str(tmp_path / "keys"))
    with pytest.raises(SettingsError, match=r"^--api-key-file: cannot read .*: No such file"):
        keys("--api-key-file", str(tmp_path / "no"))


def test_a_key_is_not_repeated_in_complaints_nor_shown_with_the_settings(
    yaml_file: Path, tmp_path: Path
) -> None:
    yaml_file.write_text("api-key: [clé]")
    said = complaint("--config", str(yaml_file))
    assert "visible ASCII" in said
    assert "clé" not in said
    (tmp_path / "keys").write_text("sk 1")
    with pytest.raises(SettingsError, match=r"keys line 1: expected a key of visible ASCII") as bad:
        keys("--api-key-file", str(tmp_path / "keys"))
    assert "sk 1" not in str(bad.value)
    settings = load("--api-key", "sk-1")
    assert "sk-1" not in f"{settings} {api_settings(settings)}"


# What is written about them


def test_help_shows_every_option_with_its_default_and_variable() -> None:
    text = " ".join(make_parser().format_help().split())
    for item in options_of(Settings):
        default = f"={item.shown_default}" if item.shown_default else ""
        assert f"[{item.variable}{default}]" in text


def test_help_fits_a_screen_of_100_columns() -> None:
    assert max(len(line) for line in make_parser().format_help().splitlines()) <= 100


def test_the_document_has_a_row_for_every_option_with_its_default() -> None:
    rows = re.findall(r"^\| `([^`]+)`[^|]*\| ([^|]*) \|", DOCUMENT.read_text(), re.MULTILINE)
    documented = {name.split()[0].replace("--[no-]", "--"): default for name, default in rows}
    expected = {
        item.flag: f"`{item.shown_default}`" if item.shown_default else ""
        for item in options_of(Settings)
    }
    assert {name: documented.get(name, "no row").strip() for name in expected} == expected

"""Where schemas that programs write can be read: installed Python packages, npm packages."""

from __future__ import annotations

import decimal
import enum
import importlib
import inspect
import ipaddress
import json
import pathlib
import pkgutil
import subprocess
import typing
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from importlib import resources
from typing import Annotated, Any, Literal

import pydantic

Schemas = Mapping[str, Any]


class Colour(enum.Enum):
    """A choice."""

    RED = "red"
    GREEN = "green"


class Cat(pydantic.BaseModel):
    """One of a union."""

    kind: Literal["cat"]
    lives: int = pydantic.Field(ge=0, le=9)


class Dog(pydantic.BaseModel):
    """The other."""

    kind: Literal["dog"]
    name: str


class Node(pydantic.BaseModel):
    """Names itself."""

    value: int
    next: Node | None = None


TYPES: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "None": None,
    "list": list[int],
    "tuple": tuple[int, str],
    "dict": dict[str, float],
    "dict of Enum": dict[Colour, bool],
    "dict of Literal": dict[Literal["a", "b"], int],
    "dict of constrained": dict[Annotated[str, pydantic.Field(min_length=2, max_length=4)], int],
    "Any": typing.Any,
    "Enum": Colour,
    "Literal": Literal["a", 1, None],
    "optional": int | None,
    "union": int | str,
    "discriminated": Annotated[Cat | Dog, pydantic.Field(discriminator="kind")],
    "recursive": Node,
    "date": date,
    "datetime": datetime,
    "time": time,
    "timedelta": timedelta,
    "Decimal": decimal.Decimal,
    "UUID": uuid.UUID,
    "UUID4": pydantic.UUID4,
    "UUID7": pydantic.UUID7,
    "Path": pathlib.Path,
    "FilePath": pydantic.FilePath,
    "SecretStr": pydantic.SecretStr,
    "bytes": bytes,
    "Base64Bytes": pydantic.Base64Bytes,
    "AnyUrl": pydantic.AnyUrl,
    "HttpUrl": pydantic.HttpUrl,
    "IPvAnyAddress": pydantic.IPvAnyAddress,
    "IPv4Address": ipaddress.IPv4Address,
    "IPv6Address": ipaddress.IPv6Address,
    "IPv4Interface": ipaddress.IPv4Interface,
    "IPv4Network": ipaddress.IPv4Network,
    "pattern": Annotated[str, pydantic.Field(pattern=r"^[A-Z]{3}\d+$")],
    "lengths": Annotated[str, pydantic.Field(min_length=1, max_length=10)],
    "bounds": Annotated[int, pydantic.Field(gt=0, lt=100)],
    "int64": Annotated[int, pydantic.Field(ge=-(2**63), le=2**63 - 1)],
    "largest float": Annotated[float, pydantic.Field(le=1.7976931348623157e308)],
    "multiple": Annotated[int, pydantic.Field(multiple_of=5)],
    "conlist": Annotated[list[int], pydantic.Field(min_length=1, max_length=3)],
    "unit": Annotated[int, pydantic.Field(json_schema_extra={"unit": "cm"})],
    "format": Annotated[str, pydantic.Field(json_schema_extra={"format": "color"})],
    "remarks": Annotated[
        str,
        pydantic.Field(
            title="T",
            description="d",
            examples=["a"],
            deprecated=True,
            json_schema_extra={"propertyOrdering": ["a"], "x-order": 1, "markdownDescription": "d"},
        ),
    ],
    "set": set[int],
    "frozenset": frozenset[Colour],
}
"""Python's types; the last two say uniqueItems, which cannot be held."""


def python_types() -> Schemas:
    """Each of them as a field of a model."""
    return {
        name: pydantic.create_model("Model", x=(kind, ...)).model_json_schema()
        for name, kind in TYPES.items()
    }


def models_of(package: str) -> Callable[[], Schemas]:
    """The schemas of all pydantic models of an installed package; equal ones once."""

    def read() -> Schemas:
        found: dict[str, Any] = {}
        for module in _modules(package):
            for name, model in vars(module).items():
                if not (inspect.isclass(model) and issubclass(model, pydantic.BaseModel)):
                    continue
                if model.__module__ == module.__name__:
                    try:
                        schema = model.model_json_schema()
                    except Exception:
                        continue  # a type that has no schema
                    found.setdefault(json.dumps(schema), (f"{module.__name__}.{name}", schema))
        return dict(found.values())

    return read


def _modules(package: str) -> Iterator[Any]:
    root = importlib.import_module(package)
    yield root
    for module in pkgutil.walk_packages(root.__path__, package + "."):
        try:
            yield importlib.import_module(module.name)
        except Exception:
            continue  # it needs something that is not installed


def meta_schemas() -> Schemas:
    """The schemas of schemas and of OpenAPI documents."""
    found = {}
    for package in ("jsonschema_specifications", "openapi_spec_validator"):
        for file in sorted(pathlib.Path(str(resources.files(package))).rglob("*.json")):
            schema = json.loads(file.read_text())
            if isinstance(schema, dict):
                found[f"{package}/{'/'.join(file.parts[-3:])}"] = schema
    return found


INSTALLED: Mapping[str, Callable[[], Schemas]] = {
    "python types": python_types,
    "openai chat": models_of("openai.types.chat"),
    "openai shared": models_of("openai.types.shared"),
    "openai responses": models_of("openai.types.responses"),
    "anthropic": models_of("anthropic.types"),
    "langchain": models_of("langchain_core"),
    "meta-schemas": meta_schemas,
}

SERVERS: Mapping[str, tuple[str, ...]] = {
    "@modelcontextprotocol/server-everything": ("dist/index.js", "stdio"),
    "@modelcontextprotocol/server-filesystem": ("dist/index.js", "."),
    "@modelcontextprotocol/server-memory": ("dist/index.js",),
    "@modelcontextprotocol/server-sequential-thinking": ("dist/index.js",),
    "@modelcontextprotocol/server-github": ("dist/index.js",),
    "@modelcontextprotocol/server-slack": ("dist/index.js",),
    "@modelcontextprotocol/server-puppeteer": ("dist/index.js",),
    "@modelcontextprotocol/server-brave-search": ("dist/index.js",),
    "@modelcontextprotocol/server-google-maps": ("dist/index.js",),
    "@modelcontextprotocol/server-postgres": ("dist/index.js", "postgresql://localhost/none"),
    "@upstash/context7-mcp": ("dist/index.js",),
    "@notionhq/notion-mcp-server": ("bin/cli.mjs",),
    "@playwright/mcp": ("cli.js",),
}
"""MCP servers and how node starts them; their tools' schemas are what agents send."""

ZOD = """
import * as z from "zod";
const kinds = {
  string: z.string(), number: z.number(), int: z.int(), bigint: z.int().min(0).max(2 ** 40),
  boolean: z.boolean(), nothing: z.null(), any: z.any(), literal: z.literal("a"),
  choice: z.enum(["a", "b"]), list: z.array(z.string()), some: z.array(z.int()).min(1).max(3),
  pair: z.tuple([z.string(), z.number()]), record: z.record(z.string(), z.number()),
  keyed: z.record(z.enum(["a", "b"]), z.boolean()), optional: z.string().optional(),
  nullable: z.string().nullable(), fallback: z.string().default("x"),
  strict: z.strictObject({a: z.string()}), loose: z.looseObject({a: z.string()}),
  either: z.union([z.string(), z.number()]),
  told: z.discriminatedUnion("k", [z.object({k: z.literal("a"), x: z.int()}),
    z.object({k: z.literal("b"), y: z.string()})]),
  both: z.intersection(z.object({a: z.string()}), z.object({b: z.number()})),
  email: z.email(), url: z.url(), uuid: z.uuid(), uuid4: z.uuidv4(), nanoid: z.nanoid(),
  cuid: z.cuid(), cuid2: z.cuid2(), ulid: z.ulid(), ipv4: z.ipv4(), ipv6: z.ipv6(),
  cidr: z.cidrv4(), base64: z.base64(), base64url: z.base64url(), e164: z.e164(),
  date: z.iso.date(), time: z.iso.time(), datetime: z.iso.datetime(),
  duration: z.iso.duration(), pattern: z.string().regex(/^[a-z]+$/),
  lengths: z.string().min(1).max(10), starts: z.string().startsWith("a"),
  positive: z.number().positive(), multiple: z.int().multipleOf(5),
  described: z.string().describe("d"),
};
const found = {};
for (const [name, kind] of Object.entries(kinds)) {
  try { found[name] = z.toJSONSchema(z.object({x: kind})); } catch (error) {}
}
console.log(JSON.stringify(found));
"""


def node_schemas(folder: pathlib.Path) -> Mapping[str, Callable[[], Schemas]]:
    """Readers of zod's schemas and MCP servers' tools; npm installs what is missing in folder."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = ["zod", *SERVERS]
    missing = [name for name in wanted if not (folder / "node_modules" / name).exists()]
    if missing:
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *missing]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return {
        "zod": lambda: _zod(folder),
        "MCP servers": lambda: {
            f"{server}/{name}": schema
            for server, arguments in SERVERS.items()
            for name, schema in _tools(folder, server, arguments)
        },
    }


def _zod(folder: pathlib.Path) -> Schemas:
    script = folder / "zod.mjs"
    script.write_text(ZOD)
    done = subprocess.run(["node", script], capture_output=True, check=True, text=True)
    found: Schemas = json.loads(done.stdout)
    return found


def _tools(
    folder: pathlib.Path, server: str, arguments: tuple[str, ...]
) -> Iterator[tuple[str, Any]]:
    """What a server answers to tools/list; nothing if it does not start."""
    program = folder / "node_modules" / server / arguments[0]
    tokens = ("GITHUB_PERSONAL_ACCESS_TOKEN", "SLACK_BOT_TOKEN", "SLACK_TEAM_ID", "BRAVE_API_KEY")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), **dict.fromkeys(tokens, "none")}
    environment |= {"GOOGLE_MAPS_API_KEY": "none", "NOTION_TOKEN": "none"}
    first = {"protocolVersion": "2025-06-18", "capabilities": {},
             "clientInfo": {"name": "schemas", "version": "0"}}  # fmt: skip
    asked = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": first},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
    ]
    child = subprocess.Popen(
        ["node", program, *arguments[1:]], cwd=folder, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert child.stdin is not None and child.stdout is not None
    try:
        for message in asked:
            child.stdin.write(json.dumps(message) + "\n")
            child.stdin.flush()
        for line in child.stdout:
            answer = json.loads(line) if line.startswith("{") else {}
            if answer.get("id") == 2:
                for tool in answer.get("result", {}).get("tools", ()):
                    yield tool["name"], tool["inputSchema"]
                return
    except BrokenPipeError:
        return
    finally:
        child.kill()
        child.wait()

"""What Airflow reads of the package, and which of its files may know of which."""

from __future__ import annotations

import ast
import copy
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from airflow_run import AIRFLOW

import airflow_provider_codegateway
from airflow_provider_codegateway.get_provider_info import get_provider_info

PACKAGE = "airflow_provider_codegateway"
ROOT = Path(airflow_provider_codegateway.__file__).parent

# A room is a folder or a module of the package. It imports from itself, its own layer and those before it.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            *("__init__", "clip", "limits", "redaction", "exceptions"),
            *("get_provider_info", "threads", "foreign", "http_dates", "http_heads"),
        }
    ),
    frozenset({"s3", "net", "commands"}),
    frozenset({"models", "inputs", "gateway", "ledger", "transfer", "facts", "spend"}),
    frozenset({"spec", "place", "preview", "purchase"}),
    frozenset({"batch"}),
    frozenset({"metrics", "hooks"}),
    frozenset({"triggers"}),
    frozenset({"lineage", "links", "retry_policy", "operators"}),
    frozenset({"decorators", "plugins", "cli"}),
)
PLUGINS_IMPORT = frozenset(
    {
        "plugins",
        "clip",
        "s3",
        "redaction",
        "exceptions",
        "links",
        "operators",
        "get_provider_info",
        "__init__",
    }
)
PAGE_SUFFIXES = frozenset({".html", ".css", ".js", ".svg"})
IMPORT_AIRFLOW = frozenset(
    {
        "exceptions",
        "metrics",
        "hooks",
        "triggers",
        "operators",
        "retry_policy",
        "links",
        "lineage",
        "decorators",
        "plugins",
        "cli",
    }
)


FILES = sorted(ROOT.rglob("*.py"))
OUTSIDE = sorted(
    path for folder in ("tests", "benchmarks", "demo") for path in (ROOT.parent / folder).rglob("*.py")
)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


IN_THE_EMULATOR = [path for path in FILES if room_of(path) == "emulator"]
ELSEWHERE = [path for path in FILES if room_of(path) != "emulator"]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


OURS = {module_name(path): path for path in FILES}


@dataclass(frozen=True)
class Import:
    """One name that a file imports, and from which module; the name is "" for a module as a whole."""

    module: str
    name: str
    bound: str
    """What it is called in the file."""


def imports(path: Path) -> Iterator[Import]:
    """Everything that a file imports, anywhere in it, for type checking too; not where it is run as a command."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not is_run_as_command(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, "", alias.asname or alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_name(path).split(".")
                steps = node.level if path.name != "__init__.py" else node.level - 1
                base = ".".join([*package[: len(package) - steps], *filter(None, [base])])
            for alias in node.names:
                bound = alias.asname or alias.name
                if f"{base}.{alias.name}" in OURS:  # `from package import clip` imports a module
                    yield Import(f"{base}.{alias.name}", "", bound)
                else:
                    yield Import(base, alias.name, bound)


def is_run_as_command(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def own_files(path: Path) -> set[Path]:
    """The files of this package that a file imports from."""
    return {OURS[each.module] for each in imports(path) if each.module in OURS}


def imports_airflow(path: Path) -> bool:
    return any(each.module.split(".")[0] == "airflow" for each in imports(path))


def layer_of(room: str) -> int:
    (layer,) = (number for number, rooms in enumerate(LAYERS) if room in rooms)
    return layer


def test_contributing_has_every_room_in_its_place() -> None:
    """A row of its table is part of a layer, in the layers' order: what is said there is what is held here."""
    page = (ROOT.parent / "CONTRIBUTING.md").read_text().partition("## The rooms")[2].partition("## ")[0]
    rows = [set(re.findall("`([a-z0-9_]+)`", line.split("|")[1])) for line in re.findall(r"\| `.+", page)]
    places = [next(n for n, layer in enumerate(LAYERS) if row <= layer) for row in rows]
    assert places == sorted(places)
    assert set.union(*rows) == set.union(*map(set, LAYERS)) - {"__init__"}


@pytest.mark.parametrize("path", ELSEWHERE, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    """A file imports nothing of a layer after its own, and Airflow only where that is the layer's work."""
    room = room_of(path)
    rooms = {room_of(other) for other in own_files(path)}
    assert {other for other in rooms if other == "emulator" or layer_of(other) > layer_of(room)} == set()
    assert room in IMPORT_AIRFLOW or not imports_airflow(path)


@pytest.mark.parametrize("path", [path for path in ELSEWHERE if room_of(path) == "plugins"], ids=module_name)
def test_the_pages_know_little_of_the_package(path: Path) -> None:
    """They read clips, and never buy one."""
    assert {room_of(other) for other in own_files(path)} <= PLUGINS_IMPORT


@pytest.mark.parametrize("path", IN_THE_EMULATOR, ids=module_name)
def test_emulator_knows_nothing_of_the_package(path: Path) -> None:
    """The emulator is written from the vendor's guide, so that it can disagree with the rest."""
    assert {room_of(other) for other in own_files(path)} <= {"emulator"}
    assert not imports_airflow(path)  # `testing` names its modules when it runs a task


def test_no_two_files_import_each_other() -> None:
    """Neither directly nor over others, nor for type checking alone."""
    TopologicalSorter({path: own_files(path) - {path} for path in FILES}).prepare()


def test_no_two_rooms_import_each_other() -> None:
    """What a room offers can be understood without the rooms that use it."""
    graph: dict[str, set[str]] = {}
    for path in ELSEWHERE:
        rooms = {room_of(other) for other in own_files(path)}
        graph.setdefault(room_of(path), set()).update(rooms - {room_of(path)})
    TopologicalSorter(graph).prepare()


def foreign_private_names(path: Path) -> list[str]:
    """Names with a leading underscore that a file takes from another file of this package."""
    found = list(imports(path))
    modules = {each.bound for each in found if not each.name and each.module in OURS}
    taken = [each.name for each in found if each.module in OURS]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in modules:
            taken.append(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".setattr", ".patch")):
            taken += [
                text.rpartition(".")[2]
                for argument in node.args
                if (text := text_of(argument)).startswith(f"{PACKAGE}.")
            ]
            if len(node.args) > 1 and ast.unparse(node.args[0]) in modules:
                taken.append(text_of(node.args[1]))
    return [name for name in taken if is_private(name)]


def text_of(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize(
    "path", [*FILES, *OUTSIDE], ids=lambda path: str(path.relative_to(ROOT.parent).with_suffix(""))
)
def test_private_names_are_used_in_their_own_file_alone(path: Path) -> None:
    """A leading underscore says that a name may change without a look at other files; tests included."""
    assert foreign_private_names(path) == []


@pytest.mark.parametrize(
    "line",
    [
        f"from {PACKAGE}.clip import _PREFIX",
        f"from {PACKAGE} import clip\nclip._PREFIX",
        f"from {PACKAGE} import clip as clips\nclips._PREFIX",
        f"import {PACKAGE}.clip\n{PACKAGE}.clip._PREFIX",
        f"from {PACKAGE} import clip\nmonkeypatch.setattr(clip, '_PREFIX', '')",
        f"monkeypatch.setattr('{PACKAGE}.clip._PREFIX', '')",
    ],
)
def test_a_private_name_of_another_file_is_found(line: str, tmp_path: Path) -> None:
    """However it is taken."""
    (tmp_path / "other.py").write_text(line)
    assert foreign_private_names(tmp_path / "other.py") == ["_PREFIX"]


@pytest.mark.parametrize(
    "module",
    [
        *("operators.video", "operators.videos", "decorators.video", "decorators.videos"),
        *("hooks.video", "get_provider_info", "emulator"),
    ],
)
def test_parsing_a_dag_file_loads_nothing_heavy(module: str) -> None:
    """What a DAG file, the manifest or the pytest plugin imports loads no boto3 and no server.

    Airflow 3.0 itself loads Starlette with the base classes of operators and hooks.
    """
    heavy = {"boto3", "botocore", "av", "starlette", "uvicorn", "moto"}
    code = f"""
import sys
from airflow.providers.common.compat.sdk import BaseHook, BaseOperator
airflow = set(sys.modules)
import {PACKAGE}.{module}
print(*sorted({heavy!r} & (sys.modules.keys() - airflow)))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def airflow_schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((files("airflow") / name).read_text())
    return schema


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The same schema, but without room for keys that it does not name: Airflow ignores those in silence."""
    schema = copy.deepcopy(schema)
    open_parts: list[Any] = [schema]
    while open_parts:
        part = open_parts.pop()
        if isinstance(part, dict):
            if "properties" in part and part.get("type") == "object":
                part.setdefault("additionalProperties", False)
            open_parts += part.values()
        elif isinstance(part, list):
            open_parts += part
    return schema


def test_provider_info_is_what_airflow_validates() -> None:
    """The manifest passes the schema that Airflow holds every provider to, and has no key beyond it."""
    jsonschema.validate(get_provider_info(), airflow_schema("provider_info.schema.json"))
    # Older versions read operators and hooks, which their documentation lists, from a provider.yaml only.
    schemas = ("provider_info.schema.json", "provider.yaml.schema.json")
    known = {name for schema in schemas for name in airflow_schema(schema)["properties"]}
    # Airflow before 3.2 passes over commands.
    assert get_provider_info().keys() - {"cli"} <= known


@pytest.mark.parametrize("part", sorted(get_provider_info().keys() - {"package-name", "name", "description"}))
def test_provider_info_has_no_key_that_airflow_ignores(part: str) -> None:
    """Each part passes the stricter schema of Airflow's own providers, with no room for a misspelt key."""
    schema = airflow_schema("provider.yaml.schema.json")
    if part not in schema["properties"]:
        pytest.skip(f"This Airflow passes over {part!r}.")
    if part == "connection-types" and "conn-fields" not in json.dumps(schema):
        pytest.skip("This Airflow takes the connection's form from the hook.")
    info = get_provider_info()[part]
    if part == "connection-types" and AIRFLOW < (3, 3):  # which asks the hook for its name
        info = [{name: it for name, it in connection.items() if name != "hook-name"} for connection in info]
    definitions = closed(schema.get("definitions", {}))
    jsonschema.validate(info, {**closed(schema["properties"][part]), "definitions": definitions})


def test_connection_form_of_older_airflow_is_valid() -> None:
    """The hook's form methods, which Airflow before 3.2 calls, pass the schema for their result."""
    from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook

    schema = closed(airflow_schema("customized_form_field_behaviours.schema.json"))
    jsonschema.validate(CodeGatewayVideoHook.get_ui_field_behaviour(), schema)


def test_everything_that_the_manifest_names_exists() -> None:
    """Every module and class in the manifest can be imported, and the connection types are the hooks' own."""
    info = get_provider_info()
    for part in ("operators", "hooks", "triggers"):
        for entry in info.get(part, []):
            for module in entry["python-modules"]:
                assert (ROOT.parent / Path(*module.split("."))).with_suffix(".py").is_file(), module
    for connection in info["connection-types"]:
        assert resolve_name(connection["hook-class-name"]).conn_type == connection["connection-type"]
    for name in info.get("extra-links", []):
        resolve_name(name)
    for decorator in info["task-decorators"]:
        assert resolve_name(decorator["class-name"]).__name__ == f"{decorator['name']}_task"


def test_airflow_finds_the_provider() -> None:
    """The entry point names the manifest, and Airflow's provider manager has it."""
    from airflow.providers_manager import ProvidersManager

    (entry_point,) = entry_points(group="apache_airflow_provider", name="provider_info").select(
        module=f"{PACKAGE}.get_provider_info"
    )
    assert entry_point.load() is get_provider_info
    manager = ProvidersManager()  # type: ignore[no-untyped-call]
    known = manager.providers["airflow-provider-codegateway"]
    assert get_provider_info().items() <= known.data.items()


def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    """Code, its type marker and the pages' files; no test, no cache, nothing that lies about in the tree."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path],
        cwd=ROOT.parent,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.iterdir()
    packed = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    about = {path.relative_to(path.parts[0]) for path in packed if path.parts[0].endswith(".dist-info")}
    assert {str(path) for path in about} == {
        *("METADATA", "WHEEL", "RECORD", "entry_points.txt"),
        "licenses/LICENSE",
    }
    content = {path for path in packed if not path.parts[0].endswith(".dist-info")}
    assert content == {
        path.relative_to(ROOT.parent)
        for path in ROOT.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert Path(PACKAGE, "py.typed") in content
    assert {path.suffix for path in content if path.name != "py.typed"} <= {".py", *PAGE_SUFFIXES}

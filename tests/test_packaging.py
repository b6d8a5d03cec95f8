"""What Airflow reads of the package, and which of its modules may know of which."""

from __future__ import annotations

import ast
import copy
import json
import subprocess
import sys
import zipfile
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

# A module imports from layers before its own, and from its own. Names are folders or modules of the package.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"__init__", "exceptions", "get_provider_info"}),
    frozenset(
        {
            "_http",
            "_threads",
            "_s3",
            "media",
            "models",
            "gateway",
            "ledger",
            "ledger_cli",
            "metrics",
            "probe",
            "_download",
            "_upload",
            "transfer",
        }
    ),
    frozenset({"render"}),
    frozenset({"hooks"}),
    frozenset({"triggers"}),
    frozenset({"operators", "retry_policy", "links", "lineage"}),
    frozenset({"decorators", "plugins"}),
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
    }
)


def modules(*, emulator: bool) -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if (part_of(path) == "emulator") is emulator)


def part_of(path: Path) -> str:
    """The folder or module of the package that a file belongs to."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def module_name(path: Path) -> str:
    return ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, in full, anywhere in it but where it is run as a command."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not is_run_as_command(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_name(path).split(".")
                steps = node.level if path.name != "__init__.py" else node.level - 1
                base = ".".join([*package[: len(package) - steps], *filter(None, [base])])
            # `from package import media` imports a module; `from package.media import resolve` a name in one.
            found |= {f"{base}.{alias.name}" if base == PACKAGE else base for alias in node.names}
    return found


def is_run_as_command(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def own_parts(path: Path) -> set[str]:
    """The parts of this package that a file imports."""
    parts = [name.split(".")[1] for name in imports(path) if name.startswith(f"{PACKAGE}.")]
    return {"__init__" if part.startswith("__") else part for part in parts}


def layer_of(part: str) -> int:
    (layer,) = (number for number, parts in enumerate(LAYERS) if part in parts)
    return layer


@pytest.mark.parametrize("path", modules(emulator=False), ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    """A module imports nothing of a layer after its own, and Airflow only where that is the layer's work."""
    part = part_of(path)
    assert {other for other in own_parts(path) if layer_of(other) > layer_of(part)} == set()
    if part not in IMPORT_AIRFLOW:
        assert {name for name in imports(path) if name.split(".")[0] == "airflow"} == set()


def test_no_two_modules_import_each_other() -> None:
    """Within a layer, too, imports make no circle."""
    graph: dict[str, set[str]] = {}
    for path in modules(emulator=False):
        graph.setdefault(part_of(path), set()).update(own_parts(path) - {part_of(path)})
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", modules(emulator=True), ids=module_name)
def test_emulator_knows_nothing_of_the_package(path: Path) -> None:
    """The emulator is written from the vendor's guide, so that it can disagree with the rest."""
    assert own_parts(path) <= {"emulator"}
    assert {name for name in imports(path) if name.split(".")[0] == "airflow"} == set()


@pytest.mark.parametrize(
    "module", ["operators.video", "decorators.video", "hooks.video", "get_provider_info", "emulator"]
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
    assert get_provider_info().keys() <= known


@pytest.mark.parametrize("part", sorted(get_provider_info().keys() - {"package-name", "name", "description"}))
def test_provider_info_has_no_key_that_airflow_ignores(part: str) -> None:
    """Each part passes the stricter schema of Airflow's own providers, with no room for a misspelt key."""
    schema = airflow_schema("provider.yaml.schema.json")
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

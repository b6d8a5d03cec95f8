"""What Airflow reads of the package, and which of its modules may know of which."""

from __future__ import annotations

import ast
import copy
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

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
            "_download",
            "_upload",
            "transfer",
        }
    ),
    frozenset({"render"}),
    frozenset({"hooks"}),
    frozenset({"triggers"}),
    frozenset({"operators", "retry_policy", "links", "ui"}),
    frozenset({"decorators"}),
)
IMPORT_AIRFLOW = frozenset(
    {"exceptions", "hooks", "triggers", "operators", "retry_policy", "decorators", "links", "ui"}
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


@pytest.mark.parametrize("module", ["operators.video", "hooks.video", "get_provider_info", "emulator"])
def test_parsing_a_dag_file_loads_nothing_heavy(module: str) -> None:
    """What a DAG file, the manifest or the pytest plugin imports loads no boto3 and no server."""
    heavy = {"boto3", "botocore", "av", "starlette", "uvicorn", "moto"}
    code = f"import sys, {PACKAGE}.{module}; print(*sorted({heavy!r} & sys.modules.keys()))"
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
    schema = airflow_schema("provider_info.schema.json")
    jsonschema.validate(get_provider_info(), schema)
    assert get_provider_info().keys() <= schema["properties"].keys()


@pytest.mark.parametrize("part", sorted(get_provider_info().keys() - {"package-name", "name", "description"}))
def test_provider_info_has_no_key_that_airflow_ignores(part: str) -> None:
    """Each part passes the stricter schema of Airflow's own providers, with no room for a misspelt key."""
    schema = airflow_schema("provider.yaml.schema.json")
    if part == "connection-types" and "conn-fields" not in json.dumps(schema):
        pytest.skip("This Airflow takes the connection's form from the hook.")
    jsonschema.validate(get_provider_info()[part], closed(schema["properties"][part]))


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

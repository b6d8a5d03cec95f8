"""What a person sees who asks Airflow's own commands about the provider."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow_run import AIRFLOW

import airflow_provider_codegateway
from airflow_provider_codegateway.get_provider_info import CONNECTION_FIELDS, get_provider_info

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from airflow_provider_codegateway.emulator import Emulator

TESTS = Path(__file__).resolve().parent
EXAMPLES = TESTS.parent / "example_dags"
HOOK = "airflow_provider_codegateway.hooks.video.CodeGatewayVideoHook"
WRONG_KEY = "sk-cg-NobodysKey0123456789"

COMMANDS = {
    "provider": "providers get airflow-provider-codegateway --full --output json",
    "hooks": "providers hooks --output json",
    "widgets": "providers widgets --output json",
    "behaviours": "providers behaviours --output json",
    "links": "providers links --output json",
    "triggers": "providers triggers --output json",
    "import errors": f"dags list-import-errors --output json{' --local' if AIRFLOW >= (3, 0) else ''}",
    "add": "connections add codegateway_added --conn-json '{}'",
    "test of an added one": "connections test codegateway_added",
    "test of one in the environment": "connections test codegateway_default",
    "test with a wrong key": "connections test codegateway_wrong_key",
    "test of one that nobody answers": "connections test codegateway_nobody",
}


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit status."""

    out: str
    err: str
    status: int

    @property
    def data(self) -> Any:
        # Airflow 3.0 prints what it logs, and with today's Alembic and providers that is something.
        return json.loads(re.sub(r"(?m)^\[\d{4}-\d\d-\d\dT\S+\] \{.+\n", "", self.out))

    @property
    def words(self) -> str:
        """All of it, without the line breaks that a console makes."""
        return " ".join((self.out + self.err).split())


needs_form_at_hand = pytest.mark.skipif(
    (3, 0) <= AIRFLOW < (3, 2) and find_spec("flask_appbuilder") is None,
    reason="Airflow 3.0 and 3.1 list a form only with Flask-AppBuilder",
)


@pytest.fixture(scope="module")
def airflow(airflow_database: None, shared_gateway: Emulator) -> dict[str, Said]:
    """What each of the commands said. All run in one process: it takes Airflow seconds to start."""
    shared_gateway.reset()
    good = {"conn_type": "codegateway", "host": shared_gateway.url, "password": shared_gateway.api_key}
    connections = {
        "default": good,
        "wrong_key": {**good, "password": WRONG_KEY},
        "nobody": {**good, "host": "http://127.0.0.1:9", "extra": {"retries": 0}},
    }
    environment = {
        **os.environ,
        **{f"AIRFLOW_CONN_CODEGATEWAY_{name.upper()}": json.dumps(it) for name, it in connections.items()},
        "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLES),
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
    }
    commands = [command.replace("{}", json.dumps(good)) for command in COMMANDS.values()]
    done = subprocess.run(
        [sys.executable, TESTS / "airflow_cli.py", *commands],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert shared_gateway.billed == 0
    return {name: Said(*said) for name, said in zip(COMMANDS, json.loads(done.stdout), strict=True)}


def test_provider_is_listed_with_its_version_and_nothing_else_is_said(airflow: dict[str, Said]) -> None:
    """``airflow providers get`` shows the manifest."""
    said = airflow["provider"]
    (info,) = said.data
    assert info["package-name"] == get_provider_info()["package-name"]
    assert (said.status, "codegateway" in said.err.lower()) == (0, False)


def test_connection_type_has_its_hook(airflow: dict[str, Said]) -> None:
    """``airflow providers hooks`` imports the hook, and names the argument that takes the connection's id."""
    (hook,) = [row for row in airflow["hooks"].data if row["connection_type"] == "codegateway"]
    assert hook == {
        "connection_type": "codegateway",
        "class": HOOK,
        "conn_id_attribute_name": "codegateway_conn_id",
        "package_name": "airflow-provider-codegateway",
        "hook_name": "CodeGateway",
    }


@needs_form_at_hand
def test_form_has_every_field_of_the_extra(airflow: dict[str, Said]) -> None:
    """``airflow providers widgets``: from the manifest or from the hook's form, as the version has it."""
    ours = [row for row in airflow["widgets"].data if row["package_name"] == "airflow-provider-codegateway"]
    names = [row["connection_parameter_name"].removeprefix("extra__codegateway__") for row in ours]
    assert sorted(names) == sorted(CONNECTION_FIELDS)


@needs_form_at_hand
def test_form_hides_what_means_nothing_here(airflow: dict[str, Said]) -> None:
    """``airflow providers behaviours`` knows which of the standard fields the form shows."""
    assert "codegateway" in airflow["behaviours"].out


@pytest.mark.skipif(AIRFLOW < (3, 1), reason="before 3.1, Flask-AppBuilder makes the form, or nobody does")
def test_form_of_the_ui_has_the_fields_and_hides_the_others() -> None:
    """What Airflow's API tells the browser: the same form from the manifest (3.2 and later) and from the hook."""
    code = """
import json
from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
(form,) = [hook for hook in HookMetaService.hook_meta_data() if hook.connection_type == "codegateway"]
print(form.model_dump_json(by_alias=True))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    form = json.loads(done.stdout.splitlines()[-1])
    assert (form["hook_name"], form["hook_class_name"]) == ("CodeGateway", HOOK)
    fields = {name: (it["schema"]["title"], it["description"]) for name, it in form["extra_fields"].items()}
    assert fields == {name: (it["label"], it["description"]) for name, it in CONNECTION_FIELDS.items()}
    standard = form["standard_fields"]
    assert standard["password"]["title"] == "API key"
    assert standard["host"]["title"] == "Base URL"
    assert all(standard[name]["hidden"] for name in ("login", "port", "url_schema"))


def test_link_is_registered(airflow: dict[str, Said]) -> None:
    """``airflow providers links`` lists the clip's link."""
    for name in get_provider_info()["extra-links"]:
        assert name in airflow["links"].out


def test_trigger_is_listed(airflow: dict[str, Said]) -> None:
    """``airflow providers triggers`` lists the trigger's module."""
    ours = [row for row in airflow["triggers"].data if row["package_name"] == "airflow-provider-codegateway"]
    modules = [f"airflow_provider_codegateway.triggers.{name}" for name in ("video", "videos")]
    assert sorted(row["class"] for row in ours) == modules


def test_examples_import_on_this_version(airflow: dict[str, Said]) -> None:
    """``airflow dags list-import-errors`` finds none in the example DAGs."""
    said = airflow["import errors"]
    # Below what Airflow logs of itself, the answer: JSON has had several forms of an empty list.
    assert said.out.splitlines()[-1] in ("No data found", "[]")
    assert (said.status, "codegateway" in said.words) == (0, False)


@pytest.mark.parametrize("which", ["an added one", "one in the environment"])
def test_connection_can_be_tested_without_spending(airflow: dict[str, Said], which: str) -> None:
    """``airflow connections test`` succeeds, and the emulator has billed nothing."""
    assert "Connection success!" in airflow[f"test of {which}"].words
    assert airflow[f"test of {which}"].status == 0


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("test with a wrong key", "does not take the API key"),
        ("test of one that nobody answers", "refuses connections"),
    ],
)
def test_connection_that_does_not_work_says_why(airflow: dict[str, Said], which: str, words: str) -> None:
    """The words of ``airflow connections test`` name the cause, and not the key."""
    assert "Connection failed!" in airflow[which].words
    assert words in airflow[which].words
    assert WRONG_KEY not in airflow[which].words
    assert airflow[which].status == (1 if AIRFLOW >= (3, 3) else 0)


def test_neither_airflow_nor_python_warns_of_anything_of_ours() -> None:
    """Airflow's provider manager reads the manifest, hook, links and plugin, and each module is imported."""
    code = f"""
import logging, pkgutil, importlib
from airflow.providers_manager import ProvidersManager
from airflow import plugins_manager
import airflow_provider_codegateway as package
logging.getLogger().addHandler(logging.StreamHandler())
manager = ProvidersManager()
for part in ("hooks", "connection_form_widgets", "field_behaviours", "extra_links_class_names", "plugins"):
    list(getattr(manager, part))
if {AIRFLOW} < (3, 2):
    plugins_manager.ensure_plugins_loaded()
    print(plugins_manager.import_errors)
else:
    plugins_manager._get_plugins()
    print(plugins_manager.get_import_errors())
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            print("left out:", module.name.rpartition(".")[2], type(error).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env={**os.environ, "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING"},
        check=True,
        capture_output=True,
        text=True,
    )
    root = str(Path(airflow_provider_codegateway.__file__).parent)
    complaints = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if root in line or "codegateway" in line.lower()
    ]
    assert complaints == []


def test_our_commands_find_connections_that_are_kept_in_airflows_database(
    airflow_database: None,
    s3_endpoint: str,
    s3_credentials: dict[str, str],
    s3: S3Client,
    bucket: str,
    tmp_path: Path,
) -> None:
    """And print what was asked for, and nothing that Airflow logs meanwhile."""
    kept = {
        "codegateway_kept": {
            "conn_type": "codegateway",
            "password": "sk-cg-x",
            "extra": {"spend": {"journal": f"s3://{bucket}/journal", "journal_conn_id": "aws_kept"}},
        },
        "aws_kept": {
            "conn_type": "aws",
            "login": s3_credentials["aws_access_key_id"],
            "password": s3_credentials["aws_secret_access_key"],
            "extra": {"endpoint_url": s3_endpoint, "region_name": "us-east-1"},
        },
    }
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_CONN_", "AWS_"))
    }
    adding = [f"connections add {name} --conn-json '{json.dumps(it)}'" for name, it in kept.items()]
    subprocess.run(
        [sys.executable, TESTS / "airflow_cli.py", *adding], env=clean, check=True, stdout=subprocess.DEVNULL
    )

    def said(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command], env=clean, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout

    report = ("--conn-id", "codegateway_kept", "report", "--format", "csv")
    assert said("airflow_provider_codegateway.spend", *report) == "month,bought,cost\n"
    listed = said(
        "airflow_provider_codegateway.ledger", "--aws-conn-id", "aws_kept", "list", f"s3://{bucket}"
    )
    assert listed == f"Nothing below s3://{bucket}/_codegateway/: all is settled.\n"
    rows = tmp_path / "rows.csv"
    rows.write_text("model,prompt\nacme/new,a render of a model that is logged to be unknown\n")
    estimate = ("--conn-id", "codegateway_kept", "estimate", str(rows), "--format", "json")
    assert json.loads(said("airflow_provider_codegateway.spend", *estimate))["renders"] == 1
    if AIRFLOW >= (3, 2):
        named = ("--conn-id", "codegateway_kept", "--format", "json")
        assert (
            json.loads(said("airflow", "codegateway", "spend", "estimate", str(rows), *named))["renders"] == 1
        )
        arguments = ("report", "--conn-id", "codegateway_kept", "--format", "csv")
        assert said("airflow", "codegateway", "spend", *arguments) == "month,bought,cost\n"

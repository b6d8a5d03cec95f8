"""The test-suite on every supported Airflow and Python, each in an environment of its own below ``.matrix/``.

A cell is a file of ``constraints/``: ``airflow-3.1-python-3.12.txt`` is the cell ``3.1-3.12``, and
``lowest.txt`` has the lowest versions that pyproject.toml allows. Needs nothing but Python's own library::

    python tools/matrix.py run [--quick | --core] [--pytest=ARGUMENTS] [CELL …]
    python tools/matrix.py constraints [CELL …]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import venv
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
CONSTRAINTS = PROJECT / "constraints"
ENVIRONMENTS = PROJECT / ".matrix"

LOWEST = "lowest"
AIRFLOWS = {
    "2.11": "2.11.2",
    "3.0": "3.0.6",
    "3.1": "3.1.8",
    "3.2": "3.2.2",
    "3.3": "3.3.2",
    "3.4": "3.4.0b2",
}
"""The newest patch of each minor version. A newer one goes here, and then ``make constraints``."""
PYTHONS = {
    "2.11": ("3.11", "3.12"),
    "3.0": ("3.11", "3.12"),
    "3.1": ("3.11", "3.12", "3.13"),
    "3.2": ("3.11", "3.12", "3.13"),
    "3.3": ("3.11", "3.12", "3.13"),
    "3.4": ("3.11", "3.12", "3.13"),
}
"""The Pythons of each that Airflow and this package support."""
BROKEN_BY = {
    # They take whatever FastAPI is newest, and since then their API server for tasks has failed to start (3.2),
    # or refuses every task with 422 (3.0). With the newest svcs, `airflow dags test` of 3.2 runs no task.
    # Airflow's own constraints have older ones.
    "3.0": "fastapi<0.117",
    "3.2": "fastapi<0.137\nsvcs<26.2",
}
"""What an Airflow allows, and does not work with."""
PRE_RELEASES = {"3.4": "apache-airflow-core==3.4.0b2\napache-airflow-task-sdk==1.4.0b2"}
"""What a pre-release of Airflow needs, pinned: only a package that is named may be a pre-release."""

LOWEST_PYTHON = "3.11"
CELLS = (*(f"{airflow}-{python}" for airflow, pythons in PYTHONS.items() for python in pythons), LOWEST)

UV = "uv>=0.5"
"""Resolves to the lowest versions, and for a Python that is not here; installs in seconds what takes pip minutes."""

SAME_EVERYWHERE = (
    "test_clips_browser.py",
    "test_crash.py",
    "test_docs.py",
    "test_emulator_clips.py",
    "test_emulator_process.py",
    "test_end_to_end.py",
    "test_ledger.py",
    "test_transfer.py",
    "test_troubleshooting.py",
)
"""Left out by ``--quick``: most of the time, for what hardly ever depends on a version."""

NEAR_AIRFLOW = (
    "test_airflow_cli.py",
    "test_assets.py",
    "test_connection.py",
    "test_decorator.py",
    "test_examples.py",
    "test_links.py",
    "test_metrics.py",
    "test_operator.py",
    "test_packaging.py",
    "test_retry_policy.py",
    "test_trigger.py",
)
"""All that ``--core`` runs: what most often breaks when a version changes."""

VARIATIONS = "no_key_query and Fault or bought_nothing_leaves"
"""Left out of these, as pytest's ``-k`` has it: they vary one theme."""


@dataclass(frozen=True)
class Cell:
    """One Airflow on one Python."""

    name: str

    @property
    def constraints(self) -> Path:
        """The file that pins every package of it."""
        if self.name == LOWEST:
            return CONSTRAINTS / "lowest.txt"
        airflow, python = self.name.split("-")
        return CONSTRAINTS / f"airflow-{airflow}-python-{python}.txt"

    @property
    def python(self) -> str:
        """Its Python, such as ``3.12``."""
        return LOWEST_PYTHON if self.name == LOWEST else self.name.split("-")[1]

    @property
    def home(self) -> Path:
        """Its virtual environment."""
        return ENVIRONMENTS / self.name

    @property
    def interpreter(self) -> Path:
        """The Python of its virtual environment."""
        return self.home / "bin" / "python"


@dataclass(frozen=True)
class Row:
    """What came of a cell: a line of the table."""

    cell: Cell
    airflow: str = ""
    python: str = ""
    passed: int = 0
    skipped: int = 0
    failed: int = 0
    seconds: float = 0
    remark: str = ""

    @property
    def is_good(self) -> bool:
        """Whether tests were run, and none failed."""
        return self.passed > 0 and not self.failed and not self.remark


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the tests")
    part = run.add_mutually_exclusive_group()
    part.add_argument("--quick", action="store_true", help="without what hardly ever depends on a version")
    part.add_argument(
        "--core",
        action="store_true",
        help="what is nearest to Airflow, on the oldest Airflow 3 and the lowest of all",
    )
    run.add_argument(
        "--pytest", default="", metavar="ARGUMENTS", help="for pytest, as a shell would take them"
    )
    constraints = commands.add_parser("constraints", help="write the files anew, with the newest versions")
    for command in (run, constraints):
        command.add_argument("cells", nargs="*", metavar="CELL", help=", ".join(CELLS))
    chosen = parser.parse_args(arguments)
    if unknown := sorted(set(chosen.cells) - set(CELLS)):
        parser.error(f"there is no cell {unknown[0]!r}: use {', '.join(CELLS)}")
    if chosen.command == "constraints":
        return write_constraints([Cell(name) for name in chosen.cells or CELLS])
    to_pytest = shlex.split(chosen.pytest)
    if chosen.quick:
        to_pytest += [f"--ignore=tests/{name}" for name in SAME_EVERYWHERE]
    if chosen.core:
        to_pytest += [*(f"tests/{name}" for name in NEAR_AIRFLOW), "-k", f"not ({VARIATIONS})"]
    names = chosen.cells or (oldest_cells() if chosen.core else CELLS)
    return run_cells(
        [Cell(name) for name in names], to_pytest, skip_missing=not (chosen.cells or chosen.core)
    )


def oldest_cells() -> tuple[str, str]:
    """The oldest Airflow 3 on a Python of this machine, this one if it can be, and the lowest of everything."""
    airflow, pythons = next((name, pythons) for name, pythons in PYTHONS.items() if name[0] == "3")
    this = "{}.{}".format(*sys.version_info)
    python = this if this in pythons else next(filter(find_python, pythons), pythons[0])
    return f"{airflow}-{python}", LOWEST


# Running.


def run_cells(cells: Sequence[Cell], to_pytest: Sequence[str], *, skip_missing: bool) -> int:
    """Run the tests in each cell, one after the other, and print the table.

    :param skip_missing: whether a cell whose Python is not on this machine is left out, or fails.
    """
    rows = []
    for cell in cells:
        interpreter = find_python(cell.python)
        if interpreter is None and skip_missing:
            print(f"No Python {cell.python} on this machine: {cell.name} is left out.", flush=True)
        elif interpreter is None:
            rows.append(Row(cell, remark=f"there is no Python {cell.python} on this machine"))
        else:
            rows.append(run_cell(cell, interpreter, to_pytest))
    print("\n" + table(rows))
    return 0 if rows and all(row.is_good for row in rows) else 1


def run_cell(cell: Cell, interpreter: Path, to_pytest: Sequence[str]) -> Row:
    """Set a cell up if need be, and run its tests."""
    print(f"\n=== {cell.name}", flush=True)
    try:
        set_up(cell, interpreter)
    except subprocess.CalledProcessError as error:
        return Row(cell, remark=f"could not be set up: {shlex.join(map(str, error.cmd))}")
    airflow, python = versions(cell)
    report = cell.home / "report.xml"
    report.unlink(missing_ok=True)
    start = time.monotonic()
    ended = subprocess.run(
        [cell.interpreter, "-m", "pytest", f"--junit-xml={report}", *workers(cell), *to_pytest],
        cwd=PROJECT,
        env=environment(),
        check=False,
    )
    seconds = time.monotonic() - start
    if not report.exists():
        return Row(cell, airflow, python, remark=f"pytest ended with exit status {ended.returncode}")
    passed, skipped, failed = counts(report)
    remark = "" if ended.returncode in (0, 1) else f"pytest ended with exit status {ended.returncode}"
    return Row(cell, airflow, python, passed, skipped, failed, seconds, remark)


def set_up(cell: Cell, interpreter: Path) -> None:
    """Make a cell's environment, unless it is there and of today's constraints and dependencies.

    :raises subprocess.CalledProcessError: it cannot be installed, or does not fit together.
    """
    stamp = cell.home / "made-of"
    today = fingerprint(cell)
    if stamp.exists() and stamp.read_text() == today:
        return
    print(f"Setting up {cell.home.relative_to(PROJECT)}", flush=True)
    shutil.rmtree(cell.home, ignore_errors=True)
    uv("venv", "--quiet", "--python", interpreter, cell.home)
    into = ("--quiet", "--python", cell.interpreter)
    uv("pip", "install", *into, "--constraint", cell.constraints, "--editable", ".[test]")
    uv("pip", "check", *into)
    stamp.write_text(today)


def fingerprint(cell: Cell) -> str:
    """Of all that a cell's environment is made of; what only other extras name is no part of it."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    # An editable install holds the entry points as they were.
    kept = ("requires-python", "dependencies", "entry-points", "scripts")
    made_of = {name: project[name] for name in kept} | {"test": sorted(extra(project, "test"))}
    text = json.dumps(made_of, sort_keys=True) + cell.constraints.read_text()
    return hashlib.sha256(text.encode()).hexdigest()


def extra(project: dict[str, Any], name: str) -> Iterator[str]:
    """What an extra installs, with the requirements of those of our extras that it refers to."""
    for requirement in project["optional-dependencies"][name]:
        if ours := re.fullmatch(rf"{re.escape(project['name'])}\[(.+)\]", requirement):
            for other in ours[1].split(","):
                yield from extra(project, other)
        else:
            yield requirement


def workers(cell: Cell) -> Iterator[str]:
    """Two of pytest's, each with an Airflow of its own: they would lock each other out of one SQLite file."""
    homes = cell.home / "airflow"
    shutil.rmtree(homes, ignore_errors=True)
    yield "--dist=worksteal"
    for number in (1, 2):
        yield f"--tx=popen//env:AIRFLOW_HOME={homes / str(number)}"


def environment() -> dict[str, str]:
    """This process's, but for what is set for another Airflow, AWS or Python."""
    foreign = ("AIRFLOW_", "AWS_", "PYTHON", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def versions(cell: Cell) -> tuple[str, str]:
    """Of Airflow and of Python, as the cell has them."""
    code = (
        "import platform; from importlib.metadata import version; "
        "print(version('apache-airflow'), platform.python_version())"
    )
    done = subprocess.run([cell.interpreter, "-c", code], check=True, capture_output=True, text=True)
    airflow, python = done.stdout.split()
    return airflow, python


def find_python(version: str) -> Path | None:
    """A Python of a minor version: this one, one on the PATH, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    candidates = [
        Path(sys.executable),
        Path(shutil.which(f"python{version}") or ""),
        *sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True),
    ]
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(Path.is_file, candidates):
        # pyenv puts a `python3.12` on the PATH that may only say which versions it has.
        done = subprocess.run([candidate, "-c", code], check=False, capture_output=True, text=True)
        if done.stdout.strip() == version:
            return candidate
    return None


def counts(report: Path) -> tuple[int, int, int]:
    """Passed, skipped and failed tests of a report of pytest's, in JUnit's format."""
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    tests, skipped, *failed = (int(suite.get(name, 0)) for name in ("tests", "skipped", "failures", "errors"))
    return tests - skipped - sum(failed), skipped, sum(failed)


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, as they stand in docs/versions.md."""
    lines = [
        "| cell | Airflow | Python | run | passed | skipped | failed | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        facts = (
            row.cell.name,
            row.airflow,
            row.python,
            row.passed + row.failed,
            row.passed,
            row.skipped,
            row.failed,
            f"{row.seconds:.0f}",
        )
        lines.append(f"| {' | '.join(map(str, facts))} |{row.remark and f' {row.remark}'}")
    return "\n".join(lines)


# Resolving and installing.


def write_constraints(cells: Sequence[Cell]) -> int:
    """Write the constraints of each cell anew, from what the package index has today."""
    for cell in cells:
        print(cell.constraints.relative_to(PROJECT), flush=True)
        cell.constraints.write_text(resolve(cell))
    return 0


def resolve(cell: Cell) -> str:
    """The text of a cell's constraints: names and versions, and a line that says what they are.

    :raises subprocess.CalledProcessError: there is no such set.
    """
    command: list[str | Path] = ["pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["--python-version", cell.python, "--extra", "test", "pyproject.toml"]
    pinned = ""
    if cell.name == LOWEST:
        command += ["--resolution", "lowest-direct"]
        what = f"The lowest versions that pyproject.toml allows, on Python {cell.python}"
    else:
        # The exact patch: left free, the newest of all else may win over the newest Airflow.
        minor = cell.name.split("-")[0]
        airflow = AIRFLOWS[minor]
        pinned = f"apache-airflow=={airflow}\n{BROKEN_BY.get(minor, '')}\n{PRE_RELEASES.get(minor, '')}\n"
        command += ["--constraint", "-"]
        what = f"Airflow {airflow} on Python {cell.python}"
    return f"# {what}. Made by: make constraints CELLS={cell.name}\n{uv(*command, text=pinned)}"


def uv(*arguments: str | Path, text: str = "") -> str:
    """Run uv, which is put beside the cells first: what it prints.

    :param text: its standard input.
    :raises subprocess.CalledProcessError: it failed, and has said why.
    """
    home = ENVIRONMENTS / "uv"
    program = home / "bin" / "uv"
    pip: list[str | Path] = [home / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    if not program.exists():
        venv.create(home, with_pip=True)
        subprocess.run([*pip, "install", "-qq", UV], check=True)
    # uv does not read pip's settings, and a mirror is set there.
    index = subprocess.run(
        [*pip, "config", "get", "global.index-url"], check=False, capture_output=True, text=True
    ).stdout.strip()
    settings = {"UV_DEFAULT_INDEX": os.environ.get("PIP_INDEX_URL") or index}
    done = subprocess.run(
        [program, *arguments],
        cwd=PROJECT,
        env={**{name: value for name, value in settings.items() if value}, **environment()},
        input=text,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())

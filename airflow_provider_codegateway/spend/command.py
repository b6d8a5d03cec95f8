"""``python -m airflow_provider_codegateway.spend``: what was bought, what requests would cost, what is unresolved."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.clip import split_uri
from airflow_provider_codegateway.commands import run_command
from airflow_provider_codegateway.exceptions import InvalidConnection, InvalidRequest
from airflow_provider_codegateway.models import PORTABLE, build_chain
from airflow_provider_codegateway.models.table import (
    ROW_FIELDS,
    Unreadable,
    csv_rows,
    is_set,
    json_rows,
    key_fields,
    parse_json,
    unknown_field,
)
from airflow_provider_codegateway.s3 import read_object
from airflow_provider_codegateway.spend.journal import Journal, Outcome
from airflow_provider_codegateway.spend.prices import cost_of_chain
from airflow_provider_codegateway.spend.report import (
    DIMENSIONS,
    FORMATS,
    estimate,
    open_rows,
    read_renders,
    render_rows,
    summarise,
)
from airflow_provider_codegateway.spend.settings import SpendSettings, parse_spend, read_spend

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

Connect = Callable[[str], tuple[SpendSettings, "S3Client"]]
"""The spend settings in an Airflow connection, and a client for its journal."""

_MAX_ROWS_BYTES = 64 * 1024 * 1024


class Place:
    """Where settings and journal come from, by the command's options.

    Nothing is asked for before it is used: an estimate needs no S3, and a report no price list.
    """

    def __init__(self, options: argparse.Namespace, connect: Connect) -> None:
        self._options = options
        self._connect = connect

    def settings(self) -> SpendSettings:
        """The price list and budgets."""
        return self._of_connection()[0] if self._options.settings is None else self._of_file()

    def journal(self) -> Journal:
        """The journal."""
        if self._options.journal is not None:
            settings, s3 = parse_spend({"journal": self._options.journal}, "--journal"), self._plain_s3()
        elif self._options.settings is not None:
            settings, s3 = self._of_file(), self._plain_s3()
        else:
            settings, s3 = self._of_connection()
        if settings.journal_location is None:
            raise InvalidConnection(
                'The spend settings name no journal. Add "journal": "s3://bucket/prefix".'
            )
        return Journal(s3, settings.journal_location, extra_args=settings.journal_extra_args)

    def read(self, path: str) -> str:
        """A file, here or in S3; ``-`` is the standard input."""
        if path == "-":
            return sys.stdin.read()
        if location := split_uri(path):
            try:
                return read_object(self._plain_s3(), location, _MAX_ROWS_BYTES).decode()
            except ValueError as error:
                raise InvalidRequest(f"{error}.") from None
        try:
            return Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{path} cannot be read ({type(error).__name__}).") from None

    def _of_connection(self) -> tuple[SpendSettings, S3Client]:
        return self._connect(self._options.conn_id)

    def _of_file(self) -> SpendSettings:
        path = self._options.settings
        if split_uri(path):
            return read_spend(path, self._plain_s3(), "--settings")
        try:
            return parse_spend(json.loads(self.read(path)), path)
        except ValueError as error:
            if isinstance(error, InvalidRequest):
                raise
            raise InvalidConnection(f"{path} is not JSON ({error}). Correct the file.") from None

    def _plain_s3(self) -> S3Client:
        import boto3

        client: S3Client = boto3.Session(profile_name=self._options.profile).client(
            "s3", endpoint_url=self._options.endpoint_url
        )
        return client


def main(arguments: Sequence[str] | None, connect: Connect) -> int:
    """Run the command; the exit status."""
    return run(parser().parse_args(arguments), connect)


def run(options: argparse.Namespace, connect: Connect) -> int:
    """Do what was parsed; the exit status."""
    return run_command(lambda: options.run(Place(options, connect), options))


def report(place: Place, options: argparse.Namespace) -> int:
    """What was bought, by DAG, task, run, model, clip, day or month. Days are UTC, and those of the reservation."""
    journal = place.journal()
    _, now = journal.state()
    renders = read_renders(journal, since=options.since, until=options.until)
    by = options.by.split(",")
    lines = [line.as_dict(by) for line in summarise(renders.values(), by, now)]
    if options.format == "table":
        if not lines:
            print(f"The journal {journal.location.uri} has no renders in this time.")
            return 0
        total = [
            {**dict.fromkeys(by, ""), by[0]: "total", **line.as_dict([])}
            for line in summarise(renders.values(), [], now)
        ]
        lines += total
    columns = list(lines[0]) if lines else [*by, "bought", "cost"]
    print(render_rows(lines, columns, options.format))
    if options.format == "table":
        _explain(total)
    return 0


def _explain(totals: list[dict[str, Any]]) -> None:
    print()
    for total in totals:
        if total["unpriced"]:
            print(
                f"{total['unpriced']} of the renders that were bought have no price: their cost is not in the sum."
            )
        if total["unknown"] or total["unresolved"]:
            print(
                "Unknown and unresolved renders may have been bought. Compare them with the vendor's bill: "
                "`unresolved` lists them, `release` gives back what was not bought."
            )


def unresolved(place: Place, options: argparse.Namespace) -> int:
    """Renders whose outcome is not known. They count against every budget."""
    journal = place.journal()
    rows = [row for row in open_rows(journal) if options.all or row["status"] != "in_flight"]
    columns = [
        "id",
        "status",
        "written",
        "dag_id",
        "task_id",
        "run_id",
        "map_index",
        "model",
        "uri",
        "at_most",
        "currency",
        "note",
    ]
    if options.format == "table" and not rows:
        print(f"The journal {journal.location.uri} has nothing unresolved.{_in_flight(journal)}")
        return 0
    print(render_rows(rows, columns, options.format))
    return 0


def _in_flight(journal: Journal) -> str:
    """What counts all the same, as a sentence with a blank before it."""
    due = [row["due"] for row in open_rows(journal) if row["status"] == "in_flight"]
    if not due:
        return ""
    count = "1 render is" if len(due) == 1 else f"{len(due):,} renders are"
    return f" {count} in flight, until {max(due)} at most: `unresolved --all` lists them."


def release(place: Place, options: argparse.Namespace) -> int:
    """Give back renders that were not bought, by the vendor's bill: they no longer count against budgets.

    One that turns out to be bought after all counts again.
    """
    journal = place.journal()
    known = {row["id"]: row for row in open_rows(journal)}
    if missing := [each for each in options.id if each not in known]:
        print(
            f"Not open in {journal.location.uri}: {', '.join(missing)}. Nothing was released.",
            file=sys.stderr,
        )
        return 1
    chosen = [known[each] for each in options.id] or [
        row for row in known.values() if row["status"] != "in_flight"
    ]
    if not chosen:
        print(f"There is nothing to release.{_in_flight(journal)}")
        return 0
    print(
        render_rows(
            chosen, ["id", "status", "written", "dag_id", "model", "uri", "at_most", "currency"], "table"
        )
    )
    if busy := [row["id"] for row in chosen if row["status"] == "in_flight"]:
        print(f"Still under way until they are due: {', '.join(busy)}.", file=sys.stderr)
    if not options.yes:
        print(
            f"\nRepeat with --yes to release {len(chosen)}. Compare them with the vendor's bill first.",
            file=sys.stderr,
        )
        return 1
    for row in chosen:
        journal.write(Outcome(kind="released", id=row["id"], by=options.by or _user(), note=options.note))
    print(
        f"\nReleased {len(chosen)} for the budgets. A clip's max_renders and max_cost still count them: to allow "
        "another render there, delete its entry with python -m airflow_provider_codegateway.ledger forget."
    )
    return 0


def estimate_rows(place: Place, options: argparse.Namespace) -> int:
    """What the requests in a file would cost: JSONL, a JSON list, or CSV. Every wrong row is listed at once."""
    settings = place.settings()
    defaults = _defaults(options.defaults)
    problems, lines, costs = [], [], []
    for number, row in enumerate(_rows(place.read(options.file), options.file), 1):
        arguments, wrong = _arguments(row, defaults)
        if not wrong:
            try:
                requests = build_chain(**arguments)
            except InvalidRequest as error:
                wrong = list(error.problems)
        if wrong:
            problems += [f"row {number}: {each}" for each in wrong]
            continue
        cost = cost_of_chain([settings.cost(request.body()) for request in requests])
        costs.append(cost)
        amounts = cost.as_dict() if cost else dict.fromkeys(("amount", "at_most", "currency"))
        assumed = ",".join(cost.assumed) if cost else ""
        lines.append({"row": number, "model": requests[0].model, **amounts, "assumed": assumed or None})
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        print("\n".join([f"{count}:", *(f"- {each}" for each in problems)]), file=sys.stderr)
        return 1
    total = estimate(costs).as_dict()
    columns = ["row", "model", "amount", "at_most", "currency", "assumed"]
    if options.format == "json":
        print(
            json.dumps(
                {**total, "rows": [{name: line[name] for name in columns} for line in lines]}, indent=2
            )
        )
        return 0
    print(render_rows(lines, columns, options.format))
    if options.format == "table":
        unpriced = f", {total['unpriced']} without a price of every model" if total["unpriced"] else ""
        amount = f"{total['amount']} {total['currency']}" if total["amount"] else "not known"
        if total["at_most"] and total["at_most"] != total["amount"]:
            amount += f", at most {total['at_most']} {total['currency']}"
        renders = "1 render" if total["renders"] == 1 else f"{total['renders']:,} renders"
        print(f"\n{renders}: {amount}{unpriced}.")
    return 0


def _defaults(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InvalidRequest(
            f"--defaults {text[:200]!r} is not an object of JSON, such as '{{\"duration\": 4}}'."
        )
    return values


def _rows(text: str, path: str) -> Iterator[Any]:
    """Each row as it was written, read as a batch reads it; a list of JSON besides."""
    text = text.removeprefix("\ufeff")
    if text.lstrip().startswith("["):
        try:
            yield from json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{path} is not JSON ({error}). Correct the file.") from None
        return
    lines = io.StringIO(text, newline="")
    try:
        yield from csv_rows(lines) if path.lower().endswith(".csv") else json_rows(lines)
    except csv.Error as error:
        raise InvalidRequest(f"{path} is not CSV ({error}). Correct the file.") from None


def _arguments(row: Any, defaults: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What of a row its price may depend on, and what is wrong with it."""
    if isinstance(row, Unreadable):
        return {}, [str(row)]
    if not isinstance(row, dict):
        return {}, [f"it is {type(row).__name__}, not an object with fields such as model and prompt."]
    given = {**defaults, **{name: value for name, value in row.items() if is_set(value)}}
    known = (*ROW_FIELDS, *key_fields(defaults.get("s3_key")))
    problems = [unknown_field(name) for name in given if name not in known]
    parse_json("parameters", given, problems)
    if "model" not in given:
        problems.append("model is missing.")
    return {name: given[name] for name in ("model", "fallbacks", *PORTABLE) if name in given}, problems


def _day(text: str) -> str:
    if not re.fullmatch(r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a day or a month, such as 2026-11-26 or 2026-11")
    return text


def _dimensions(text: str) -> str:
    if unknown := [each for each in text.split(",") if each not in DIMENSIONS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(DIMENSIONS)}")
    return text


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="python -m airflow_provider_codegateway.spend",
        description="What renders cost. Settings and journal are those of an Airflow connection, unless --settings or "
        "--journal says otherwise; S3 is then reached as boto3 does by itself.",
    )
    made.add_argument("--conn-id", default="codegateway_default", help="Airflow connection (%(default)s)")
    made.add_argument("--settings", help="a file of spend settings, here or at s3://")
    made.add_argument("--journal", help="s3://bucket/prefix of the journal")
    made.add_argument("--endpoint-url", help="of an S3 server other than AWS")
    made.add_argument("--profile", help="of the AWS configuration")
    commands = made.add_subparsers(required=True, metavar="command")

    def command(
        name: str, does: Callable[[Place, argparse.Namespace], int], words: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=words, description=does.__doc__)
        added.set_defaults(run=does)
        return added

    shown = command("report", report, "what was bought")
    shown.add_argument(
        "--by", type=_dimensions, default="month", help=f"any of {','.join(DIMENSIONS)} (%(default)s)"
    )
    shown.add_argument(
        "--since", type=_day, default="0000", metavar="DAY", help="first day or month, such as 2026-11"
    )
    shown.add_argument("--until", type=_day, default="9999", metavar="DAY", help="last day or month")
    estimated = command("estimate", estimate_rows, "what the requests in a file would cost")
    estimated.add_argument("file", help="JSONL, JSON or CSV, here or at s3://; - is the standard input")
    estimated.add_argument("--defaults", default="{}", help="JSON object of arguments for each row")
    opened = command("unresolved", unresolved, "renders whose outcome is not known")
    opened.add_argument("--all", action="store_true", help="those under way too")
    released = command("release", release, "give back what was not bought")
    released.add_argument(
        "id", nargs="*", help="ids, as `unresolved` lists them; all that are unresolved if left out"
    )
    released.add_argument("--by", help="who says so; you, if left out")
    released.add_argument("--note", help="why")
    released.add_argument("--yes", action="store_true", help="do it")
    for each in (shown, estimated, opened):
        each.add_argument("--format", choices=FORMATS, default="table", help="%(default)s")
    return made


def _user() -> str:
    try:
        return getuser()
    except (KeyError, OSError):  # a container's user has no name
        return "unknown"

"""The documentation, held against the code: snippets, commands, links, tables, messages, policies.

A Python block is text of a file. ``<!-- from: path -->`` on the line before its fence names that file; a
block without one must stand in a file of tests/.
"""

from __future__ import annotations

import argparse
import ast
import base64
import importlib
import inspect
import json
import re
import runpy
import shlex
import textwrap
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from media_samples import mp4_of, png
from moto.core.authorization import enable_iam_authentication
from moto.server import ThreadedMotoServer

from airflow_provider_codegateway import exceptions, gateway
from airflow_provider_codegateway.clip import Clip, ClipSpec, Member, S3Location, clip_location
from airflow_provider_codegateway.emulator import ClipFault, Emulator
from airflow_provider_codegateway.exceptions import CodeGatewayError, InvalidRequest
from airflow_provider_codegateway.gateway.settings import DEADLINE_FLOOR
from airflow_provider_codegateway.get_provider_info import CONNECTION_FIELDS
from airflow_provider_codegateway.inputs import MAX_BYTES
from airflow_provider_codegateway.ledger import Ledger, Turn
from airflow_provider_codegateway.ledger import command as ledger_command
from airflow_provider_codegateway.ledger.entry import situation
from airflow_provider_codegateway.limits import LIMITS, MIB
from airflow_provider_codegateway.models import MODELS, build_request
from airflow_provider_codegateway.operators.video import GenerateVideoOperator
from airflow_provider_codegateway.spend import command as spend_command
from airflow_provider_codegateway.triggers.video import RenderTrigger

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

PROJECT = Path(__file__).resolve().parent.parent
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
INSTANCE = {"dag_id": "d", "task_id": "clip", "run_id": "r", "map_index": -1}
MONEY = ("Nothing was bought.", "One render may have been bought.", "One render was bought.")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    source: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Table:
    page: str
    line: int
    header: list[str]
    rows: list[list[str]]


def lines_of(page: Path) -> list[str]:
    return page.read_text(encoding="utf-8").splitlines()


def blocks(language: str | None = None) -> list[Block]:
    found = []
    for page in PAGES:
        lines = lines_of(page)
        fences = [number for number, line in enumerate(lines) if line.startswith("```")]
        assert len(fences) % 2 == 0, f"a fence of {page.name} is not closed"
        for begin, end in zip(fences[::2], fences[1::2], strict=True):
            comment = re.fullmatch(r"<!-- from: (\S+) -->", lines[begin - 1]) if begin else None
            found.append(
                Block(
                    page.relative_to(PROJECT).as_posix(),
                    begin + 1,
                    lines[begin][3:].strip(),
                    comment and comment[1],
                    textwrap.dedent("\n".join(lines[begin + 1 : end])),
                )
            )
    return [block for block in found if language is None or block.language == language]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))


def tables(*header: str) -> list[Table]:
    """The tables whose header begins with these cells."""
    found = []
    for page in PAGES:
        lines = lines_of(page)
        for number, line in enumerate(lines):
            if not re.fullmatch(r"\|(-+\|)+", line.replace(" ", "")):
                continue
            rows = []
            for row in lines[number + 1 :]:
                if not row.startswith("|"):
                    break
                rows.append(cells(row))
            found.append(Table(page.name, number, cells(lines[number - 1]), rows))
    return [table for table in found if table.header[: len(header)] == list(header)]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def code(cell: str) -> str:
    """The text of a cell that is one code span."""
    assert re.fullmatch(r"`[^`]+`", cell), cell
    return cell[1:-1]


# Snippets.


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_is_text_of_a_file(block: Block) -> None:
    """What a reader copies is what runs here."""
    files = [PROJECT / block.source] if block.source else sorted((PROJECT / "tests").glob("*.py"))
    assert any(stands_in(block.text, lines_of(file)) for file in files), block.source or "no file of tests/"


def stands_in(text: str, lines: list[str]) -> bool:
    count = len(text.splitlines())
    return any(
        textwrap.dedent("\n".join(lines[start : start + count])) == text
        for start in range(len(lines) - count + 1)
    )


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_is_json(block: Block) -> None:
    """It can be pasted."""
    json.loads(block.text)


def test_every_block_says_what_it_is() -> None:
    """A language that no test here knows would go unchecked."""
    # Hidden from whoever reads the Markdown; `make docs` checks them.
    of_the_site = {"{toctree}", "{eval-rst}"}
    assert {block.language for block in blocks()} <= {
        "python",
        "json",
        "bash",
        "sql",
        "text",
        "",
        *of_the_site,
    }


def commands() -> Iterator[Any]:
    for block in blocks():
        for line in block.text.splitlines():
            words = shlex.split(line, comments=True) if block.language in ("bash", "") else []
            # A block without a language may also be output.
            if words and (block.language or words[0] in CHECKS):
                yield pytest.param(words, id=f"{block} {' '.join(words)[:50]}")


def check_make(words: list[str]) -> None:
    targets = re.findall(r"(?m)^([a-z]+):", (PROJECT / "Makefile").read_text())
    assert words
    assert [word for word in words if "=" not in word and word not in targets] == []


def check_airflow(words: list[str]) -> None:
    from airflow.cli.cli_parser import get_parser

    get_parser().parse_args(words)


def check_python(words: list[str]) -> None:
    flag, module, *arguments = words
    assert flag == "-m"
    parsers = {
        "airflow_provider_codegateway.ledger": ledger_command.parser,
        "airflow_provider_codegateway.spend": spend_command.parser,
        "airflow_provider_codegateway.emulator": emulator_parser,
    }
    parsers[module]().parse_args(arguments)


def emulator_parser() -> argparse.ArgumentParser:
    # By its name, for the package has an attribute of the same.
    parser: argparse.ArgumentParser = importlib.import_module(
        "airflow_provider_codegateway.emulator.__main__"
    )._parser()
    return parser


def check_pip(words: list[str]) -> None:
    install, *packages = words
    assert install == "install"
    assert all(
        re.fullmatch(r"(airflow-provider-codegateway|\.)(\[(emulator|media)\])?", name) for name in packages
    )


CHECKS: dict[str, Callable[[list[str]], object]] = {
    "make": check_make,
    "airflow": check_airflow,
    "python": check_python,
    "pip": check_pip,
    "codegateway-emulator": lambda words: emulator_parser().parse_args(words),
}


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_exists_and_takes_its_arguments(words: list[str]) -> None:
    """Each is parsed by the program's own parser."""
    CHECKS[words[0]](words[1:])


@pytest.mark.parametrize("parser", [ledger_command.parser, spend_command.parser, emulator_parser])
def test_the_help_of_a_command_is_in_the_reference(
    parser: Callable[[], argparse.ArgumentParser], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word, as a terminal of 100 columns shows it."""
    monkeypatch.setenv("COLUMNS", "100")
    texts = [block.text for block in blocks("text") if block.page == "docs/reference.md"]
    assert parser().format_help().strip() in texts


# The tutorial.


@pytest.mark.usefixtures("connections")
def test_what_the_tutorial_says_happens(
    gateway: Emulator, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A clip; none the second time; one of another model; and a refusal that costs nothing."""
    caplog.set_level("INFO")
    dag = runpy.run_path(str(PROJECT / "example_dags" / "example_first_clip.py"))["dag"]

    def run(**changes: Any) -> None:
        task = dag.get_task("render")
        vars(task).update(changes)
        task.render_template_fields({"params": {"bucket": bucket}})
        task.execute({"ti": SimpleNamespace(**INSTANCE, xcom_push=lambda **_: None)})

    _, log_line, refusal = (block.text for block in blocks("text") if block.page == "docs/tutorial.md")
    run()
    run()
    assert log_line.replace("codegateway-examples", bucket) in caplog.messages
    assert gateway.billed == 1
    run(model="bytedance/seedance-2.0", s3_key="clips/another.mp4")
    assert gateway.billed == 2
    with pytest.raises(InvalidRequest) as error:
        run(model="google/veo-3.1-fast", duration=5)
    assert str(error.value) == refusal


# The reference, and what is stored between two versions.


def public_names() -> Iterator[Any]:
    for table in tables("name", "is", "source"):
        source = ""
        for cell, _, link in table.rows:
            source = source if link == "the same" else link.partition("(")[2].rstrip(")")
            for name in re.findall(r"`(\w+)`", cell):
                yield pytest.param(name, PROJECT / "docs" / source, id=f"{table.page} {name}")


@pytest.mark.parametrize(("name", "source"), list(public_names()))
def test_a_public_name_is_in_the_file_that_is_named(name: str, source: Path) -> None:
    """As a class, a function, or a value of the manifest."""
    assert re.search(rf"(?m)^(class|def) {name}\b|^[A-Z_]+ = \"{name}\"", source.read_text())


def test_what_is_stored_has_the_fields_of_the_page(s3: S3Client, bucket: str) -> None:
    """A field that is renamed is a thing to say on upgrading."""
    (table,) = tables("stored", "where")
    described = {row[0].strip("`"): re.findall(r"`(\w+)`", row[2]) for row in table.rows}
    spec = ClipSpec(
        model="m",
        fingerprint="f",
        target=S3Location(bucket, "a.mp4"),
        requester="r",
        fallbacks=(Member(model="n"),),
    )
    answer = gateway.Answer(body=b"{}", render_seconds=120)
    entry = Ledger.of_clip(s3, spec)
    entry.open({"model": "m"}, {"model": "n"})
    assert entry.claim(1, claim_seconds=330, turn=Turn(0, "m"))
    entry.keep(1, answer)
    entry.show_life(1)
    entry.abandon(1, "the link expired", answer=answer)
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    stored = {
        key.rpartition("/")[2].replace("1.", "n."): list(
            json.load(s3.get_object(Bucket=bucket, Key=key)["Body"])
        )
        for key in keys
    }
    trigger = RenderTrigger(
        codegateway_conn_id="codegateway_default", aws_conn_id=None, **spec.as_arguments()
    )
    assert described == {
        **stored,
        "answer": list(answer.as_dict()),
        "clip": list(Clip.__dataclass_fields__),
        "trigger": list(trigger.serialize()[1]),
        "connection": list(CONNECTION_FIELDS),
    }


@pytest.mark.parametrize(
    ("model", "fingerprint"),
    [
        ("google/veo-3.1-fast", "a854d12b336c49e2442311af1e803151486b08052995bca1a3ef6116f44af6f4"),
        ("bytedance/seedance-2.0", "b45d3e263977747d30236123d78c34859fe1306ff35f43358ab83f3833066ee2"),
        ("minimax/hailuo-2.3-fast", "159ff2b53bd7fd735cb8d8e1aa3d8f0d5d3f2c69d018de445b265dc8dfdace8b"),
        ("acme/next-1", "783cf303bc2f142b3dab52fd2f0dbbff39ea6a3ceb59a1e8a6d397df2b596129"),
    ],
)
def test_a_request_has_the_fingerprint_that_it_had_in_the_first_release(model: str, fingerprint: str) -> None:
    """With another one, clips that are in place would be another request's: docs/upgrading.md."""
    image = f"data:image/png;base64,{base64.b64encode(bytes.fromhex('89504e470d0a1a0a') + bytes(8)).decode()}"
    request = build_request(model, prompt="A teapot", image=image, duration=6, resolution="1080p")
    request = request.with_media(lambda reference, _: reference.partition(",")[2])
    assert request.fingerprint() == fingerprint


# Links.


def links() -> Iterator[Any]:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if not target.startswith(("https://", "http://")):
                yield pytest.param(page, target, id=f"{page.name} {target}")


@pytest.mark.parametrize(("page", "target"), list(links()))
def test_a_link_leads_somewhere(page: Path, target: str) -> None:
    """To a file that exists, and in it to a heading that exists."""
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.exists()
    assert not anchor or anchor in anchors(file)


def test_every_picture_is_shown_and_described() -> None:
    """In words, for who does not see it; and small, for it stays in the repository's history."""
    shown = {}
    for page in PAGES:
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", prose(page)):
            assert len(words) > 20, f"{page.name}: {target}"
            shown[(page.parent / target).resolve()] = words
    assert shown.keys() == set((PROJECT / "docs" / "screenshots").iterdir())
    assert max(picture.stat().st_size for picture in shown) < 250_000


@cache
def anchors(page: Path) -> frozenset[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose(page))
    return frozenset(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings)


def test_the_index_has_every_page() -> None:
    """A page that nobody finds is not there."""
    index = (PROJECT / "docs" / "README.md").read_text()
    assert [
        page.name for page in PAGES[1:] if page.name != "README.md" and f"({page.name})" not in index
    ] == []


# What the tables say of the request.


@pytest.mark.parametrize("row", [row for table in tables("you write", "message") for row in table.rows])
def test_a_bad_request_is_answered_with_this_message(row: list[str]) -> None:
    """Word for word; the sentence about money follows on a line of its own."""
    arguments = arguments_of(row[0])
    with pytest.raises(InvalidRequest) as refusal:
        build(arguments)
    assert str(refusal.value) == f"{code(row[1])}\n{exceptions.Bought.NO.value}"


def build(arguments: dict[str, Any]) -> None:
    if "s3_key" in arguments:
        clip_location(arguments["s3_key"], arguments.get("s3_bucket"))
    else:
        build_request(**arguments)


def arguments_of(cell: str) -> dict[str, Any]:
    arguments: dict[str, Any] = eval(f"dict({code(cell)})", {"dict": dict})
    return arguments


@pytest.mark.parametrize(
    ("model", "written", "sent"),
    [
        (code(model), row[0], cell)
        for table in tables("you write", "`google/veo-3.1-fast`")
        for row in table.rows
        for model, cell in zip(table.header[1:], row[1:], strict=True)
    ],
)
def test_a_portable_value_is_sent_like_this(model: str, written: str, sent: str) -> None:
    """Or refused."""
    arguments = {"prompt": "p", **arguments_of(written)}
    if sent == "refused":
        with pytest.raises(InvalidRequest):
            build_request(model, **arguments)
        return
    body = build_request(model, **arguments).body()
    name, colon, _ = sent.partition(":")
    if colon and not sent.startswith('`"'):
        assert code(name) in body  # described in words
        return
    own = {name: value for name, value in body.items() if name not in ("model", "prompt")}
    assert own == json.loads(f"{{{code(sent)}}}")


def test_every_argument_is_in_the_table() -> None:
    """With its default, and whether it is a template."""
    (table,) = tables("argument")
    described = {code(row[0]): row[1:] for row in table.rows}
    parameters = inspect.signature(GenerateVideoOperator.__init__).parameters
    own = {name for name in parameters if name not in ("self", "kwargs")}
    assert described.keys() == own
    assert {name for name, row in described.items() if row[0] == "T"} == set(
        GenerateVideoOperator.template_fields
    )
    for name, (_, _, default) in described.items():
        if default.startswith("`"):
            assert ast.literal_eval(code(default)) == parameters[name].default, name


def test_every_parameter_of_every_model_is_described() -> None:
    """The portable ones by name, the others as ``parameters``."""
    (own,) = tables("model", "parameters")
    portable = inspect.signature(build_request).parameters.keys()
    for (words, names), (model, request) in zip(own.rows, MODELS.items(), strict=True):
        assert words.lower() in model
        assert set(re.findall(r"`(\w+)`", names)) == {
            name for name in request.model_fields if name not in portable or name == "image_input"
        }


def test_every_fact_of_a_clip_is_described() -> None:
    """XCom ``clip``."""
    (table,) = tables("`clip[…]`")
    described = [name for row in table.rows for name in re.findall(r"`(\w+)`", row[0])]
    assert described == list(Clip.__dataclass_fields__)


# What the tables say of errors.


def test_every_error_is_described_as_it_is() -> None:
    """Whether it cost money, and whether Airflow retries it."""
    (table,) = tables("error", "bought?")
    described = {code(row[0]): row for row in table.rows}
    classes = {
        name: item
        for name, item in vars(exceptions).items()
        if isinstance(item, type) and issubclass(item, CodeGatewayError) and item is not CodeGatewayError
    }
    assert described.keys() == classes.keys()
    for name, error in classes.items():
        _, bought, retried, _ = described[name]
        assert error.bought.name.lower() in bought, name
        assert retried.startswith("no") == issubclass(error, AirflowFailException), name


@pytest.mark.parametrize("sentence", MONEY)
def test_messages_end_with_these_sentences(sentence: str) -> None:
    """The index quotes them."""
    assert sentence in {bought.value for bought in exceptions.Bought}
    assert f"`{sentence}`" in (PROJECT / "docs" / "README.md").read_text()


@pytest.mark.parametrize("row", [row for table in tables("if", "message") for row in table.rows], ids=str)
def test_a_quoted_message_is_one_of_the_code(row: list[str]) -> None:
    """Some string of the package has these words, with values in its gaps."""
    message = code(row[1])
    assert any(template.fullmatch(message) for template in templates())


@cache
def templates() -> list[re.Pattern[str]]:
    """Every string of the package that says something, with its gaps open."""
    found = []
    for file in sorted((PROJECT / "airflow_provider_codegateway").glob("**/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.JoinedStr(values):
                    parts = values
                case ast.Constant(str()):
                    parts = [node]
                case _:
                    continue
            words = [str(part.value) for part in parts if isinstance(part, ast.Constant)]
            if sum(map(len, words)) >= 12:
                pattern = [re.escape(str(p.value)) if isinstance(p, ast.Constant) else ".+" for p in parts]
                found.append(re.compile("".join(pattern), re.DOTALL))
    return found


def test_the_ledger_command_says_what_the_page_says() -> None:
    """Each situation of an entry."""
    (table,) = tables("it says")
    source = inspect.getsource(situation)
    assert [words for words, *_ in table.rows if f'"{code(words)}"' not in source] == []
    assert len(table.rows) == source.count("return")


# Numbers.


def test_the_seconds_and_sizes_in_the_pages_are_those_of_the_code() -> None:
    """A constant that is changed is changed in the pages, too."""
    text = {page.name: page.read_text() for page in PAGES}
    defaults = gateway.GatewaySettings(api_key="sk-cg-x")
    claim = f"{defaults.deadline + LIMITS.claim_margin:.0f} s"
    assert f"`deadline` + {LIMITS.claim_margin:.0f} s ({claim})" in text["ledger.md"]
    assert f"({claim} at most)" in text["what-you-pay.md"]
    assert f"(up to {claim})" in text["operator.md"]
    assert f"first {LIMITS.settle_grace:.0f} s only" in text["ledger.md"]
    assert f"within {LIMITS.receipt_patience:.0f} s" in text["what-you-pay.md"]
    assert f"`Retry-After` is above {LIMITS.longest_backoff:.0f} s" in text["connection.md"]
    assert f"less than {DEADLINE_FLOOR:.0f} s" in text["connection.md"]
    assert f"at most {MAX_BYTES // MIB} MiB" in text["operator.md"]
    (fields,) = tables("field", "holds")
    described = {row[0].split("`")[1]: row[2] for row in fields.rows if row[0].startswith("Extra")}
    assert described.keys() == CONNECTION_FIELDS.keys()
    numbers = [name for name, field in CONNECTION_FIELDS.items() if "string" not in field["schema"]["type"]]
    assert {name: f"{getattr(defaults, name):g}" for name in numbers} == {
        name: described[name] for name in numbers
    }


# Retries.


def test_the_policies_of_the_page_work_together() -> None:
    """The gateway's wish first, then the author's rule, then the task's own."""
    pytest.importorskip("airflow.sdk.definitions.retry_policy", reason="Airflow 3.3")
    from airflow.providers.common.compat.sdk import (
        ChainRetryPolicy,
        ExceptionRetryPolicy,
        RetryAction,
        RetryRule,
    )

    from airflow_provider_codegateway.exceptions import RenderOutcomeUnknown
    from airflow_provider_codegateway.retry_policy import CodeGatewayRetryPolicy

    retry_policy = ChainRetryPolicy(
        [
            CodeGatewayRetryPolicy(),
            # A person shall look at the bill before a second render is bought.
            ExceptionRetryPolicy([RetryRule(RenderOutcomeUnknown, action=RetryAction.FAIL)]),
        ]
    )
    busy = exceptions.GatewayUnavailable("busy", retry_after=5)
    actions = [
        retry_policy.evaluate(error, 1, 3).action for error in (busy, RenderOutcomeUnknown("?"), OSError("?"))
    ]
    assert actions == [RetryAction.RETRY, RetryAction.FAIL, RetryAction.DEFAULT]


# Permissions.


def policy_of_the_page() -> dict[str, Any]:
    (policy,) = [
        content
        for block in blocks("json")
        if "Statement" in (content := json.loads(block.text)) and "s3:" in block.text
    ]
    assert isinstance(policy, dict)
    return policy


@dataclass
class Account:
    """An AWS of our own, which enforces policies; and a user in it with one policy."""

    s3: S3Client
    user: dict[str, str]
    place: dict[str, str]
    put_policy: Any


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    place = {"endpoint_url": f"http://{host}:{port}", "region_name": "us-east-1"}
    root = boto3.Session("root", "root")
    s3, iam = root.client("s3", **place), root.client("iam", **place)  # type: ignore[call-overload]
    s3.create_bucket(Bucket="acme-clips")
    s3.put_object(Bucket="acme-clips", Key="input/a.png", Body=png())
    iam.create_user(UserName="airflow")
    user = iam.create_access_key(UserName="airflow")["AccessKey"]

    def put_policy(policy: dict[str, Any]) -> None:
        # moto asks for the permission to delete several objects on the bucket; AWS does so on each object.
        batch = [
            {"Effect": "Allow", "Action": "s3:DeleteObject", "Resource": "arn:aws:s3:::acme-clips"}
            for statement in policy["Statement"]
            if "s3:DeleteObject" in statement["Action"]
        ]
        document = {**policy, "Statement": policy["Statement"] + batch}
        iam.put_user_policy(UserName="airflow", PolicyName="docs", PolicyDocument=json.dumps(document))

    yield Account(s3, {"login": user["AccessKeyId"], "password": user["SecretAccessKey"]}, place, put_policy)
    server.stop()


@pytest.fixture
def clip(account: Account, gateway: Emulator, monkeypatch: pytest.MonkeyPatch, no_pauses: None) -> Any:
    """Makes a clip as the user whom only the policy allows anything."""
    gateway.serve_clip(mp4_of(9 * 1024 * 1024))
    codegateway = {"conn_type": "codegateway", "host": gateway.url, "password": gateway.api_key}
    # A client of its own: what one was allowed is taken for granted for a while.
    extra = {**account.place, "config_kwargs": {"user_agent_extra": uuid.uuid4().hex}}
    aws = {"conn_type": "aws", **account.user, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT", json.dumps(codegateway))
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(aws))
    operator = GenerateVideoOperator(
        task_id="clip",
        model="bytedance/seedance-2.0",
        prompt="p",
        image="s3://acme-clips/input/a.png",
        s3_key="s3://acme-clips/clips/a.mp4",
        do_xcom_push=False,
    )
    instance = SimpleNamespace(dag_id="d", task_id="clip", run_id="r", map_index=-1)

    def execute() -> None:
        with enable_iam_authentication():
            operator.execute({"ti": instance})  # type: ignore[typeddict-item]

    yield execute
    for item in account.s3.list_objects_v2(Bucket="acme-clips").get("Contents", []):
        if not item["Key"].startswith("input/"):
            account.s3.delete_object(Bucket="acme-clips", Key=item["Key"])


def without(policy: dict[str, Any], sid: str, action: str) -> dict[str, Any]:
    """The policy less one action of one statement."""
    statements = []
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        left = [each for each in actions if statement["Sid"] != sid or each != action]
        if left:
            statements.append({**statement, "Action": left})
    return {**policy, "Statement": statements}


def test_the_least_policy_is_enough(
    account: Account, clip: Any, gateway: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Also after a transfer that failed: nothing is denied, and nothing is left but the clip."""
    account.put_policy(policy_of_the_page())
    gateway.fail_next(ClipFault.html())
    with pytest.raises(exceptions.ClipTransferError):
        clip()
    clip()
    assert "denied" not in caplog.text
    listed = account.s3.list_objects_v2(Bucket="acme-clips")["Contents"]
    assert [item["Key"] for item in listed] == ["clips/a.mp4", "input/a.png"]


@pytest.mark.parametrize(
    ("sid", "action"),
    [
        ("Bucket", "s3:ListBucket"),
        ("Clips", "s3:GetObject"),
        ("Bucket", "s3:ListBucketMultipartUploads"),
        ("Clips", "s3:PutObject"),
        ("Clips", "s3:AbortMultipartUpload"),
        ("Ledger", "s3:PutObject"),
        ("Ledger", "s3:GetObject"),
        ("Ledger", "s3:DeleteObject"),
        ("Inputs", "s3:GetObject"),
    ],
)
def test_a_missing_permission_is_named_before_anything_is_bought(
    sid: str, action: str, account: Account, clip: Any, gateway: Emulator
) -> None:
    """All rows of the page: nothing is seen only afterwards."""
    account.put_policy(without(policy_of_the_page(), sid, action))
    with pytest.raises(exceptions.InvalidTarget, match=action):
        clip()
    assert gateway.ledger == ()


def test_the_lifecycle_rules_are_taken(account: Account) -> None:
    """As they stand in the page."""
    (rules,) = [content for block in blocks("json") if "Rules" in (content := json.loads(block.text))]
    account.s3.put_bucket_lifecycle_configuration(Bucket="acme-clips", LifecycleConfiguration=rules)
    assert len(account.s3.get_bucket_lifecycle_configuration(Bucket="acme-clips")["Rules"]) == 2

"""The troubleshooting page, held against the code: it has every message, and no message that nobody says.

A *template* is a message as the source has it, with ``…`` for each value. A *quote* is one as the page has it, with
``…`` for values or for a rest that is left out.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from airflow_run import AIRFLOW

import airflow_provider_codegateway
from airflow_provider_codegateway import exceptions

ROOT = Path(airflow_provider_codegateway.__file__).parent
PAGE = ROOT.parent / "docs" / "troubleshooting.md"
GAP = "…"
LEAST_WORDS = 9
"""Characters, without gaps, that a message must have to be one: else it shows another message."""

# Functions that return sentences, which others raise.
SENTENCES = {
    "models/problems.py": {"problem_in_words", "_no_such_parameter", "given_twice", "placeholder"},
    "models/build.py": {"_unsendable"},
    "gateway/probe.py": None,
}

NOT_IN_THE_PAGE = {
    "a proxy without a host": "stands in 'The proxy of the environment, …, cannot be used (…)'",
    "A claim must outlast the look before the POST and the receipt's write after it.": "checks our own limits",
    "A part is whole blocks.": "the same",
    "A render is reserved between its claim and the POST.": "the same",
    "A transfer must show that it lives before others take its clip, and may miss two beats.": "the same",
    "it was answered before it was sent": "stands in 'The connection broke before the request was sent whole (…)'",
    "blank": "is turned into '… is required for …'",
    "(only … … it)": "stands in '… has no parameter …'",
    ", the proxy of the environment (…),": "stands in the answers of a connection test",
    "a run that is cut off": "is caught: such a clip has no facts",
    "a table that is cut off": "the same",
    "a box that is longer than the one around it": "the same",
    "ended at byte … of …": "stands in 'The download of … broke …'",
    "answered …": "the same",
    "answered … with another range than asked for": "the same",
    "brought another clip than before": "the same",
    "ended before it came to where it broke before": "the same",
    "it has too many levels": "is part of '… is not JSON (…)'",
    "it has no answer": "stands in '… is no marker of this ledger (…)'",
    "it has no fingerprint": "stands in '… is no marker of this ledger (…)'",
    "defer does not return": "is for mypy: nothing gets there",
    "module … has no attribute …": "Python's own words for a misspelt import",
}
"""Templates that no user meets as such, with the reason."""

OF_AIRFLOW = {
    "because the dag is not serialized": "airflow.serialization.definitions.dag",
    "Exception rendering Jinja template for task": "airflow.sdk.definitions._internal.templater",
    "Invalid arguments were passed to": "airflow.sdk.bases.operator",
    "missing keyword argument": "airflow.sdk.bases.operator",
    "Triggerer's async thread was blocked": "airflow.jobs.triggerer_job_runner",
    "Trigger timeout": "airflow.sdk.bases.operator",
    "Trigger failure": "airflow.sdk.bases.operator",
    "but the task instance's state attribute is": "airflow.jobs.scheduler_job_runner",
    "Testing connections is disabled in Airflow configuration.": "airflow.cli.commands.connection_command",
    "does not support connection testing": "airflow.jobs.scheduler_job_runner",
}
"""A piece of each message of Airflow in the page, and the module of Airflow 3.3 that says it."""


# The source.


@dataclass(frozen=True)
class Message:
    """A template, and where it is said."""

    template: str
    where: str

    def __str__(self) -> str:
        return f"{self.where} {self.template[:40]}"


def template_of(node: ast.AST) -> str:
    match node:
        case ast.Constant(str(text)):
            return text
        case ast.JoinedStr(values):
            return "".join(template_of(value) for value in values)
        case ast.BinOp(left, ast.Add(), right):
            return template_of(left) + template_of(right)
    return GAP


def of_log(text: str) -> str:
    return re.sub(r"%[-+ #0]*[\d.]*[a-z]", GAP, text)


def words(text: str) -> str:
    return text.replace(GAP, "")


def is_error(name: str) -> bool:
    """Whether this is the name of an exception, ours, Python's, or of any file's own."""
    last = name.rpartition(".")[2]
    return last in vars(exceptions) or bool(
        re.fullmatch(r"_?[A-Z]\w*(Error|Exit)|_Broken|NoLink|Stopped", last)
    )


def said_by(call: ast.Call) -> Iterator[ast.expr]:
    """What a call says to a user: an exception's text, a log line of level warning or above, a line on stderr."""
    name = ast.unparse(call.func)
    if not call.args:
        return
    if is_error(name):
        yield from call.args
    is_log = re.fullmatch(r"(self\.)?log\.(warning|error|exception|critical)", name)
    if is_log or (name == "print" and any(keyword.arg == "file" for keyword in call.keywords)):
        yield call.args[0]


def returned_by(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.expr]:
    """The strings in what a function returns or assigns."""
    for node in ast.walk(function):
        if isinstance(node, ast.Return | ast.Assign) and node.value is not None:
            parts: list[ast.expr] = [node.value]
            while parts:
                part = parts.pop()
                match part:
                    case ast.Tuple(items) | ast.List(items):
                        parts += items
                    case ast.IfExp(_, one, other):
                        parts += [one, other]
                    case ast.JoinedStr() | ast.Constant(str()):
                        yield part


@cache
def messages() -> list[Message]:
    """Every message of the package. The emulator's answers are those of a gateway, which it stands for."""
    answers = {
        ROOT / "emulator" / name for name in ("calls.py", "answers.py", "links.py", "media.py", "rules.py")
    }
    files = sorted(set(ROOT.rglob("*.py")) - answers)
    return [
        message
        for file in files
        for message in messages_in(file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix())
    ]


def messages_in(source: str, name: str) -> Iterator[Message]:
    for node in ast.walk(ast.parse(source)):
        said: list[ast.expr] = []
        if isinstance(node, ast.Call):
            said = list(said_by(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and name in SENTENCES:
            chosen = SENTENCES[name]
            said = list(returned_by(node)) if chosen is None or node.name in chosen else []
        for each in said:
            template = of_log(template_of(each)).strip()
            if len(words(template)) >= LEAST_WORDS or template in NOT_IN_THE_PAGE:
                yield Message(template, f"{name}:{each.lineno}")


@cache
def templates() -> list[str]:
    """Every string of the package that says something, and the pages' texts."""
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant | ast.JoinedStr):
                text = of_log(template_of(node)).strip()
                found += [text] if len(words(text).strip()) >= LEAST_WORDS else []
    found += [file.read_text(encoding="utf-8") for file in sorted((ROOT / "plugins" / "pages").rglob("*.js"))]
    return [*found, *(bought.value for bought in exceptions.Bought)]


# The page.


def quotes(section: str | None = None) -> list[str]:
    """The code spans in the first column of each table of messages."""
    text = PAGE.read_text(encoding="utf-8")
    if section is not None:
        text = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    found: list[str] = []
    in_table = False
    for line, following in pairwise([*text.splitlines(), ""]):
        if re.match(r"\|(-+\|)+", following):
            in_table = line.split("|")[1].strip() in ("message", "answer", "sentence")
        elif line.startswith("|") and in_table and not line.startswith("|---"):
            found += [
                span[2]
                for span in re.finditer(r"(`+) ?(.+?) ?\1(?!`)", re.split(r" \| ", line, maxsplit=1)[0])
            ]
    return found


def says(template: str, quote: str) -> bool:
    """Whether a quote is an instance of a template, or has nothing but pieces of it, in their order."""
    if joined(template, ".*").fullmatch(quote):
        return True
    longest = max(len(piece.strip()) for piece in quote.split(GAP))
    return longest >= LEAST_WORDS and bool(joined(quote, ".*").search(template))


@cache
def joined(text: str, gap: str) -> re.Pattern[str]:
    return re.compile(gap.join(re.escape(piece) for piece in text.split(GAP)), re.DOTALL)


OWN_QUOTES = [quote for quote in quotes() if quote not in quotes("Airflow's own messages")]


def missing(said: list[Message]) -> list[Message]:
    """Those that the page does not have."""
    return [
        message
        for message in said
        if message.template not in NOT_IN_THE_PAGE
        # A part of a message, such as a hint, stands within the whole.
        and not any(
            says(message.template, quote) or joined(message.template, ".*").search(quote)
            for quote in OWN_QUOTES
        )
    ]


def unsaid(quoted: list[str]) -> list[str]:
    """Those that nobody says; or has but the gaps for, which anything fits into."""
    return [
        quote
        for quote in quoted
        if not any(says(template, quote) for template in templates())
        or not all(
            are_words_of_the_code(piece.strip(" .:;()")) for piece in re.split(r"…|\d+|(?<=[.:]) ", quote)
        )
    ]


def are_words_of_the_code(piece: str) -> bool:
    """Of one string, or of one and of another that fills a gap of it; or too few to tell."""
    if len(piece) < LEAST_WORDS:
        return True
    cuts = [match.start() for match in re.finditer(" ", piece)]
    return is_in_code(piece) or any(
        is_in_code(piece[:cut]) and is_in_code(piece[cut:].strip()) for cut in cuts
    )


def is_in_code(words: str) -> bool:
    return any(words in template for template in templates())


def test_every_message_is_in_the_page() -> None:
    """Whoever meets it finds it by a search."""
    assert missing(messages()) == []


def test_every_quote_is_said_by_the_code() -> None:
    """Words that were changed in the code are changed in the page."""
    assert unsaid(OWN_QUOTES) == []


@pytest.mark.parametrize(
    "line",
    [
        "log.warning('The moon over %s is full.', bucket)",
        "self.log.error(f'The moon over {bucket} is full.')",
        "raise InvalidTarget(f'The moon over {bucket} is full.')",
        "raise ValueError('The moon is ' + 'full, wait.') from None",
        "print('The moon is full.', file=sys.stderr)",
    ],
)
def test_a_new_message_would_be_missed(line: str) -> None:
    """However it is said."""
    assert len(missing(list(messages_in(line, "moon.py")))) == 1


@pytest.mark.parametrize(
    "quote",
    [
        "The moon over … is full.",
        "The gateway answered 401: …. Check the phase of the moon.",
        "The gateway could not be reached by moonlight (…).",
    ],
)
def test_a_quote_that_rots_would_be_found(quote: str) -> None:
    """Also one that fits into the gaps of a message."""
    assert unsaid([quote]) == [quote]


def test_no_exclusion_outlives_its_message() -> None:
    """What is left out is still there to be left out."""
    assert NOT_IN_THE_PAGE.keys() <= {message.template for message in messages()}


def test_every_public_error_is_in_the_page() -> None:
    """By its class, as Airflow's log names it."""
    text = PAGE.read_text(encoding="utf-8")
    missing = [
        name
        for name, item in vars(exceptions).items()
        if isinstance(item, type)
        and issubclass(item, exceptions.CodeGatewayError)
        and item is not exceptions.CodeGatewayError
        and f"| `{name}` |" not in text
    ]
    assert missing == []


def test_every_message_of_airflow_is_said_by_airflow() -> None:
    """In the module where the newest supported version says it."""
    for piece in OF_AIRFLOW:
        assert any(piece in quote for quote in quotes("Airflow's own messages")), piece
    for quote in quotes("Airflow's own messages"):
        assert any(piece in quote for piece in OF_AIRFLOW), quote
    if AIRFLOW < (3, 3):
        pytest.skip("The page quotes Airflow 3.3.")
    for piece, module in OF_AIRFLOW.items():
        spec = importlib.util.find_spec(module)
        assert spec is not None, module
        source = re.sub(r'"\s+f?"', "", Path(str(spec.origin)).read_text(encoding="utf-8"))
        assert piece in source, (piece, module)


@pytest.mark.parametrize(
    ("template", "quote", "is_said"),
    [
        ("The gateway answered …: ….", "The gateway answered 429: ….", True),
        ("The gateway answered …: ….", "The gateway replied 429: ….", False),
        ("… is larger than …", "… is larger than …", True),
        ("… is larger than …", "… is smaller than …", False),
        ("max_renders=… is used up: … Now raise it.", "max_renders=… is used up", True),
        ("max_renders=… is used up: … Now raise it.", "Now raise it. max_renders=…", False),
        ("max_renders=… is used up: … Now raise it.", "… is …", False),
    ],
)
def test_a_quote_must_have_the_words_of_its_template(template: str, quote: str, is_said: bool) -> None:
    """The comparison itself can fail."""
    assert says(template, quote) is is_said

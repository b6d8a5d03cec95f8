"""``airflow codegateway ledger …`` and ``airflow codegateway spend …``: our commands as part of Airflow's, from 3.2 on.

They take the same arguments as ``python -m airflow_provider_codegateway.ledger`` and ``…spend``, each after the name of
the subcommand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.cli.cli_config import CLICommand


def get_commands() -> list[CLICommand]:
    """The commands, for Airflow's provider manager."""
    from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand

    from airflow_provider_codegateway.hooks.command_line import connect_ledger, connect_spend
    from airflow_provider_codegateway.ledger import command as ledger
    from airflow_provider_codegateway.spend import command as spend

    def group(name: str, parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> Any:
        return GroupCommand(
            name=name,
            help=(parser.description or "").partition(". ")[0].rstrip("."),
            subcommands=[
                ActionCommand(
                    name=each.prog.rpartition(" ")[2],
                    help=help_text,
                    description=each.description,
                    func=_doing(each.get_default("run"), run),
                    args=[
                        Arg(**_as_arg(action))  # type: ignore[no-untyped-call]
                        for action in (*_arguments(each), *_arguments(parser))
                    ],
                )
                for each, help_text in _subcommands(parser)
            ],
        )

    return [
        GroupCommand(
            name="codegateway",
            help="What CodeGateway clips were bought, and what they cost",
            subcommands=[
                group("ledger", ledger.parser(), lambda options: ledger.run(options, connect_ledger)),
                group("spend", spend.parser(), lambda options: spend.run(options, connect_spend)),
            ],
        )
    ]


def _doing(
    does: Callable[..., int], run: Callable[[argparse.Namespace], int]
) -> Callable[[argparse.Namespace], None]:
    def do(options: argparse.Namespace) -> None:
        options.run = does
        sys.exit(run(options))

    return do


def _subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            words = {each.dest: each.help or "" for each in action._choices_actions}
            yield from ((each, words[name]) for name, each in action.choices.items())


def _arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction | argparse._HelpAction):
            yield action


def _as_arg(action: argparse.Action) -> dict[str, Any]:
    described: dict[str, Any] = {"flags": tuple(action.option_strings) or (action.dest,), "help": action.help}
    if isinstance(action, argparse._StoreTrueAction):
        return {**described, "action": "store_true"}
    for name in ("default", "type", "nargs", "choices", "metavar"):
        if (value := getattr(action, name)) is not None:
            described[name] = value
    return described

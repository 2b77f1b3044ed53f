"""`sidecar keys`: each command only reads its arguments and calls the part that does it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from processor.subjects import Priority
from processor.terminal import plainly, settings

keys = typer.Typer(
    help="The HTTP bridge's API keys: who may use it, as which tenant, with which models and priorities, how often.",
    epilog="Start with: sidecar keys add alice --tenant shop --rpm 60   A bridge that runs sees changes in seconds.",
    no_args_is_help=True,
)

KeysFile = Annotated[
    Path | None,
    typer.Option("--file", help="The file; else the one in SIDECAR_API_KEYS, else keys.toml in the data folder."),
]
KeyName = Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, _ and -.")]


@keys.command("add")
def add_key(
    name: KeyName,
    tenant: Annotated[
        str | None, typer.Option(help="Whose requests, costs and budget these are; else any that a request names.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="A model that may answer; may be given again. Else all.")
    ] = None,
    priority: Annotated[
        list[Priority] | None, typer.Option("--priority", "-p", help="One that is allowed; may be given again.")
    ] = None,
    rpm: Annotated[int | None, typer.Option(help="Requests a minute, over all bridges.", min=1)] = None,
    operator: Annotated[
        bool, typer.Option("--operator", help="May see all tenants: dashboard, metrics, usage, others' requests.")
    ] = False,
    file: KeysFile = None,
) -> None:
    """Make a key and print it, this once: the file keeps its SHA-256 alone.

    What is not given is not restricted. A key's budget is its tenant's, under [budgets.tenants] of SIDECAR_CATALOG.

    Example: sidecar keys add shop --tenant shop --model haiku --model gemini --priority low --rpm 60
    """
    from processor.keys_command import Grant
    from processor.keys_command import add_key as add

    plainly(lambda: add(settings(), file, name, Grant(tenant, model or (), priority or (), rpm, operator)))


@keys.command("list")
def list_keys(
    file: KeysFile = None,
    json: Annotated[bool, typer.Option("--json", help="A JSON array.")] = False,
) -> None:
    """Show what each key allows, and its tenant's budget."""
    from processor.keys_command import list_keys as show

    plainly(lambda: show(settings(), file, as_json=json))


@keys.command("remove")
def remove_key(name: KeyName, file: KeysFile = None) -> None:
    """Take a key away. Bridges that run refuse it within seconds; what it is being answered goes on."""
    from processor.keys_command import remove_key as remove

    plainly(lambda: remove(settings(), file, name))

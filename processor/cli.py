"""The `sidecar` command: one function a command, each only reads its arguments and calls the part that does it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from processor.config import Settings
from processor.exits import Exit, Fatal
from processor.subjects import Priority

app = typer.Typer(
    name="sidecar",
    help="The LLM gateway on a NATS bus: publish to llm.request.<priority>, get a model's answer on your inbox.",
    epilog="Start with: sidecar up   then, in another terminal: sidecar ask 'Why is the sky blue?'",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)


def settings() -> Settings:
    """The settings, or a one-line complaint for each wrong variable."""
    try:
        return Settings()
    except ValidationError as error:
        for detail in error.errors(include_input=False, include_url=False):
            name = "_".join(str(step) for step in detail["loc"]).upper()
            typer.secho(f"{name}: {detail['msg']}", fg="red", err=True)
        raise typer.Exit(2) from None


def run(work: Coroutine[Any, Any, int]) -> None:
    """Run a command's coroutine on uvloop where there is one; end with its exit code."""
    try:
        if sys.platform == "win32":
            code = asyncio.run(work)
        else:
            import uvloop

            code = uvloop.run(work)
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    except Fatal as error:
        typer.secho(f"sidecar: {error}", fg="red", err=True)
        code = error.code
    raise typer.Exit(code)


@app.command()
def up() -> None:
    """Start everything: a broker of its own (unless NATS_URL is set) and the processor.

    Runs until Ctrl-C, then finishes what is running (SHUTDOWN_GRACE seconds, default 25).
    """
    from processor.running import serve

    run(serve(settings(), embedded=True))


@app.command()
def processor() -> None:
    """Run one processor on the broker at NATS_URL; run as many as you like, on any machine."""
    from processor.running import serve

    run(serve(settings(), embedded=False))


@app.command()
def provision(
    update: Annotated[bool, typer.Option("--update", help="Set drifted fields to the files' values.")] = False,
    replicas: Annotated[int | None, typer.Option(help="Copies of every stream: 3 in a cluster.", min=1, max=5)] = None,
    files: Annotated[Path | None, typer.Option(help="Another folder with streams/ and consumers/.")] = None,
) -> None:
    """Create the streams and consumers that are missing on NATS_URL, and report what differs. Deletes nothing.

    Exit code 1 when something differs and --update was not given.
    """
    from processor.commands import provision_report

    run(provision_report(settings(), update=update, replicas=replicas, files=files))


@app.command()
def ask(
    text: Annotated[str | None, typer.Argument(help="The question; without it, standard input is read.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="auto, an alias such as haiku, or a full id.")] = "auto",
    priority: Annotated[Priority, typer.Option("--priority", "-p")] = Priority.HIGH,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Show the answer while it is written.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the final reply as JSON, and nothing else.")] = False,
    system: Annotated[str | None, typer.Option("--system", "-s", help="A system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The longest answer, in tokens.", min=1)] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait; default REQUEST_TIMEOUT.", min=0.001)] = None,
) -> None:
    """Ask a question over NATS and print the answer.

    A file can be piped in: with TEXT too, the text comes first and the file after it.

    Exit codes: 0 answered, 1 refused or failed, 2 wrong usage, 3 no broker or no sidecar, 4 out of time.
    """
    from processor.commands import ask_and_print

    piped = "" if sys.stdin.isatty() else _read_stdin()
    question = "\n\n".join(part for part in (text, piped) if part)
    if not question.strip():
        raise typer.BadParameter("nothing to ask: give TEXT or pipe it in")
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}],
        "model": model,
        "stream": stream and not json,
    }
    if system:
        body["messages"].insert(0, {"role": "system", "content": system})
    body |= {k: v for k, v in {"max_tokens": max_tokens, "temperature": temperature}.items() if v is not None}
    run(ask_and_print(settings(), body, priority=priority, timeout_s=timeout, as_json=json))


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise typer.BadParameter("standard input is not text") from None
    except (OSError, ValueError):  # closed, as under some supervisors
        return ""


@app.command()
def check(
    timing: Annotated[bool, typer.Option("--timing", help="Also start a sidecar and print how long it takes.")] = False,
    serving: Annotated[bool, typer.Option("--serving", help="Fail also when no sidecar answers.")] = False,
) -> None:
    """Look at every dependency, one line each: broker, streams, sidecars, providers, models.

    Exit code 1 when something that is needed is missing. It sends nothing to a vendor.
    """
    from processor.check import report

    run(report(settings(), timing=timing, serving=serving))


if __name__ == "__main__":
    app()

"""The `sidecar` command: one function a command, each only reads its arguments and calls the part that does it."""

from __future__ import annotations

import re
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from processor.grouping import By
from processor.keys_cli import keys
from processor.subjects import Priority
from processor.terminal import run, settings

Preference = Literal["cost", "speed", "quality"]

app = typer.Typer(
    name="sidecar",
    help="The LLM gateway on a NATS bus: publish to llm.request.<priority>, get a model's answer on your inbox.",
    epilog="Start with: sidecar up   then, in another terminal: sidecar ask 'Why is the sky blue?'",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)

dead = typer.Typer(
    help="Requests that could not be done: look at them, send them again, remove them.",
    epilog="A dead letter is kept for two weeks. Start with: sidecar dead list   then: sidecar dead show ID",
    no_args_is_help=True,
)
app.add_typer(dead, name="dead")


app.add_typer(keys, name="keys")


@app.command()
def up() -> None:
    """Start everything: a broker of its own (unless NATS_URL is set), the processor and the HTTP bridge.

    Runs until Ctrl-C, then finishes what is running (SHUTDOWN_GRACE seconds, default 25).
    """
    from bridge.service import bridge as bridging
    from processor.running import processing, serve

    run(serve(settings(), processing, bridging, embedded=True))


@app.command()
def processor() -> None:
    """Run one processor on the broker at NATS_URL; run as many as you like, on any machine."""
    from processor.running import processing, serve

    run(serve(settings(), processing, embedded=False))


@app.command()
def bridge() -> None:
    """Run one HTTP bridge on the broker at NATS_URL, for clients that cannot speak NATS; run as many as you like.

    It listens on SIDECAR_HOST and SIDECAR_PORT: 127.0.0.1:8001.
    """
    from bridge.service import bridge as bridging
    from processor.running import serve

    run(serve(settings(), bridging, embedded=False))


@app.command()
def provision(
    update: Annotated[bool, typer.Option("--update", help="Set drifted fields to the files' values.")] = False,
    replicas: Annotated[
        int | None, typer.Option(help="Copies of every stream; by itself 3 in a cluster, else 1.", min=1, max=5)
    ] = None,
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

    body = _asked(text, system, model=model, max_tokens=max_tokens, temperature=temperature)
    body["stream"] = stream and not json
    run(ask_and_print(settings(), body, priority=priority, timeout_s=timeout, as_json=json))


@app.command()
def route(
    text: Annotated[str | None, typer.Argument(help="The question; without it, standard input is read.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="auto, an alias such as haiku, or a full id.")] = "auto",
    prefer: Annotated[Preference | None, typer.Option(help="What counts most.")] = None,
    task_type: Annotated[str | None, typer.Option(help="Such as code, reasoning, translation, chat.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The longest answer, in tokens.", min=1)] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="A system message.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the decision as JSON, and nothing else.")] = False,
) -> None:
    """Show which models would answer a question, in which order and why. No model is called.

    A running sidecar is asked, since it knows which models are well, fast and have room; without one, the settings
    alone decide.

    Exit codes: 0 there is a model, 1 there is none or the question is refused, 2 wrong usage.
    """
    from processor.route_command import route_and_print

    body = _asked(text, system, model=model, prefer=prefer, task_type=task_type, max_tokens=max_tokens)
    run(route_and_print(settings(), body, as_json=json))


def _asked(text: str | None, system: str | None, **options: Any) -> dict[str, Any]:
    """The body of an ask: the text, then what was piped in, and those options that were given."""
    piped = "" if sys.stdin.isatty() else _read_stdin()
    question = "\n\n".join(part for part in (text, piped) if part)
    if not question.strip():
        raise typer.BadParameter("nothing to ask: give TEXT or pipe it in")
    for given in (question, system, *options.values()):
        if isinstance(given, str) and any("\ud800" <= char <= "\udfff" for char in given):  # bytes that are no UTF-8
            raise typer.BadParameter(f"{given[:40]!r} is not text")
    messages = [{"role": "user", "content": question}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages} | {name: value for name, value in options.items() if value is not None}


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


MAX_AGE_DAYS = 36_500


def age(text: str) -> timedelta:
    """A length of time such as 90s, 30m, 2h, 7d or 1d12h."""
    parts = re.findall(r"([0-9]{1,6})([smhd])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise typer.BadParameter(f"{text!r}: a length of time is written as 90s, 30m, 2h, 7d or 1d12h")
    unit_s = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    seconds = sum(int(number) * unit_s[unit] for number, unit in parts)
    if seconds > MAX_AGE_DAYS * unit_s["d"]:
        raise typer.BadParameter(f"{text!r}: {MAX_AGE_DAYS}d at most")
    return timedelta(seconds=seconds)


def first_day(text: str) -> date:
    """A day such as 2026-11-01, or a length of time such as 7d: the day that lies so long back. In UTC."""
    today = datetime.now(UTC)
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        try:
            day = date.fromisoformat(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r}: there is no such day") from None
    else:
        try:
            day = (today - age(text)).date()
        except typer.BadParameter:
            raise typer.BadParameter(
                f"{text!r}: a day is written as 2026-11-01, a length of time as 7d or 12h"
            ) from None
    if day > today.date():
        raise typer.BadParameter(f"{text!r}: that day has not come yet")
    return day


@app.command()
def usage(
    by: Annotated[By, typer.Option("--by", help="What a row stands for.")] = By.MODEL,
    since: Annotated[
        date | None,
        typer.Option(parser=first_day, metavar="DAY|AGE", help="From 2026-11-01, or 7d ago; else this month's first."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="A JSON object with rows, total, projection_usd, …")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="The rows alone, with exact figures.")] = False,
    suggest: Annotated[
        bool, typer.Option("--suggest/--no-suggest", help="Look through the audit log for what might have cost less.")
    ] = True,
) -> None:
    """Show what was spent and saved, how the month will end, and what might have cost less. No sidecar has to run.

    Days and months are in UTC; counters are kept for ever, the audit log for 90 days. Suggestions are computed from
    that log by routing its requests again as auto, and pricing the same usage.

    Examples: sidecar usage   sidecar usage --by day --since 7d   sidecar usage --by tenant --csv > usage.csv

    Exit codes: 0 shown, 1 it cannot be read, 2 wrong usage, 3 no broker.
    """
    from processor.log import configure_logging
    from processor.usage_command import report_usage

    if json and as_csv:
        raise typer.BadParameter("--json or --csv, not both")
    form: Literal["table", "json", "csv"] = "json" if json else "csv" if as_csv else "table"
    given = settings()
    configure_logging(given)  # to stderr: on stdout stands what another program may read
    run(report_usage(given, by=by, since=since, form=form, suggest=suggest))


Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids as `sidecar dead list` shows them.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def one_of(ids: list[str] | None, everything: bool, *with_all: object) -> None:
    if bool(ids) == everything:
        raise typer.BadParameter("name one or more IDs, or give --all")
    if ids and any(with_all):
        raise typer.BadParameter("only with --all is there anything to choose from")


@dead.command("list")
def list_dead(
    priority: Annotated[Priority | None, typer.Option("--priority", "-p", help="Only of this lane.")] = None,
    since: Annotated[timedelta | None, typer.Option(parser=age, metavar="AGE", help="Only younger: 2h, 7d.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many at most.", min=1, max=10_000)] = 50,
    json: Annotated[bool, typer.Option("--json", help="A JSON array.")] = False,
) -> None:
    """List dead letters, the newest first: id, lane, age, deliveries, reason."""
    from processor.dead_commands import list_letters

    run(list_letters(settings(), priority=priority, since=since, limit=limit, as_json=json))


@dead.command("show")
def show_dead(
    request_id: Annotated[str, typer.Argument(metavar="ID")],
    json: Annotated[bool, typer.Option("--json", help="A JSON object with the whole body.")] = False,
) -> None:
    """Show one dead letter whole: why and when it died, its headers, its body.

    Exit code 1 when there is none of that id.
    """
    from processor.dead_commands import show

    run(show(settings(), request_id, as_json=json))


@dead.command("retry")
def retry_dead(
    ids: Ids = None,
    everything: Annotated[bool, typer.Option("--all", help="All that there are.")] = False,
    priority: Annotated[Priority | None, typer.Option("--priority", "-p", help="With --all: of this lane.")] = None,
    reason: Annotated[str | None, typer.Option(help="With --all: whose reason has this text.")] = None,
    yes: Yes = False,
) -> None:
    """Send dead letters again, each under a new id, which is printed; then they are no dead letters any more.

    The old id stays answered with its error. The answer to the new one goes to the same Reply-To and is kept on its
    llm.reply.ID. First mend what made them die: a request with a wrong field dies again.

    Exit code 1 when one of them could not be sent.
    """
    from processor.dead_commands import retry_all, retry_some

    one_of(ids, everything, priority, reason)
    if ids:
        run(retry_some(settings(), ids))
    run(retry_all(settings(), priority=priority, reason=reason, yes=yes))


@dead.command("purge")
def purge_dead(
    ids: Ids = None,
    everything: Annotated[bool, typer.Option("--all", help="All that there are.")] = False,
    older_than: Annotated[
        timedelta | None, typer.Option(parser=age, metavar="AGE", help="With --all: only older: 12h, 7d.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Remove dead letters for ever, and print how many."""
    from processor.dead_commands import purge_all, purge_some

    one_of(ids, everything, older_than)
    if ids:
        run(purge_some(settings(), ids, yes=yes))
    run(purge_all(settings(), older_than=older_than, yes=yes))


if __name__ == "__main__":
    app()

"""What `sidecar dead` prints: dead letters listed, shown, sent again and removed."""

from __future__ import annotations

import base64
import difflib
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import nats.errors
import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from processor import redrive, subjects
from processor.bus import Bus, MessageTooLarge
from processor.commands import broker_url, connection
from processor.config import Settings, shown
from processor.exits import Exit, Fatal
from processor.jetstream import STREAM_NOT_FOUND, JetStreamError, JetStreamUnavailable
from processor.nats_client import Client
from processor.redrive import CannotRetry, DeadLetter
from processor.subjects import Priority

MAX_SHOWN: Final = 20_000
"""Characters of a body on the terminal."""
_SEARCHED: Final = 1_000
"""The newest ids that a wrong one is compared with."""
NONE: Final = "No dead letters."


@asynccontextmanager
async def _dead_letters(settings: Settings) -> AsyncIterator[Client]:
    """A connection. Raises Fatal where `LLM_DEAD` is not there, or the connection is lost."""
    async with connection(settings) as nc:
        try:
            yield nc
        except (JetStreamError, JetStreamUnavailable) as error:
            if not nc.is_connected:
                raise _lost(settings, error) from error
            missing = isinstance(error, JetStreamUnavailable) or error.err_code == STREAM_NOT_FOUND
            hint = ": run `sidecar provision`" if missing else ""
            raise Fatal(f"{shown(broker_url(settings))}, {subjects.DEAD}: {error}{hint}") from error
        except nats.errors.Error as error:
            raise _lost(settings, error) from error


def _lost(settings: Settings, error: Exception) -> Fatal:
    return Fatal(f"{shown(broker_url(settings))}: connection lost ({error})", Exit.UNREACHABLE)


async def list_letters(
    settings: Settings, *, priority: Priority | None, since: timedelta | None, limit: int, as_json: bool
) -> int:
    """The newest first: a table, or a JSON array."""
    now = datetime.now(UTC)
    after = None if since is None else now - since
    async with _dead_letters(settings) as nc:
        letters = await redrive.latest(nc, limit, priority=priority, since=after)
        total = await redrive.count(nc, priority=priority, since=after)
    if as_json:
        _print_json([_summary(letter, now) for letter in letters])
        return Exit.OK
    if not letters:
        print(NONE)
        return Exit.OK
    table = Table("id", "lane", "age", "deliveries", "reason", box=None, pad_edge=False)
    for letter in letters:
        cells = (letter.id, letter.priority, age(now - letter.time), _deliveries(letter), letter.reason)
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in cells))
    Console().print(table)
    if total > len(letters):
        print(f"The newest {len(letters):,} of {total:,}; --limit shows more.", file=sys.stderr)
    return Exit.OK


async def show(settings: Settings, request_id: str, *, as_json: bool) -> int:
    """Everything that is known of the newest dead letter of an id."""
    now = datetime.now(UTC)
    async with _dead_letters(settings) as nc:
        letter = await redrive.newest(nc, request_id)
        if letter is None:
            raise Fatal(await _unknown(nc, request_id))
    if as_json:
        _print_json(_summary(letter, now) | {"headers": dict(letter.headers)} | _body_fields(letter.body))
        return Exit.OK
    size = f"{letter.body_bytes:,} bytes" + (f", of which {len(letter.body):,} were kept" if letter.cut else "")
    rows = {
        "id": letter.id,
        "lane": letter.priority,
        "died": f"{letter.time:%Y-%m-%d %H:%M:%S} UTC, {age(now - letter.time)} ago",
        "reason": letter.reason,
        "deliveries": _deliveries(letter),
        **{f"header {name}": value for name, value in letter.headers.items()},
        "body": size,
    }
    for name, value in rows.items():
        print(f"{printable(name)}: {printable(value)}")
    print()
    text = _body_text(letter.body)
    print(text[:MAX_SHOWN])
    if len(text) > MAX_SHOWN:
        print(f"… {len(text) - MAX_SHOWN:,} characters more; --json prints everything", file=sys.stderr)
    return Exit.OK


async def retry_some(settings: Settings, ids: Sequence[str]) -> int:
    """Send the named ones again; those that cannot be are told, and the others are not held up."""
    code = Exit.OK
    async with _dead_letters(settings) as nc:
        for request_id in dict.fromkeys(ids):
            letter = await redrive.newest(nc, request_id)
            if letter is None:
                _complain(await _unknown(nc, request_id))
                code = Exit.FAILED
            elif not await _retry(nc, letter):
                code = Exit.FAILED
    return code


async def retry_all(settings: Settings, *, priority: Priority | None, reason: str | None, yes: bool) -> int:
    """Send all again that match, the oldest first."""
    async with _dead_letters(settings) as nc:
        total = await redrive.count(nc, priority=priority)
    if not total:
        print(NONE)
        return Exit.OK
    which = f"the {total:,} dead letters" + (f" of the lane {priority}" if priority else "")
    _confirm(f"Send {f'those of {which} again whose reason has {reason!r}' if reason else f'{which} again'}?", yes)
    done = left = 0
    async with _dead_letters(settings) as nc, aclosing(redrive.oldest_first(nc, priority=priority)) as letters:
        with _progress() as progress:
            task = progress.add_task("retrying", total=total)
            async for letter in letters:
                progress.advance(task)
                # An older one of an id goes with the newest: one id is one request.
                if (reason or "").lower() not in letter.reason.lower() or not await redrive.is_newest(nc, letter):
                    continue
                if await _retry(nc, letter):
                    done += 1
                else:
                    left += 1
    print(f"{done:,} sent again" + (f", {left:,} left" if left else ""), file=sys.stderr)
    return Exit.FAILED if left else Exit.OK


async def _retry(nc: Client, letter: DeadLetter) -> bool:
    """Send one again and print its new id; False where it cannot be. Raises Fatal where no other could be either."""
    bus = Bus()
    bus.nc = nc  # its guards, over this command's connection
    try:
        again = await redrive.retry(bus, letter)
    except (CannotRetry, MessageTooLarge) as error:
        _complain(f"{letter.id} cannot be sent again: {error}")
        return False
    except JetStreamError as error:
        if not error.is_full:
            raise
        raise Fatal("the queue is full: what was not sent again is kept, try later") from error
    place = again.headers.get("Reply-To", subjects.reply(again.id))
    print(printable(f"{letter.id} -> {again.id}, answer on {place}"))
    return True


async def purge_some(settings: Settings, ids: Sequence[str], *, yes: bool) -> int:
    """Remove the named ones."""
    letters: list[DeadLetter] = []
    async with _dead_letters(settings) as nc:
        for request_id in dict.fromkeys(ids):
            letter = await redrive.newest(nc, request_id)
            if letter is None:
                raise Fatal(await _unknown(nc, request_id))
            letters.append(replace(letter, body=b""))
    _confirm(f"Remove the dead letters of {len(letters):,} ids for ever?", yes)
    async with _dead_letters(settings) as nc:
        _print_removed(sum([await redrive.remove(nc, letter) for letter in letters]))
    return Exit.OK


async def purge_all(settings: Settings, *, older_than: timedelta | None, yes: bool) -> int:
    """Remove all that are there now, or of these all that are older than that."""
    async with _dead_letters(settings) as nc:
        end, total = await redrive.older_than(nc, None if older_than is None else datetime.now(UTC) - older_than)
    if not total:
        print(NONE)
        return Exit.OK
    _confirm(f"Remove {total:,} dead letters for ever?", yes)
    async with _dead_letters(settings) as nc:
        _print_removed(await redrive.remove_below(nc, end))
    return Exit.OK


def age(passed: timedelta) -> str:
    """A length of time in its largest whole unit: 42s, 5m, 3h, 12d."""
    seconds = max(0, int(passed.total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def printable(text: str) -> str:
    """The text with everything escaped that could move the cursor, recolour the terminal or hide other text."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _body_text(body: bytes) -> str:
    """The body for the terminal: JSON on several lines, else as text, with what is no text escaped."""
    try:
        text = orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        text = body.decode("utf-8", "backslashreplace")
    return "\n".join(printable(line) for line in text.split("\n"))


def _body_fields(body: bytes) -> dict[str, Any]:
    """The body whole: as JSON, as text, or in base64, by the field's name."""
    try:
        return {"body": orjson.loads(body)}
    except orjson.JSONDecodeError:
        pass
    try:
        return {"body_text": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def _deliveries(letter: DeadLetter) -> str:
    return "?" if letter.deliveries is None else str(letter.deliveries)


def _summary(letter: DeadLetter, now: datetime) -> dict[str, Any]:
    return {
        "id": letter.id,
        "priority": letter.priority,
        "seq": letter.seq,
        "at": letter.time.isoformat(),
        "age_s": round((now - letter.time).total_seconds(), 3),
        "deliveries": letter.deliveries,
        "reason": letter.reason,
        "body_bytes": letter.body_bytes,
    }


async def _unknown(nc: Client, request_id: str) -> str:
    close = difflib.get_close_matches(request_id, {letter.id for letter in await redrive.latest(nc, _SEARCHED)})
    hint = f"did you mean {' or '.join(close)}?" if close else "`sidecar dead list` shows them"
    return f"no dead letter has the id {request_id}: {hint}"


def _confirm(question: str, yes: bool) -> None:
    """Ask on the terminal. No connection may be open: while it waits, nothing else runs."""
    if yes:
        return
    # The event loop's own reaction to Ctrl-C would come after the answer.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
    finally:
        signal.signal(signal.SIGINT, before)
    if answer.strip().lower() not in {"y", "yes"}:
        raise Fatal("nothing was changed" + ("" if answer else ": answer y, or give --yes"))


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # On a terminal the ids go above the bar; into a file or a pipe they must go as they are.
    return Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())


def _complain(text: str) -> None:
    typer.secho(f"sidecar: {printable(text)}", fg="red", err=True)


def _print_removed(number: int) -> None:
    print(f"{number:,} removed")


def _print_json(value: Any) -> None:
    print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())

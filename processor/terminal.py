"""What every command of `sidecar` begins and ends with: its settings, its event loop, and its exit code."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import typer
from pydantic import ValidationError

from processor.config import Settings
from processor.exits import Exit, Fatal


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


def plainly(work: Callable[[], None]) -> None:
    """Run a command that awaits nothing; a `Fatal` ends it with its exit code."""
    try:
        work()
    except Fatal as error:
        typer.secho(f"sidecar: {error}", fg="red", err=True)
        raise typer.Exit(error.code) from None

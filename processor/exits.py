"""How a command ends: its exit codes, and the one error whose text the user reads."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of `sidecar`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    DEADLINE = 4
    INTERRUPTED = 130


class Fatal(Exception):
    """An error for the user: its message says what to do."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code

"""The file of API keys as it is changed: by one command at a time, all at once, with comments as they stand."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tomlkit

from processor.config import Settings
from processor.exits import Exit, Fatal
from processor.keys import Keys, KeysError, load_keys, parse_keys

_HEAD = "The bridge's API keys: of each its SHA-256 alone. `sidecar keys add` makes one."


def keys_file(settings: Settings, file: Path | None) -> Path:
    """The file that is meant: `file`, else the one that SIDECAR_API_KEYS names, else keys.toml in the data folder."""
    return file or settings.api_keys_file or settings.sidecar_data_dir / "keys.toml"


def read_keys(path: Path, *, must_exist: bool = False) -> Keys:
    """The keys of the file; none where there is no file. Raises Fatal where it cannot be used."""
    if not path.exists() and not must_exist:
        return Keys()
    try:
        return load_keys(path)
    except KeysError as error:
        hint = "" if path.exists() else ": `sidecar keys add NAME` makes it"
        raise Fatal(f"{path}: {error}{hint}", Exit.USAGE) from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Between reading and writing no other command changes the file, where the system has such locks.

    Raises:
        Fatal: its folder cannot be made or read.
    """
    folder = path.resolve().parent
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if sys.platform != "win32":
                import fcntl

                opened = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, opened)
                fcntl.flock(opened, fcntl.LOCK_EX)
        except OSError as error:
            raise Fatal(f"{path} cannot be written ({error.strerror})") from None
        yield


def read_document(path: Path) -> tomlkit.TOMLDocument:
    """The file as it is written, comments and all; a new one where there is none."""
    read_keys(path)  # says in words what is wrong with it
    if path.exists():
        return tomlkit.parse(path.read_text("utf-8"))
    document = tomlkit.document()
    document.add(tomlkit.comment(_HEAD))
    document.add(tomlkit.nl())
    return document


def write_document(path: Path, document: tomlkit.TOMLDocument) -> None:
    """Put `document` in the file's place, all at once: a new one readable for its owner alone, else for who could.

    Raises:
        Fatal: what it would hold is wrong, or it cannot be written.
    """
    text = tomlkit.dumps(document)
    try:
        parse_keys(text)
    except KeysError as error:
        raise Fatal(str(error), Exit.USAGE) from None
    target = path.resolve()  # a link stays one
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # of mode 600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            _keep_access(target, temporary)
            Path(temporary).replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        raise Fatal(f"{path} cannot be written ({error.strerror})") from None


def _keep_access(old: Path, new: str) -> None:
    """Whoever could read the old file can read the new one, where we may say so: the bridge may be another user."""
    if not old.exists():
        return
    was = old.stat()
    if sys.platform != "win32":
        with contextlib.suppress(PermissionError):
            os.chown(new, was.st_uid, was.st_gid)
    os.chmod(new, stat.S_IMODE(was.st_mode))

"""Who may use the bridge: the keys of the settings, looked at again whenever their file changes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import structlog

from processor.config import Settings
from processor.exits import Exit, Fatal
from processor.keys import Key, Keys, KeysError, guessable, load_keys, plain_keys

if TYPE_CHECKING:
    from bridge.callers import Caller

LOOK_EVERY_S = 2.0

log = structlog.get_logger(__name__)

_Stamp = tuple[int, int, int]


class Keyring:
    """The keys as they are now. Where none are set, `required` is false, and whoever reaches the bridge may use it.

    A file that has no key, or none any more, lets nobody in.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises Fatal: the keys cannot be used; the message says what to do, and never a key."""
        self.required = settings.sidecar_api_keys is not None
        self._path = settings.api_keys_file
        self._keys = Keys()
        self._stamp: _Stamp | None = None
        if settings.sidecar_api_keys is None:
            return
        listed = settings.sidecar_api_keys.get_secret_value()
        try:
            if self._path is None:
                if os.path.isfile(listed.strip()):  # Path's own raises for a name that is too long
                    raise KeysError("a file of keys has a name that ends in .toml; this one would be a key itself")
                self._keys = plain_keys(listed)
                if guessable(listed):
                    log.warning("a key of SIDECAR_API_KEYS is so short that it can be guessed: `sidecar keys add`")
            else:
                self._stamp = _stamp(self._path)
                self._keys = load_keys(self._path)
                if not self._keys.by_name:
                    log.warning("no key is in the file, so nobody may use the bridge", file=str(self._path))
        except KeysError as error:
            where = "SIDECAR_API_KEYS" if self._path is None else f"SIDECAR_API_KEYS={self._path}"
            raise Fatal(f"{where}: {error}; `sidecar keys add NAME` makes a key", Exit.USAGE) from None

    def authenticate(self, key: str | bytes) -> Caller | None:
        """Whose key that is; None for an unknown one. Takes as long whichever it is."""
        presented = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
        name = self._keys.holder(presented)
        return None if name is None else _caller(name, self._keys.by_name[name])

    def rpm(self, name: str) -> int | None:
        """Requests a minute that the key of that name may make; None: any number."""
        key = self._keys.by_name.get(name)
        return None if key is None else key.rpm

    async def watch(self) -> NoReturn:
        """Look at the file again and again. One that is broken changes nothing, and is complained of once."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if self._path is not None:
                await asyncio.to_thread(self._look, self._path)  # many keys take half a second to read

    def _look(self, path: Path) -> None:
        if (stamp := _stamp(path)) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = load_keys(path)
        except KeysError as error:
            log.error("the keys' file cannot be used, so those it had go on", file=str(path), error=str(error))
        else:
            log.info("the keys' file was read again", file=str(path), keys=len(self._keys.by_name))


def _stamp(path: Path) -> _Stamp | None:
    """What differs after a change of the file, also one within the clock's tick: the command puts a new file there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _caller(name: str, key: Key) -> Caller:
    from bridge.callers import Caller  # with the web framework, which is imported while the process starts

    return Caller(
        name,
        key.tenant,
        models=None if key.models is None else frozenset(key.models),
        priorities=None if key.priorities is None else frozenset(key.priorities),
        operator=key.operator,
    )

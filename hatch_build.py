"""Fetches uPlot, which draws the dashboard's graphs, from the npm registry when the package is built or installed."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VERSION = "1.6.32"
SHA512 = "KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw=="
"""Of the package, in base64, as npm's lock files have it."""
KEPT = ("dist/uPlot.esm.js", "dist/uPlot.min.css", "LICENSE")
ROOT = Path(__file__).resolve().parent
VENDOR = ROOT / "bridge" / "dashboard" / "vendor"
MARK = f"uPlot-{VERSION}.txt"
"""Written last: where it stands, all is there."""
REGISTRY = "https://registry.npmjs.org/"
MAX_BYTES = 4 * 1024 * 1024
WITHIN_S = 30


class Unverified(Exception):
    """What came is not the package that was meant."""


def registry(environment: dict[str, str], *npmrcs: Path) -> str:
    """The npm registry as npm itself would choose it: the environment, then the first .npmrc that names one."""
    for name, value in environment.items():
        if name.lower() == "npm_config_registry" and value:
            return value.rstrip("/") + "/"
    for npmrc in npmrcs:
        for line in npmrc.read_text("utf-8").splitlines() if npmrc.is_file() else ():
            name, equals, value = line.partition("=")
            if equals and name.strip() == "registry" and value.strip():
                return value.strip().strip("\"'").rstrip("/") + "/"
    return REGISTRY


def fetch(base: str, folder: Path, *, sha512: str = SHA512) -> None:
    """Put uPlot and its licence into `folder`.

    Raises:
        OSError: the registry cannot be reached, or says no.
        Unverified: the package is not the one that `sha512` means.
    """
    with urllib.request.urlopen(f"{base}uplot/-/uplot-{VERSION}.tgz", timeout=WITHIN_S) as answer:
        package = answer.read(MAX_BYTES)
    if base64.b64encode(hashlib.sha512(package).digest()).decode() != sha512:
        raise Unverified(f"the registry gave another uplot {VERSION} than the one that was checked")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for name in KEPT:
            member = archive.extractfile(f"package/{name}")
            assert member is not None
            kept = f"uPlot.{name}" if name == "LICENSE" else Path(name).name
            (folder / kept).write_bytes(member.read())
    (folder / MARK).write_text(f"uPlot {VERSION}, https://github.com/leeoniya/uPlot; see uPlot.LICENSE\n", "utf-8")


def provide(tell: Callable[[str], None], folder: Path = VENDOR) -> None:
    """Fetch what is not there yet; without it the dashboard works too, and shows tables in place of graphs."""
    if (folder / MARK).exists():
        return
    environment = dict(os.environ)
    own = environment.get("NPM_CONFIG_USERCONFIG") or environment.get("npm_config_userconfig") or "~/.npmrc"
    base = registry(environment, ROOT / ".npmrc", Path(own).expanduser())
    try:
        fetch(base, folder)
    except (OSError, ValueError, Unverified, tarfile.TarError) as error:
        tell(f"the dashboard has no graphs: uPlot cannot be fetched ({error}); `python hatch_build.py` tries again")


class UPlotHook(BuildHookInterface[Any]):
    """Runs before a wheel is built, and before an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        provide(self.app.display_warning)


if __name__ == "__main__":
    provide(print)

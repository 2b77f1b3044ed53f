"""What `sidecar keys` does: makes keys, shows what they allow, and takes them away, in a TOML file of their hashes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import tomlkit
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from processor.catalog import Budget, Budgets, CatalogError, UnknownModel, load_catalog
from processor.config import Settings
from processor.exits import Exit, Fatal
from processor.keys import Key, hashed, new_key
from processor.keys_file import keys_file, locked, read_document, read_keys, write_document
from processor.subjects import Priority


@dataclass(frozen=True, slots=True)
class Grant:
    """What a new key allows; what is unset is not restricted."""

    tenant: str | None = None
    models: Sequence[str] = ()
    priorities: Sequence[Priority] = ()
    rpm: int | None = None
    operator: bool = False

    def table(self, sha256: str) -> dict[str, Any]:
        """As it stands in the file: only what is set."""
        listed = {"models": list(self.models), "priorities": [str(one) for one in self.priorities]}
        fields = {"tenant": self.tenant, "rpm": self.rpm, "operator": self.operator, **listed}
        return {"sha256": sha256} | {name: value for name, value in fields.items() if value}


def add_key(settings: Settings, file: Path | None, name: str, grant: Grant) -> None:
    """Make a key, print it on stdout, and put its hash into the file.

    Raises:
        Fatal: the name is taken, what it is to allow is wrong, or the file cannot be read or written.
    """
    path, key = keys_file(settings, file), new_key()
    _check_models(settings, grant.models)
    with locked(path):
        if name in read_keys(path).by_name:
            raise Fatal(f"{path} has a key {name} already: choose another name, or `sidecar keys remove {name}` first")
        document, table = read_document(path), tomlkit.table()
        table.update(grant.table(hashed(key)))
        document.setdefault("keys", tomlkit.table(is_super_table=True))[name] = table
        write_document(path, document)
    typer.echo(key)
    typer.echo(f"sidecar: that is the key of {name}; it is shown only now, and {path} has its hash.", err=True)
    if (hint := _hint(settings, path)) is not None:
        typer.echo(hint, err=True)


def remove_key(settings: Settings, file: Path | None, name: str) -> None:
    """Take a key away; bridges that run notice within seconds.

    Raises:
        Fatal: there is none of that name, or the file cannot be read or written.
    """
    path = keys_file(settings, file)
    with locked(path):
        known = read_keys(path).by_name
        if name not in known:
            raise Fatal(f"{path} has no key {name}" + (f": there are {', '.join(sorted(known))}" if known else ""))
        document = read_document(path)
        del document["keys"][name]
        write_document(path, document)
    typer.echo(f"sidecar: {name} is removed; bridges that run refuse it within seconds.", err=True)


def list_keys(settings: Settings, file: Path | None, *, as_json: bool) -> None:
    """Print what each key allows, and its tenant's budget.

    Raises:
        Fatal: the file or the catalog cannot be read.
    """
    path = keys_file(settings, file)
    keys = read_keys(path, must_exist=True)
    try:
        budgets = load_catalog(settings.sidecar_catalog).budgets
    except CatalogError as error:
        raise Fatal(str(error), Exit.USAGE) from None
    if as_json:
        rows = [_row(name, key, budgets) for name, key in keys.by_name.items()]
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
        return
    table = Table("key", "tenant", "models", "priorities", "a minute", "budget", "", box=None, pad_edge=False)
    for name, key in keys.by_name.items():
        cells = (
            name,
            key.tenant or "any",
            ", ".join(key.models or ["all"]),
            ", ".join(key.priorities or ["all"]),
            "" if key.rpm is None else f"{key.rpm:,}",
            _words(_budget(key, budgets)),
            "operator" if key.operator else "",
        )
        table.add_row(*map(escape, cells))
    Console().print(table if keys.by_name else f"{path} has no key.")


def _row(name: str, key: Key, budgets: Budgets) -> dict[str, Any]:
    budget = _budget(key, budgets)
    fields = key.model_dump(mode="json", exclude={"sha256"})
    return {"name": name, **fields, "budget": None if budget is None else _figures(budget)}


def _budget(key: Key, budgets: Budgets) -> Budget | None:
    return budgets.tenants.get(key.tenant) if key.tenant is not None else None


def _figures(budget: Budget) -> dict[str, Any]:
    return {
        name: float(value) if name != "hard" else value
        for name, value in (("daily_usd", budget.daily_usd), ("monthly_usd", budget.monthly_usd), ("hard", budget.hard))
        if value is not None
    }


def _words(budget: Budget | None) -> str:
    if budget is None:
        return ""
    parts = [
        f"${amount:,.2f} a {unit}"
        for amount, unit in ((budget.daily_usd, "day"), (budget.monthly_usd, "month"))
        if amount is not None
    ]
    return ", ".join(parts) + (" (hard)" if budget.hard and parts else "")


def _check_models(settings: Settings, models: Sequence[str]) -> None:
    """Raises Fatal for a name that is no model's: requests of such a key would all be refused."""
    try:
        catalog = load_catalog(settings.sidecar_catalog)
        for name in models:
            catalog.resolve(name, datetime.now(UTC).date())
    except (CatalogError, UnknownModel) as error:
        raise Fatal(str(error), Exit.USAGE) from None


def _hint(settings: Settings, path: Path) -> str | None:
    """What is to be set so that the bridge looks at the file; None where it does."""
    named = settings.api_keys_file
    if named is not None and named.resolve() == path.resolve():
        return None
    return f"sidecar: set SIDECAR_API_KEYS={path} so that the bridge looks at it."

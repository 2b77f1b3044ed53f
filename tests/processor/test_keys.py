"""API keys: what a file of them may say, and whose a presented key is."""

from __future__ import annotations

import hashlib
import hmac
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.keys import (
    MAX_FILE_BYTES,
    Key,
    Keys,
    KeysError,
    guessable,
    hashed,
    load_keys,
    new_key,
    parse_keys,
    plain_keys,
)

HASH = hashed("one")
names = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(st.dictionaries(names, texts, min_size=1, max_size=8).filter(lambda d: len(set(d.values())) == len(d)), texts)
def test_whoever_presents_a_key_is_its_holder_and_nobody_else_is(keys: dict[str, str], other: str) -> None:
    held = Keys({name: Key(sha256=hashed(key)) for name, key in keys.items()})
    assert {name: held.holder(key.encode()) for name, key in keys.items()} == {name: name for name in keys}
    by_key = {key: name for name, key in keys.items()}
    assert held.holder(other.encode()) == by_key.get(other)


@given(st.binary(max_size=200))
def test_any_bytes_may_be_presented(presented: bytes) -> None:
    assert plain_keys("one,two").holder(presented) == {b"one": "key-1", b"two": "key-2"}.get(presented)


def test_every_entry_is_compared_in_constant_time_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    real = hmac.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append(other)
        return real(one, other)

    monkeypatch.setattr("processor.keys.hmac.compare_digest", compare)
    keys = plain_keys("one,two,three")
    for presented in (b"one", b"two", b"none"):
        compared.clear()
        keys.holder(presented)
        assert len(compared) == 3


def test_a_new_key_is_32_random_bytes_and_its_hash_is_sha256() -> None:
    first, second = new_key(), new_key()
    assert first != second
    assert first.startswith("sk-sidecar-")
    assert len(first.removeprefix("sk-sidecar-")) == 43
    assert hashed(first) == hashlib.sha256(first.encode()).hexdigest()


def test_a_list_of_plain_keys_restricts_nothing() -> None:
    keys = plain_keys(" one , two,")
    assert list(keys.by_name) == ["key-1", "key-2"]
    assert keys.by_name["key-1"] == Key(sha256=HASH, operator=True)


def test_a_file_says_of_each_key_what_it_allows() -> None:
    key = parse_keys(
        f'[keys.shop]\nsha256 = "{HASH}"\ntenant = "shop"\nmodels = ["haiku"]\npriorities = ["low"]\nrpm = 5\n'
    ).by_name["shop"]
    assert (key.tenant, key.models, key.priorities, key.rpm, key.operator) == ("shop", ("haiku",), ("low",), 5, False)


def test_an_empty_file_has_no_keys() -> None:
    assert parse_keys("") == Keys()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[keys.a", "it is no TOML"),
        ("[key.a]\n", "key: there is no such field"),
        ("[keys.a]\n", "keys.a.sha256: it is missing"),
        ('[keys.a]\nsha256 = "sk-sidecar-secret"\n', "keys.a.sha256: "),
        ('[keys."a b"]\nsha256 = "{hash}"\n', "keys.a b: "),
        ('[keys.a]\nsha256 = "{hash}"\nrmp = 3\n', "keys.a.rmp: there is no such field"),
        ('[keys.a]\nsha256 = "{hash}"\nrpm = 0\n', "keys.a.rpm: "),
        ('[keys.a]\nsha256 = "{hash}"\nrpm = "5"\n', "keys.a.rpm: "),
        ('[keys.a]\nsha256 = "{hash}"\noperator = "no"\n', "keys.a.operator: "),
        ('[keys.a]\nsha256 = "{hash}"\nmodels = []\n', "keys.a.models: "),
        ('[keys.a]\nsha256 = "{hash}"\nmodels = "haiku"\n', "keys.a.models: a list, in brackets"),
        ('[keys.a]\nsha256 = "{hash}"\npriorities = ["urgent"]\n', "keys.a.priorities.0: "),
        ('[keys.a]\nsha256 = "{hash}"\ntenant = "a.b"\n', "keys.a.tenant: "),
        ('[keys.a]\nsha256 = "{hash}"\n[keys.b]\nsha256 = "{hash}"\n', "a and b are the same key"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_without_what_stands_there(text: str, says: str) -> None:
    with pytest.raises(KeysError) as refused:
        parse_keys(text.replace("{hash}", HASH))
    assert str(refused.value).startswith(says)
    assert "secret" not in str(refused.value)


@given(st.text(max_size=200))
def test_any_text_is_keys_or_one_error(text: str) -> None:
    with suppress(KeysError):
        parse_keys(text)


@pytest.mark.parametrize("listed", ["", " , ", "one,one"])
def test_a_list_without_keys_or_with_one_twice_is_refused(listed: str) -> None:
    with pytest.raises(KeysError):
        plain_keys(listed)


def test_a_short_plain_key_can_be_guessed() -> None:
    assert guessable("one,") is True
    assert guessable(f"{new_key()}, {new_key()}") is False


def test_a_file_that_cannot_be_read_is_said_why(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    (tmp_path / "latin").write_bytes(b"# \xff")
    for name, why in (("none", "No such file"), ("large", "more than"), ("latin", "no UTF-8"), (".", "directory")):
        with pytest.raises(KeysError, match=why):
            load_keys(tmp_path / name)

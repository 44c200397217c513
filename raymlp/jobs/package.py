"""What uploads: the files of the working folder, less what no job needs; listed once, so that what is told is what goes.

Ray would walk the folder itself, upload data and caches, and say so in the middle of a job's start.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pathspec

from raymlp.core.errors import ConfigError
from raymlp.core.files import digest_of, sha256_file

NEVER = """
.git
.hg/
.svn/
.venv/
venv/
node_modules/
__pycache__/
*.py[cod]
*.egg-info/
.cache/
.*_cache/
.hypothesis/
.ipynb_checkpoints/
.tox/
.nox/
.terraform/
.DS_Store
.env
.env.*
.netrc
*.pem
*.tfstate*
/artifacts/
/build/
/dist/
/outputs/
/multirun/
/mlruns/
/conf/local/
"""
"""What is left out of every upload, as a .gitignore: histories, environments, caches, results, and files that hold keys."""
IGNORE_FILES = (".gitignore", ".rayignore")
LARGEST = 10
MB = 1_000_000
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every file in the archive, so that the same files make the same archive."""


@dataclass(frozen=True)
class File:
    """A file that uploads: its path in the folder, and its size."""

    name: str
    size: int


@dataclass(frozen=True)
class Package:
    """The files of a folder that upload, by name."""

    root: Path
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of names, contents and who may run them."""
        return digest_of_files(self.root, self.files)

    def require_unchanged(self) -> None:
        """Raise ConfigError when the files are not what the digest was made of any more."""
        try:
            same = digest_of_files(self.root, self.files) == self.digest
        except OSError:
            same = False
        if not same:
            raise ConfigError(f"{self.root} has changed since this began; expected the same files. Give the command again.")

    def require_at_most(self, megabytes: int) -> None:
        """Raise ConfigError that names the largest files when there is more."""
        if self.size <= megabytes * MB:
            return
        largest = sorted(self.files, key=lambda file: (-file.size, file.name))[:LARGEST]
        lines = "\n".join(f"  {file.size / MB:10,.1f} MB  {file.name}" for file in largest)
        raise ConfigError(
            f"{self.root} would upload {self.size / MB:,.1f} MB in {len(self.files):,} files; expected at most {megabytes} MB. "
            f"The largest:\n{lines}\n"
            "Name what no job needs in .rayignore or jobs.excludes, keep data on storage that the nodes reach, or set jobs.max_upload_mb."
        )

    def require_overlays(self, overrides: Sequence[str]) -> None:
        """Raise ConfigError for an `overlay=` that the job would not find, or find another of."""
        names = {file.name for file in self.files}
        for word in overrides:
            if word.startswith("overlay=") and os.path.normpath(word.removeprefix("overlay=")) not in names:
                raise ConfigError(
                    f"{word} does not upload; expected a file among those that do. Copy it beside conf/, and give its path here."
                )

    def write(self, place: Path) -> Path:
        """The archive, the same bytes for the same files."""
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for file in self.files:
                entry = zipfile.ZipInfo(file.name, EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = _mode(self.root / file.name) << 16
                archive.writestr(entry, (self.root / file.name).read_bytes())
        return place


def digest_of_files(root: Path, files: Sequence[File]) -> str:
    """Hex SHA-256 of the names of files, their contents and who may run them, as they are now."""
    return digest_of([[file.name, _mode(root / file.name), sha256_file(root / file.name)] for file in files])


def package_of(root: Path, excludes: Sequence[str] = (), *, results: Path | None = None) -> Package:
    """What of a folder uploads. Of two rules the later wins: what no job needs, .gitignore, .rayignore, those of folders below, `excludes`.

    `results` is where results go, which never upload. Raises ConfigError when the folder is a home or a whole disk.
    """
    root = root.resolve()
    if root in (Path.home().resolve(), Path(root.anchor)):
        raise ConfigError(f"{root} is no project's folder; expected one with a project's code and conf/. Change to it first.")
    rules = _Rules(root, excludes)
    found = (file for file in _walk(root, rules, {os.path.realpath(root)}, results.resolve() if results else None))
    return Package(root, tuple(sorted(found, key=lambda file: file.name)))


class _Rules:
    """The rules that hold in a folder: each a list of patterns, and the folder that they are relative to."""

    def __init__(self, root: Path, last: Sequence[str]) -> None:
        self.root = root
        self._always = [(root, pathspec.GitIgnoreSpec.from_lines(NEVER.splitlines()))]
        self._last = [(root, pathspec.GitIgnoreSpec.from_lines(last))]
        self._of_folders: dict[Path, pathspec.GitIgnoreSpec] = {}

    def enter(self, folder: Path) -> None:
        """Read the ignore files of a folder."""
        texts = [(folder / name).read_text(errors="replace") for name in IGNORE_FILES if (folder / name).is_file()]
        if texts:
            self._of_folders[folder] = pathspec.GitIgnoreSpec.from_lines("\n".join(texts).splitlines())

    def leave_out(self, path: Path, *, folder: bool) -> bool:
        """Whether the last rule that fits says so."""
        above = [(place, self._of_folders[place]) for place in reversed(path.parents) if place in self._of_folders]
        for place, spec in reversed([*self._always, *above, *self._last]):
            verdict = spec.check_file(f"{path.relative_to(place).as_posix()}{'/' * folder}").include
            if verdict is not None:
                return verdict
        return False


def _walk(folder: Path, rules: _Rules, seen: set[str], results: Path | None) -> Iterator[File]:
    """Files below a folder. A virtual environment is known by its marker; a link into a folder that was seen is passed over."""
    rules.enter(folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.is_dir():
                real = os.path.realpath(path)
                passed = rules.leave_out(path, folder=True) or real in seen or (results is not None and real == str(results))
                if not passed and not (path / "pyvenv.cfg").is_file() and not (path / "conda-meta").is_dir():
                    yield from _walk(path, rules, seen | {real}, results)
            elif entry.is_file() and not rules.leave_out(path, folder=False):
                yield File(path.relative_to(rules.root).as_posix(), entry.stat().st_size)


def _mode(path: Path) -> int:
    """A regular file's mode: 0755 for what may be run, else 0644."""
    return stat.S_IFREG | (0o755 if os.access(path, os.X_OK) else 0o644)

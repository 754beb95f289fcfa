"""A backup file: named members, compressed, and a manifest that says what each must be. Any `unzip` can list it.

Promises: it appears under its name only when it is whole and on disk, readable by its owner only (0600); what was cut
short, changed by one bit or made by something else is refused (NB-3072), at the latest at the end of that member.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from nbpulse.errors import StartupError

FORMAT: Final = 2
"""Of an archive with parts; one without is of format 1, as ever."""
_MANIFEST: Final = "manifest.json"
_CHUNK_BYTES: Final = 1 << 18
# Level 1 keeps up with the database; level 6 takes three times as long for a tenth less.
_LEVEL: Final = 1


class Member(msgspec.Struct, frozen=True):
    """What one member must be, uncompressed; `rows` are lines."""

    name: str
    rows: int
    size_bytes: int
    sha256: str


class Table(msgspec.Struct, frozen=True):
    """One table: its name with the schema, and its columns in the member's order."""

    name: str
    columns: list[str]
    rows: Member


class Partition(msgspec.Struct, frozen=True):
    """A month of a partitioned table, as PostgreSQL writes its bounds."""

    parent: str
    name: str
    bounds: str


class Part(msgspec.Struct, frozen=True):
    """What a database beside the directory held: its shards, as `shard_map` had them, and their rows."""

    name: str
    shards: list[int]
    tables: list[Table]
    partitions: list[Partition]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """
    All there is in an archive. `began_at` is the database's clock before the first byte was read.

    `canaries` are sealed texts by the id of the key that opens them; tables stand in the order in which they load.
    """

    format: int
    nbpulse: str
    revision: str
    began_at: datetime
    canaries: dict[str, str]
    keys: Member | None
    stream: Member
    tables: list[Table]
    partitions: list[Partition]
    parts: list[Part] = []


class MemberWriter:
    """Takes one member's bytes, and counts them; `finish` says what it has become."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self._name, self._file = name, file
        self._hash = hashlib.sha256()
        self._size_bytes = self._rows = 0

    def write(self, data: bytes) -> int:
        """How many lines ended in `data`. Raises StartupError (NB-3071)."""
        self._hash.update(data)
        self._size_bytes += len(data)
        ended = data.count(b"\n")
        self._rows += ended
        self._file.write(data)
        return ended

    def finish(self) -> Member:
        """What was written."""
        return Member(self._name, self._rows, self._size_bytes, self._hash.hexdigest())


class ArchiveWriter:
    """Writes members one after the other, the manifest last."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._zip = file

    @contextmanager
    def add(self, name: str) -> Iterator[MemberWriter]:
        """A new member; nothing else may be written meanwhile."""
        with self._zip.open(name, "w", force_zip64=True) as file:
            yield MemberWriter(name, file)

    def close(self, manifest: Manifest) -> None:
        """Without this the file is none."""
        self._zip.writestr(_MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))


class ArchiveReader:
    """An archive with a manifest this version knows."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self._path, self._zip = path, file
        self.manifest = self._read_manifest()

    def read(self, member: Member) -> Iterator[bytes]:
        """Its bytes. Raises StartupError (NB-3072), at the end at the latest, when they are not what they must be."""
        digest = hashlib.sha256()
        with _translate_damage(self._path), self._zip.open(member.name) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                yield chunk
        if digest.hexdigest() != member.sha256:
            raise StartupError("NB-3072", path=self._path, detail=f"{member.name}: sha256")

    def read_lines(self, member: Member) -> Iterator[bytes]:
        """Its lines, without their ends."""
        rest = b""
        for chunk in self.read(member):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines

    def _read_manifest(self) -> Manifest:
        with _translate_damage(self._path):
            text = self._zip.read(_MANIFEST)
            # A newer format need not have our fields: its number is read alone.
            number = msgspec.json.decode(text, type=dict[str, Any]).get("format")
            if isinstance(number, int) and number > FORMAT:
                raise StartupError("NB-3073", path=self._path, revision=f"format {number}")
            return msgspec.json.decode(text, type=Manifest)


@contextmanager
def write_archive(path: Path, *, overwrite: bool) -> Iterator[ArchiveWriter]:
    """
    The file `path`, once everything has been written; whatever goes wrong, one that was there before stays.

    Raises StartupError: it is there already (NB-3070), the disk does not take it (NB-3071).
    """
    if path.exists() and not overwrite:
        raise StartupError("NB-3070", path=path)
    draft = path.with_name(f"{path.name}.unfinished")
    try:
        with _translate_disk(path):
            draft.unlink(missing_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as raw:
            with zipfile.ZipFile(
                _Output(raw, path),
                "w",
                zipfile.ZIP_DEFLATED,
                compresslevel=_LEVEL,
            ) as file:
                yield ArchiveWriter(file)
            with _translate_disk(path):
                os.fsync(raw.fileno())
        with _translate_disk(path):
            draft.replace(path)
            _sync_directory(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def read_archive(path: Path) -> Iterator[ArchiveReader]:
    """Raises StartupError: no whole backup of nbpulse (NB-3072), one of a newer nbpulse (NB-3073)."""
    with _translate_damage(path):
        file = zipfile.ZipFile(path)
    with file:
        yield ArchiveReader(path, file)


class _Output:
    """
    A file that can only be appended to. The first refusal is raised, what comes after it goes nowhere.

    `zipfile` writes its directory also when it is closed because of an error, which on a full disk would fail again.
    """

    def __init__(self, raw: IO[bytes], path: Path) -> None:
        self._raw, self._path, self._is_full = raw, path, False

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        while rest and not self._is_full:
            try:
                rest = rest[self._raw.write(rest) :]
            except OSError as error:
                self._is_full = True
                raise StartupError("NB-3071", path=self._path, detail=error.strerror) from error
        return len(data)

    def flush(self) -> None:
        """Nothing is held back here."""

    def close(self) -> None:
        """The file belongs to who opened it."""


@contextmanager
def _translate_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StartupError("NB-3071", path=path, detail=error.strerror) from error


@contextmanager
def _translate_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StartupError("NB-3072", path=path, detail=error.strerror or error) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, msgspec.MsgspecError) as error:
        raise StartupError("NB-3072", path=path, detail=error) from error


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The backup's file: whole or not there at all, and every damage is noticed."""

from __future__ import annotations

import zipfile
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import msgspec
import pytest

from nbpulse.archive import FORMAT, Manifest, Table, read_archive, write_archive
from nbpulse.errors import StartupError

ROWS = b"".join(b"%d\tnotebook %d\n" % (number, Random(number).getrandbits(40)) for number in range(3_000))


def make_archive(path: Path, *, number: int = FORMAT, overwrite: bool = False) -> Manifest:
    with write_archive(path, overwrite=overwrite) as archive:
        with archive.add("stream") as member:
            member.write(b"one\n")
        stream = member.finish()
        with archive.add("public.events") as member:
            for start in range(0, len(ROWS), 10_000):
                member.write(ROWS[start : start + 10_000])
        table = Table("public.events", ["id", "path"], member.finish())
        manifest = Manifest(
            format=number,
            nbpulse="1",
            revision="0006",
            began_at=datetime.now(UTC),
            canaries={"k": "sealed"},
            keys=None,
            stream=stream,
            tables=[table],
            partitions=[],
        )
        archive.close(manifest)
    return manifest


def read_all(path: Path) -> tuple[Manifest, bytes, bytes]:
    with read_archive(path) as archive:
        manifest = archive.manifest
        return (
            manifest,
            b"".join(archive.read(manifest.stream)),
            b"".join(archive.read(manifest.tables[0].rows)),
        )


def test_what_was_written_is_read_and_nobody_else_may(tmp_path: Path) -> None:
    manifest = make_archive(tmp_path / "a.zip")
    assert read_all(tmp_path / "a.zip") == (manifest, b"one\n", ROWS)
    assert (manifest.stream.rows, manifest.tables[0].rows.rows) == (1, 3_000)
    assert (tmp_path / "a.zip").stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(tmp_path / "a.zip") as ordinary:
        assert ordinary.read("public.events") == ROWS
    with read_archive(tmp_path / "a.zip") as archive:
        assert list(archive.read_lines(manifest.tables[0].rows)) == ROWS.splitlines()


def test_a_file_that_is_there_is_replaced_only_when_asked_and_only_by_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    make_archive(path)
    before = path.read_bytes()
    with pytest.raises(StartupError, match="NB-3070"):
        make_archive(path)
    with (
        pytest.raises(RuntimeError, match="in the middle"),
        write_archive(path, overwrite=True) as archive,
        archive.add("stream"),
    ):
        raise RuntimeError("in the middle")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    path.with_name("a.zip.unfinished").write_text("of a killed run")
    make_archive(path, overwrite=True)
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_takes_no_file_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="NB-3071") as refused, write_archive(tmp_path / "no" / "a", overwrite=False):
        pass
    assert "No such file or directory" in refused.value.title("en")


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    make_archive(tmp_path / "whole.zip")
    whole, short = (tmp_path / "whole.zip").read_bytes(), tmp_path / "short.zip"
    for length in {0, 1, len(whole) - 1, *Random(1).sample(range(len(whole)), 200)}:
        short.write_bytes(whole[:length])
        with pytest.raises(StartupError, match="NB-3072"):
            read_all(short)


def test_one_changed_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    expected = make_archive(tmp_path / "whole.zip")
    whole, changed = bytearray((tmp_path / "whole.zip").read_bytes()), tmp_path / "changed.zip"
    random, refused = Random(2), 0
    for _ in range(600):
        place, bit = random.randrange(len(whole)), 1 << random.randrange(8)
        whole[place] ^= bit
        changed.write_bytes(whole)
        whole[place] ^= bit
        try:
            assert read_all(changed) == (expected, b"one\n", ROWS), place
        except StartupError as error:
            assert error.code in {"NB-3072", "NB-3073"}, place
            refused += 1
    assert refused > 550


def test_members_exchanged_for_others_are_refused(tmp_path: Path) -> None:
    manifest = make_archive(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as forged:
        forged.writestr("stream", b"two\n")
        forged.writestr("manifest.json", msgspec.json.encode(manifest))
    with read_archive(tmp_path / "b.zip") as archive:
        for member in (manifest.stream, manifest.tables[0].rows):
            with pytest.raises(StartupError, match="NB-3072"):
                b"".join(archive.read(member))


def test_other_files_and_newer_formats_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a backup")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("hello", "world")
    make_archive(tmp_path / "newer.zip", number=FORMAT + 1)
    for name, code in (("text", "NB-3072"), ("other.zip", "NB-3072"), ("none", "NB-3072"), ("newer.zip", "NB-3073")):
        with pytest.raises(StartupError, match=code):
            read_all(tmp_path / name)

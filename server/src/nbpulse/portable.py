"""What is held of a person as a file of their own: a zip of tables, each as JSON and CSV, and a manifest with counts.

Pure: rows in, bytes out. A spreadsheet finds no formula in a text.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import IO, Any, Final

import msgspec

FORMAT: Final = 1
# What a spreadsheet would take for a formula: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_SPOOL_BYTES: Final = 1 << 22


class ExportWriter:
    """Writes tables one after the other into `file`, then the manifest."""

    def __init__(self, file: IO[bytes]) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED)
        self._counts: dict[str, int] = {}

    def write_table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
        """`name`.json, a list of objects, and `name`.csv; how many rows. Nothing is written of a table without rows."""
        count = 0
        with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as sheet:
            text = io.TextIOWrapper(sheet, "utf-8-sig", newline="", write_through=True)
            table = csv.writer(text)
            table.writerow(columns)
            member = None
            for row in rows:
                if member is None:
                    member = self._zip.open(f"{name}.json", "w", force_zip64=True)
                member.write(b"[\n" if not count else b",\n")
                member.write(msgspec.json.encode(dict(zip(columns, row, strict=True))))
                table.writerow([_compose_cell(value) for value in row])
                count += 1
            if member is None:
                return 0
            member.write(b"\n]\n")
            member.close()
            text.detach()
            sheet.seek(0)
            with self._zip.open(f"{name}.csv", "w", force_zip64=True) as out:
                while chunk := sheet.read(1 << 18):
                    out.write(chunk)
        self._counts[name] = count
        return count

    def discard(self) -> None:
        """Leave it unfinished; to be said before the file is closed, or its end is still written there some time."""
        self._zip.close()

    def close(self, **facts: Any) -> dict[str, int]:
        """End with the manifest: the facts, and how many rows each table has, which is also the answer."""
        manifest = {"format": FORMAT, "made_at": datetime.now(UTC), **facts, "rows": self._counts}
        self._zip.writestr("manifest.json", msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        self._zip.close()
        return self._counts


def _compose_cell(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict | list):
        return json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return "" if value is None else value

"""Pictures of a room for tests: one of each kind, 3 x 2 pixels, drawn by a browser; and a PNG of any size."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Final

JPEG: Final = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBk"
    "eFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2P/wAARCAACAAMD"
    "ASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAb/xAAYEAEBAQEBAAAAAAAAAAAAAAACAQARQf/EABUBAQEAAAAAAAAAAAAAAAAAAAEC/8QA"
    "GBEAAwEBAAAAAAAAAAAAAAAAAAECMTL/2gAMAwEAAhEDEQA/AIBJNVJVW+29zMxOIqumf//Z"
)
WEBP: Final = base64.b64decode("UklGRjYAAABXRUJQVlA4ICoAAADQAQCdASoDAAIAAsBMJYgCdEcAZIADUAD+7qY1VoPsUMhtRRSXH/gQIAA=")


def make_png(width: int = 3, height: int = 2, grey: int = 235) -> bytes:
    """A picture in one grey with darker rows of desks, if it is large enough to have some."""
    rows = [bytes(grey - 40 if y % 60 > 45 and x % 80 > 25 else grey for x in range(width)) for y in range(height)]
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = (make_png_chunk(b"IHDR", header), make_png_chunk(b"IDAT", pixels), make_png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def make_png_chunk(name: bytes, data: bytes) -> bytes:
    """One chunk with its sum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

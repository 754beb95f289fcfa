"""Pictures as they are uploaded: looked at, never decoded.

Promises: what comes out is one PNG, JPEG or WebP of a known size and nothing else: no place where it was taken, no
camera, no comment, no second file behind its end. Its pixels are not looked at; a browser, which is made for that,
draws them. A photograph's turn is among what is left out; the board's own page turns it before it is sent.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from nbpulse.errors import InvalidInput

PICTURE_BYTES_MAX: Final = 2_000_000
SIDE_MAX: Final = 6_000
MEDIA_TYPES: Final = ("image/png", "image/jpeg", "image/webp")

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT: Final = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"cICP"}
# Of JPEG's markers: those without a length, those that begin a frame, and of the applications' JFIF, ICC and Adobe.
_BARE: Final = {0x01, *range(0xD0, 0xD8)}
_FRAMES: Final = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_APPLICATIONS_LEFT_OUT: Final = {*range(0xE0, 0xF0), 0xFE} - {0xE0, 0xE2, 0xEE}
_SCAN, _END = 0xDA, 0xD9
_AFTER_SCAN: Final = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_WEBP_KEPT: Final = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP"}
_WEBP_MOVES, _WEBP_TELLS = 0x02, 0x0C  # flags: animation; EXIF and XMP


class Picture(msgspec.Struct, frozen=True):
    """One picture without its surroundings; sides in pixels, 1 to 6,000."""

    media_type: Literal["image/png", "image/jpeg", "image/webp"]
    width: int
    height: int
    body: bytes


def read_picture(body: bytes) -> Picture:
    """
    The picture that `body` is, whatever it was said to be.

    Raises InvalidInput: larger than 2 MB (NB-1301), no whole PNG, JPEG or still WebP (NB-1302), too many pixels
    (NB-1303).
    """
    if len(body) > PICTURE_BYTES_MAX:
        raise InvalidInput("NB-1301", limit_mb=PICTURE_BYTES_MAX // 1_000_000)
    try:
        if body.startswith(_PNG):
            picture = _read_png(body)
        elif body.startswith(b"\xff\xd8\xff"):
            picture = _read_jpeg(body)
        elif body[:4] == b"RIFF" and body[8:12] == b"WEBP":
            picture = _read_webp(body)
        else:
            raise InvalidInput("NB-1302")
    except (struct.error, IndexError, ValueError) as error:
        raise InvalidInput("NB-1302") from error
    if not (0 < picture.width <= SIDE_MAX and 0 < picture.height <= SIDE_MAX):
        raise InvalidInput("NB-1303", width=picture.width, height=picture.height, limit=SIDE_MAX)
    return picture


def _read_png(body: bytes) -> Picture:
    kept = [_PNG]
    chunks = _list_png_chunks(body)
    name, chunk = next(chunks)
    if name != b"IHDR":
        raise ValueError("no header")
    width, height = struct.unpack_from(">II", chunk, 8)
    kept.append(chunk)
    for name, chunk in chunks:
        if name in _PNG_KEPT:
            kept.append(chunk)
    return Picture("image/png", width, height, b"".join(kept))


def _list_png_chunks(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and whole chunks to the end; what stands behind it is left out. Raises ValueError for a damaged one."""
    at, name = len(_PNG), b""
    while name != b"IEND":
        size, name = struct.unpack_from(">I4s", body, at)
        (crc,) = struct.unpack_from(">I", body, at + 8 + size)
        if crc != zlib.crc32(body[at + 4 : at + 8 + size]):
            raise ValueError("damaged")
        yield name, body[at : at + 12 + size]
        at += 12 + size


def _read_jpeg(body: bytes) -> Picture:
    kept, at, sides, has_scan = [body[:2]], 2, (0, 0), False
    while True:
        start = at
        while body[at] == 0xFF:
            at += 1
        marker, at = body[at], at + 1
        if at - start < 2:
            raise ValueError("no marker")
        if marker == _END:
            break
        if marker in _BARE:
            continue
        (size,) = struct.unpack_from(">H", body, at)
        if size < 2 or at + size > len(body):
            raise ValueError("damaged")
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", body, at + 3)
            sides = width, height
        end = at + size
        if marker == _SCAN:
            has_scan = True
            following = _AFTER_SCAN.search(body, end)
            if following is None:
                raise ValueError("no end")
            end = following.start()
        if marker not in _APPLICATIONS_LEFT_OUT:
            kept.append(bytes((0xFF, marker)) + body[at:end])
        at = end
    if not has_scan:
        raise ValueError("nothing drawn")
    return Picture("image/jpeg", *sides, b"".join(kept) + bytes((0xFF, _END)))


def _read_webp(body: bytes) -> Picture:
    kept: list[bytes] = []
    sides: tuple[int, int] | None = None
    at, end = 12, 8 + struct.unpack_from("<I", body, 4)[0]
    if end > len(body):
        raise ValueError("damaged")
    while at < end:
        name, size = struct.unpack_from("<4sI", body, at)
        data = body[at + 8 : at + 8 + size]
        if len(data) != size:
            raise ValueError("damaged")
        at += 8 + size + size % 2
        if name == b"VP8X":
            if data[0] & _WEBP_MOVES:
                raise ValueError("it moves")
            data = bytes((data[0] & ~_WEBP_TELLS,)) + data[1:]
        if name in _WEBP_KEPT:
            sides = sides or _find_webp_sides(name, data)
            kept.append(struct.pack("<4sI", name, size) + data + b"\0" * (size % 2))
    if sides is None or not any(one[:4] in (b"VP8 ", b"VP8L") for one in kept):
        raise ValueError("nothing drawn")
    whole = b"WEBP" + b"".join(kept)
    return Picture("image/webp", *sides, struct.pack("<4sI", b"RIFF", len(whole)) + whole)


def _find_webp_sides(name: bytes, data: bytes) -> tuple[int, int] | None:
    if name == b"VP8X":
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if name == b"VP8L":
        bits = struct.unpack_from("<I", data, 1)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if name == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 6)
        return width & 0x3FFF, height & 0x3FFF
    return None

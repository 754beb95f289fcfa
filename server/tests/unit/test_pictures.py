"""Uploaded pictures: nothing of their surroundings stays, and what is no picture is refused, whatever it is."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbpulse.errors import InvalidInput
from nbpulse.pictures import PICTURE_BYTES_MAX, read_picture
from rooms import JPEG, WEBP, make_png, make_png_chunk

PNG = make_png()
SECRET = b"35.6586N 139.7454E <script>alert(1)</script>"
EXIF = b"\xff\xe1" + struct.pack(">H", len(SECRET) + 8) + b"Exif\0\0" + SECRET
COMMENT = b"\xff\xfe" + struct.pack(">H", len(SECRET) + 2) + SECRET
EXTENDED = struct.pack("<4sI", b"VP8X", 10) + bytes((0x0C, 0, 0, 0, 2, 0, 0, 1, 0, 0))
TOLD = struct.pack("<4sI", b"EXIF", len(SECRET)) + SECRET + b"\0" * (len(SECRET) % 2)


def wrap_webp(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(("body", "media_type"), [(PNG, "image/png"), (JPEG, "image/jpeg"), (WEBP, "image/webp")])
def test_a_picture_without_surroundings_stays_as_it_is(body: bytes, media_type: str) -> None:
    picture = read_picture(body)
    assert (picture.media_type, picture.width, picture.height, picture.body) == (media_type, 3, 2, body)


@pytest.mark.parametrize(
    ("told", "plain"),
    [
        (PNG[:33] + make_png_chunk(b"eXIf", SECRET) + make_png_chunk(b"tEXt", SECRET) + PNG[33:], PNG),
        (JPEG[:2] + EXIF + COMMENT + JPEG[2:], JPEG),
        (wrap_webp(EXTENDED, WEBP[12:], TOLD), None),
        (PNG + SECRET, PNG),
        (JPEG + SECRET, JPEG),
        (WEBP + SECRET, WEBP),
    ],
)
def test_where_it_was_taken_and_what_stands_behind_its_end_is_left_out(told: bytes, plain: bytes | None) -> None:
    picture = read_picture(told)
    assert SECRET in told
    assert SECRET not in picture.body
    assert plain is None or picture.body == plain
    assert read_picture(picture.body) == picture


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"GIF89a" + bytes(20),
        b"%PDF-1.7",
        PNG[:-8],
        PNG.replace(b"IDAT", b"IDAX"),
        JPEG[:-2],
        JPEG[:200],
        JPEG[:2] + JPEG[-2:],
        WEBP[:-4],
        wrap_webp(EXTENDED),
        wrap_webp(EXTENDED.replace(b"\x0c", b"\x02"), WEBP[12:]),
    ],
)
def test_what_is_no_whole_picture_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="NB-1302"):
        read_picture(body)


def test_too_many_bytes_or_pixels_are_refused() -> None:
    with pytest.raises(InvalidInput, match="NB-1301"):
        read_picture(PNG + bytes(PICTURE_BYTES_MAX))
    for sides in ((0, 5), (60_000, 60_000)):
        bomb = PNG[:8] + make_png_chunk(b"IHDR", struct.pack(">IIBBBBB", *sides, 8, 0, 0, 0, 0)) + PNG[33:]
        with pytest.raises(InvalidInput, match="NB-1303"):
            read_picture(bomb)


@given(st.sampled_from([PNG, JPEG, WEBP, wrap_webp(EXTENDED, WEBP[12:], TOLD)]), st.data())
def test_damage_is_refused_or_harmless(body: bytes, data: st.DataObject) -> None:
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        picture = read_picture(cut)
    except InvalidInput:
        return
    assert len(picture.body) <= len(cut) + 2
    assert read_picture(picture.body) == picture

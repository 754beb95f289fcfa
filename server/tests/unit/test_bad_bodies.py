"""Bodies and texts made to be slow to read: each is refused, or read, in one look."""

import pytest

from nbpulse.api.bodies import decode_body
from nbpulse.classroom.errorgroups import fingerprint_error
from nbpulse.deliveries import split_batch
from nbpulse.errors import InvalidInput

SIZE = 490_000


@pytest.mark.timeout(30)  # looked at twice, the third took longer than anybody waited
@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[]" * SIZE + b"x]",
        b"[" + b"[" * SIZE + b"x" + b"]" * SIZE + b"]",
        b'["' + b'\\"' * SIZE + b"]",
        b"[" + b'"' * (2 * SIZE) + b"]",
        b'["' + b"\\" * (2 * SIZE) + b"]",
        b"[" + b"{}," * (SIZE // 2) + b"x]",
    ],
)
def test_a_body_made_to_be_slow_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput) as refused:
        split_batch(body)
    assert refused.value.code in ("NB-1001", "NB-1003")


@pytest.mark.parametrize("text", [rb"\u0000", rb"a\\\u0000", rb"\\\\\u0000"])
def test_a_nul_in_a_text_is_refused_before_a_database_is_asked(text: bytes) -> None:
    with pytest.raises(InvalidInput) as refused:
        decode_body(b'{"deep": [{"text": "' + text + b'"}]}', dict)
    assert refused.value.code == "NB-1007"


@pytest.mark.parametrize("text", [rb"\\u0000", rb"\\\\u0000", rb"u0000", b"\\\\" * 200_000])
def test_what_only_looks_like_a_nul_is_taken(text: bytes) -> None:
    assert decode_body(b'{"text": "' + text + b'"}', dict)


def test_an_event_that_is_no_json_still_stands_alone() -> None:
    parts, is_batch = split_batch(b'[{"a": "b,]\\"}"}, {bad, [1]}, {"c": 2}]')
    assert is_batch
    assert parts == [b'{"a": "b,]\\"}"}', b"{bad, [1]}", b'{"c": 2}']


@pytest.mark.timeout(30)
def test_a_traceback_of_dashes_is_looked_at_once() -> None:
    data: dict[str, object] = {"error_name": "AssertionError", "error_message": "", "traceback": "-" * 300_000}
    assert fingerprint_error("n", "c", data)
    data["traceback"] = "----> 3 assert total == 7\n"
    other = {**data, "traceback": "--> 14 assert total == 7\n"}
    assert fingerprint_error("n", "c", data) == fingerprint_error("n", "c", other)

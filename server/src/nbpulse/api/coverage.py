"""Of which databases an answer of history is made, where the students' rows are in several (records/gathering.py).

Promises: an answer that leaves out students says so: in the header NBPULSE-Databases, and as `databases` where it is a
JSON object; a file, which outlives the moment, is whole or there is none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
from starlette.responses import Response

from nbpulse.errors import Unavailable
from nbpulse.records.gathering import Coverage, covering
from nbpulse.shards import SHARD_COUNT

HEADER: Final = "NBPULSE-Databases"


async def cover(make: Callable[[], Awaitable[Response]]) -> Response:
    """What `make` makes. Raises Unavailable (NB-2037): a file would leave out students."""
    with covering() as coverage:
        response = await make()
    return response if coverage.count < 2 else _say_coverage(response, coverage)


def add_first(response: Response, name: str, value: Any) -> bool:
    """A member more at the beginning of an answer that is a JSON object; False, and nothing done, where it is none."""
    body = bytes(response.body)
    is_json = response.headers.get("content-type", "").startswith("application/json")
    if not (is_json and body.startswith(b"{") and body != b"{}"):
        return False
    response.body = b'{"%b":%b,%b' % (name.encode(), msgspec.json.encode(value), body[1:])
    response.headers["content-length"] = str(len(response.body))
    return True


def _say_coverage(response: Response, coverage: Coverage) -> Response:
    missing = coverage.missing_shards
    told: dict[str, Any] = {"answered": len(coverage.used), "of": coverage.count}
    if missing:
        told["missing_shards"] = name_ranges(missing)
        told["missing_percent"] = round(100 * len(missing) / SHARD_COUNT)
        del response.headers["etag"]  # the whole answer may have the same rows, and is another
    is_object = add_first(response, "databases", told)
    if missing and not is_object and response.status_code == 200:
        raise Unavailable("NB-2037", retry_after_s=30)
    response.headers[HEADER] = msgspec.json.encode(told).decode()
    return response


def name_ranges(numbers: Sequence[int]) -> str:
    """Rising numbers, neighbours in one: 0-15 40."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return " ".join("-".join(map(str, one)) for one in ranges)

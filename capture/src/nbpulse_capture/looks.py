"""Who looked at the student's work, as the class's server has it in its audit log."""

from __future__ import annotations

from nbpulse_capture.membership import Membership
from nbpulse_capture.messages import RefusedError
from nbpulse_capture.wire import UnreachableError, Wire

LOOKS_MAX = 50


def fetch_looks(membership: Membership, language: str) -> list[dict[str, str]]:
    """
    What others did with the student's work, newest first: `at`, `by` ("": nobody by name), `text`.

    Raises RefusedError: the server cannot be reached (NB-7003), or does not tell (NB-7087).
    """
    wire = Wire(membership.url, course=membership.course_id)
    try:
        answer = wire.get(f"/api/v1/me/audit?limit={LOOKS_MAX}", token=membership.token)
    except UnreachableError as error:
        raise RefusedError("NB-7003", url=membership.url, reason=error) from error
    finally:
        wire.close()
    entries = answer.content.get("entries") if answer.status == 200 and isinstance(answer.content, dict) else None
    if not isinstance(entries, list):
        raise RefusedError("NB-7087", reason=f"HTTP {answer.status}")
    return [
        {"at": str(one["at"]), "by": str(one["by"] or ""), "text": str(one["text"].get(language) or one["action"])}
        for one in entries
        if not one["is_mine"]
    ]

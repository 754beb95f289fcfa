"""What `up` and `demo` print when everything runs: links, codes, and the next thing to type."""

from __future__ import annotations

import io
import json

from nbpulse.network import is_loopback
from nbpulse.running import Running
from nbpulse.settings import find_data_dir
from nbpulse.simulator import BEGINS_MIN
from nbpulse.terminal import answer, get_text, say


def announce(running: Running, *, as_json: bool) -> None:
    """One JSON line for scripts, else a few lines for a person."""
    described = running.describe()
    if as_json:
        answer(json.dumps(described))
        return
    is_lan = not is_loopback(running.options.host)
    facts = {
        "link": described["teacher_link"],
        "url": running.url,
        "code": running.prepared["join_code"],
        "line": f"{running.prepared['join_code']}@{running.url.removeprefix('http://')}",
        "course": running.prepared["course_title"],
        "data": f" --data {running.options.data_dir}" if running.options.data_dir != find_data_dir() else "",
    }
    if running.demo is not None:
        say(get_text("ready_demo", **facts, minutes=round(BEGINS_MIN)))
    else:
        say(get_text("ready", **facts))
        say(get_text("ready_students", **facts))
        if not is_lan and not running.options.public_url:
            say(get_text("ready_only_here"))
    if is_lan:
        say(get_text("ready_qr"))
        say(draw_qr_code(running.url))
        if running.url.startswith("http://"):
            say(get_text("warn_http"))
    say(get_text("ready_next", **facts))


def draw_qr_code(url: str) -> str:
    """The address as a QR code of half-block characters."""
    import segno

    drawing = io.StringIO()
    segno.make(url, micro=False).terminal(drawing, compact=True, border=2)
    return drawing.getvalue().rstrip("\n")

"""`nbpulse-capture join | status | doctor | leave | what-is-recorded`: what a student types, at most once a term."""

from __future__ import annotations

import argparse
import io
import json
import sqlite3
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from nbpulse_capture import __version__
from nbpulse_capture.consent import ConsentFile, Standing, forget_collection, resume
from nbpulse_capture.execution import format_time
from nbpulse_capture.membership import (
    Membership,
    MembershipFile,
    forget_membership,
    get_outbox_file,
    read_hub_membership,
    write_membership,
)
from nbpulse_capture.messages import RefusedError, get_language, get_text, say
from nbpulse_capture.notices import erase_waiting, fetch_notice, note_joined
from nbpulse_capture.outbox import Outbox
from nbpulse_capture.recording import add_commands, can_ask, describe_pause, is_yes, word_notice
from nbpulse_capture.sender import ERASED, describe_problem
from nbpulse_capture.wire import UnreachableError, Wire


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it did what it says, 1 with one line on stderr when not."""
    try:
        _soften_console()
        arguments = _build_parser().parse_args(argv)
        return int(arguments.action(arguments))
    except RefusedError as refusal:
        say(get_text(refusal.code, **refusal.facts), sys.stderr)
        return 1
    except (OSError, sqlite3.Error) as error:
        say(get_text("NB-7006", reason=error), sys.stderr)
        return 1
    except (EOFError, KeyboardInterrupt):
        return 1
    except SystemExit as stop:  # argparse has said what is wrong; a notebook's magic must not end the kernel
        return int(stop.code or 0)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nbpulse-capture",
        description="Tells your class which cells you run. / 授業にセルの実行を知らせます。",
        epilog="examples:\n  nbpulse-capture join http://10.0.0.5:8888 ABCD-EFGH --name 花子\n"
        "  nbpulse-capture status --json\n  nbpulse-capture leave",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    join = commands.add_parser("join", help="join a class / 授業に参加する")
    join.add_argument("url", nargs="?", metavar="ADDRESS")
    join.add_argument("code", nargs="?", metavar="CODE")
    join.add_argument("--name", help="your name as your teacher knows it / 名前")
    join.add_argument("--student-number", help="学籍番号")
    join.add_argument("--yes", action="store_true", help="do not ask after the notice / 通知の後で確認しない")
    join.add_argument("--resume-code", help="the code another computer showed when it joined / 再参加コード")
    join.set_defaults(action=join_class)
    status = commands.add_parser("status", help="joined to what, what waits, what went wrong / 状態を見る")
    status.add_argument("--json", action="store_true")
    status.set_defaults(action=show_status)
    doctor = commands.add_parser("doctor", help="look for what is missing, say the fix / 問題を調べて直し方を示す")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(action=examine_installation)
    add_commands(commands)
    leave = commands.add_parser("leave", help="stop recording and erase what is here / 退出する")
    leave.set_defaults(action=leave_class)
    recorded = commands.add_parser("what-is-recorded", help="the last events as sent / 記録された内容を見る")
    recorded.add_argument("--last", type=int, default=20, metavar="N")
    recorded.set_defaults(action=show_recorded)
    return parser


def join_class(arguments: argparse.Namespace) -> int:
    """Ask for what is missing, show the course's notice, and only then join; keep the token."""
    asks = can_ask()
    url = clean_url(_ask(arguments.url, "ask_url", asks=True))
    code = _ask(arguments.code, "ask_code", asks=True)
    name = _ask(arguments.name, "ask_name", asks=True)
    number = arguments.student_number
    if number is None and asks and arguments.name is None:
        number = input(get_text("ask_number")).strip()
    asked = {"join_code": code, "display_name": name}
    asked |= {"student_number": number} if number else {}
    asked |= {"resume_code": arguments.resume_code} if arguments.resume_code else {}
    notice = fetch_notice(url, code)
    say(word_notice(notice["notice"] if notice else None, get_language()))
    if asks and not arguments.yes and not is_yes(input(get_text("ask_join"))):
        return 1
    membership = join_course(url, asked, notice)
    lines = [get_text("joined", course=membership.course_title or membership.course_id, name=name)]
    if membership.resume_code:
        lines.append(get_text("resume_code", code=membership.resume_code))
    lines += [get_text("NB-7016")] if membership.waits_since else []
    say("\n".join([*lines, get_text("already_running")]))
    return 0


def join_course(url: str, asked: dict[str, Any], notice: dict[str, Any] | None) -> Membership:
    """
    Join having been shown `notice` (None: the one that comes with this package); the place and its terms are kept.

    Raises RefusedError as request_membership().
    """
    version = notice["version"] if notice else None
    membership, answered = request_membership(url, asked | ({"notice_version": version} if version else {}))
    note_joined(membership, answered, version)
    write_membership(membership)
    return membership


def request_membership(url: str, asked: dict[str, Any]) -> tuple[Membership, dict[str, Any]]:
    """Join at the class's server; nothing is kept yet. Raises RefusedError with what the student can do."""
    if (membership := MembershipFile().read()) is not None and membership.hub_user:
        raise RefusedError("NB-7060", name=membership.hub_user)
    wire = Wire(url)
    try:
        answer = wire.post("/api/v1/join", asked)
    except UnreachableError as error:
        raise RefusedError("NB-7003", url=url, reason=error) from error
    finally:
        wire.close()
    content = answer.content
    if not isinstance(content, dict):
        raise RefusedError("NB-7005", url=url)
    if answer.status not in {200, 201}:
        if "code" not in content and "title" not in content:
            raise RefusedError("NB-7005", url=url)
        raise RefusedError("NB-7004", reason=describe_problem(content))
    if not isinstance(content.get("token"), str):
        raise RefusedError("NB-7005", url=url)
    names = ("token", "user_id", "course_id", "course_title", "username", "resume_code")
    now = format_time()
    membership = Membership(
        url=url,
        display_name=asked["display_name"],
        joined_at=now,
        waits_since=now if content.get("is_waiting") is True else "",
        **{name: str(content.get(name) or "") for name in names},
    )
    return membership, content


def show_status(arguments: argparse.Namespace) -> int:
    """Joined to what, how many wait, what went wrong. Exit 1: somebody has to act."""
    status = describe_status()
    if arguments.json:
        say(json.dumps(status, ensure_ascii=False))
    elif not status["joined"]:
        say(describe_absence())
    else:
        say(format_status(status))
    return 0 if status["joined"] and not status["refused"] else 1


def describe_absence() -> str:
    """Why nothing is recorded: nobody has joined, or the hub's user is no student."""
    hub = read_hub_membership()
    if hub is None and get_outbox_file().exists():
        outbox = Outbox(get_outbox_file())
        try:
            if outbox.read_notes().get("ended") == ERASED:
                return get_text("NB-7088")
        finally:
            outbox.close()
    return get_text("NB-7001") if hub is None else get_text("NB-7062", name=hub.hub_user)


def describe_status() -> dict[str, Any]:
    """Everything `status --json` prints."""
    membership = MembershipFile().read()
    notes: dict[str, Any] = {}
    counts = {"waiting": 0, "set_aside": 0}
    set_aside: list[dict[str, Any]] = []
    if membership is not None and get_outbox_file().exists():
        outbox = Outbox(get_outbox_file())
        try:
            notes = outbox.read_notes()
            counts = outbox.count_events(membership.account)
            set_aside = [
                {"event_id": event["event_id"], "event_type": event["event_type"], "reason": reason}
                for state, event, reason in outbox.read_last_events(1000)
                if state == "set_aside"
            ][-20:]
        finally:
            outbox.close()
    standing = ConsentFile().read(membership) if membership else Standing()
    return {
        "joined": membership is not None,
        "paused": ConsentFile().is_paused(),
        "level": standing.policy.level,
        "notice_due": standing.is_notice_due,
        "url": membership.url if membership else None,
        "course_id": membership.course_id if membership else None,
        "course_title": membership.course_title if membership else None,
        "display_name": membership.display_name if membership else None,
        "hub_user": (membership.hub_user or None) if membership else None,
        **counts,
        "dropped": notes.get("dropped", 0) + _get_recorder_facts()[1],
        "last_success_at": notes.get("last_success_at"),
        "last_error": notes.get("last_error"),
        "refused": notes.get("refused"),
        "refused_events": set_aside,
        "faults": [*_get_recorder_facts()[0], *notes.get("last_faults", [])],
        "fault_count": notes.get("fault_count", 0),
    }


def format_status(status: dict[str, Any]) -> str:
    """The same for people."""
    course = status["course_title"] or status["course_id"] or "-"
    error = status["last_error"]
    through = "status_through_hub" if status["hub_user"] else "status_joined"
    lines = [
        get_text(through, course=course, name=status["display_name"] or "-", url=status["url"]),
        get_text(
            "status_counts",
            waiting=status["waiting"],
            set_aside=status["set_aside"],
            dropped=status["dropped"],
        ),
        get_text(
            "status_times",
            last_success=status["last_success_at"] or get_text("never"),
            last_error=f"{error['at']} {error['what']}" if error else get_text("none"),
        ),
    ]
    lines += [text for text in (describe_pause(), get_text("NB-7085") if status["notice_due"] else "") if text]
    if status["refused"]:
        lines.append(get_text("NB-7061") if status["hub_user"] else get_text("NB-7011"))
    if error and error["what"].startswith("NB-7016") and error["at"] > (status["last_success_at"] or ""):
        lines.append(get_text("NB-7016"))
    if status["set_aside"]:
        lines.append(get_text("NB-7013"))
        lines += [f"  {e['event_type']} {e['event_id']}: {e['reason']}" for e in status["refused_events"]]
    if status["faults"]:
        lines.append(get_text("NB-7028", count=max(status["fault_count"], len(status["faults"]))))
    return "\n".join(lines + [f"  {fault}" for fault in status["faults"]])


def examine_installation(arguments: argparse.Namespace) -> int:
    """Every check of the doctor's; exit 1 when something is wrong."""
    from nbpulse_capture.doctor import examine, format_findings

    findings = examine()
    is_good = all(finding.state != "wrong" for finding in findings)
    if arguments.json:
        told = {"ok": is_good, "findings": [finding.describe() for finding in findings]}
        say(json.dumps(told, ensure_ascii=False, default=str))
    else:
        say(format_findings(findings) + ("\n" + get_text("doctor_good") if is_good else ""))
    return 0 if is_good else 1


def leave_class(_arguments: argparse.Namespace) -> int:
    """Forget the token, erase this account's events. Running kernels stop recording at their next run."""
    membership = MembershipFile().read()
    if membership is None:
        raise RefusedError("NB-7001")
    if membership.hub_user:
        raise RefusedError("NB-7060", name=membership.hub_user)
    forget_membership()
    forget_collection(membership)
    resume()
    waiting_count = erase_waiting(membership)
    say(get_text("left", course=membership.course_title or membership.course_id, waiting=waiting_count))
    return 0


def show_recorded(arguments: argparse.Namespace) -> int:
    """The last events, one JSON object a line, exactly as sent; `#` lines say what became of each."""
    events: list[tuple[str, dict[str, Any], str | None]] = []
    if get_outbox_file().exists():
        outbox = Outbox(get_outbox_file())
        try:
            events = outbox.read_last_events(arguments.last)
        finally:
            outbox.close()
    if not events:
        say(get_text("recorded_none"))
    for state, event, reason in events:
        say(f"# {state} {reason or ''}".rstrip())
        say(json.dumps(event, ensure_ascii=False))
    return 0


def _get_recorder_facts() -> tuple[list[str], int]:
    """Our own faults and the events lost for want of memory, when asked from inside a kernel."""
    module = sys.modules.get("nbpulse_capture.kernel")
    recorder = module.get_recorder() if module else None
    if recorder is None:
        return [], 0
    faults = [*recorder.faults, *([recorder.sender.fault] if recorder.sender.fault else [])]
    return faults, recorder.journal.lost_count


def _ask(given: str | None, question: str, *, asks: bool) -> str:
    answer = (given or (input(get_text(question)) if asks else "")).strip()
    if not answer:
        raise RefusedError("NB-7007")
    return answer


def clean_url(text: str) -> str:
    """The server's root, whatever part of the board's address was copied."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise RefusedError("NB-7002", url=text)
    return f"{parts.scheme}://{parts.netloc}"


def _soften_console() -> None:
    """A console that lacks a letter (cp932, cp1252) shows a question mark instead; a notebook's output lacks none."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")

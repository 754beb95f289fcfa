"""`nbpulse-capture pause | resume | notice | withdraw`: a student's own say in what is recorded."""

from __future__ import annotations

import argparse
import sys
import time

from nbpulse_capture import consent, notices
from nbpulse_capture.membership import Membership, MembershipFile
from nbpulse_capture.messages import RefusedError, get_language, get_text, say
from nbpulse_capture.sender import describe_problem
from nbpulse_capture.wire import UnreachableError, Wire


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add them to the command line."""
    pause = commands.add_parser("pause", help="record nothing for a while / 記録を一時停止する")
    pause.add_argument("--minutes", type=_read_minutes, metavar="N", help="end by itself after N minutes / N分後に再開")
    pause.set_defaults(action=pause_recording)
    resume = commands.add_parser("resume", help="record again / 記録を再開する")
    resume.set_defaults(action=resume_recording)
    notice = commands.add_parser("notice", help="what your class records / 授業の記録の範囲を見る")
    notice.add_argument("--accept", action="store_true", help="you have read it / 読んで確認した")
    notice.set_defaults(action=show_notice)
    me = commands.add_parser("me", help="a link to what your class knows of you / 自分の記録のページを開く")
    me.set_defaults(action=link_own_page)
    withdraw = commands.add_parser("withdraw", help="end recording for good / 記録への参加を撤回する")
    withdraw.add_argument("--yes", action="store_true", help="do not ask / 確認しない")
    withdraw.set_defaults(action=withdraw_consent)


def pause_recording(arguments: argparse.Namespace) -> int:
    """Nothing is recorded until it is over, not even to be sent later; the class sees that the student has paused."""
    need_membership()
    consent.pause(arguments.minutes)
    say(get_text("paused_for", minutes=f"{arguments.minutes:g}") if arguments.minutes else get_text("paused"))
    return 0


def resume_recording(_arguments: argparse.Namespace) -> int:
    """From the next run on everything that the course collects is recorded again."""
    need_membership()
    consent.resume()
    say(get_text("resumed"))
    return 0


def link_own_page(_arguments: argparse.Namespace) -> int:
    """Print a link that opens the student's own page at the board, once, within 10 minutes."""
    say(get_text("own_page", link=make_own_link(need_membership())))
    return 0


def make_own_link(membership: Membership) -> str:
    """
    A link that opens the student's own page at the board, once, within 10 minutes.

    Raises RefusedError: the server cannot be reached (NB-7003), or makes none (NB-7089).
    """
    wire = Wire(membership.url, course=membership.course_id)
    try:
        answer = wire.post("/api/v1/me/link", {}, token=membership.token)
    except UnreachableError as error:
        raise RefusedError("NB-7003", url=membership.url, reason=error) from error
    finally:
        wire.close()
    code = answer.content.get("code") if isinstance(answer.content, dict) else None
    if answer.status != 201 or not isinstance(code, str):
        raise RefusedError("NB-7089", reason=describe_problem(answer.content))
    # Where a hub names the class's server by an address of its own network, browsers reach it by another.
    link = str(answer.content.get("url") or "")
    return link if link.startswith(("http://", "https://")) else f"{membership.url}/me#code={code}"


def show_notice(arguments: argparse.Namespace) -> int:
    """The course's notice as it is now; in a terminal, or with --accept, the student says that they have seen it."""
    membership = need_membership()
    notices.refresh(membership)
    standing = consent.ConsentFile().read(membership)
    say(word_notice(standing.notice, get_language()))
    if not standing.is_notice_due or standing.current is None:
        return 0
    if arguments.accept or (can_ask() and is_yes(input(get_text("ask_accept")))):
        notices.accept_notice(membership, standing.current.version)
        say(get_text("accepted"))
        return 0
    say(get_text("NB-7085"))
    return 1


def withdraw_consent(arguments: argparse.Namespace) -> int:
    """End recording here and at the class's server; says what stays there and whom to ask."""
    membership = need_membership()
    course = membership.course_title or membership.course_id
    if not arguments.yes and can_ask() and not is_yes(input(get_text("ask_withdraw", course=course))):
        return 1
    told = withdraw(membership)
    say(told.get(get_language()) or get_text("withdrawn", course=course))
    return 0


def withdraw(membership: Membership) -> dict[str, str]:
    """As notices.withdraw(), of the version that is known here."""
    current = consent.ConsentFile().read(membership).current
    return notices.withdraw(membership, current.version if current is not None and current.version else 1)


def word_notice(notice: dict[str, str] | None, language: str) -> str:
    """The course's own, else the one that comes with this package."""
    return (notice or {}).get(language) or get_text("notice")


def describe_pause() -> str:
    """For `status`; empty where nothing is paused."""
    file = consent.ConsentFile()
    if not file.is_paused():
        return ""
    end_s = file.get_pause_end_s()
    if end_s is None:
        return get_text("status_paused")
    return get_text("status_paused_for", minutes=max(1, round((end_s - time.time()) / 60)))


def need_membership() -> Membership:
    """Raises RefusedError (NB-7001): nobody has joined."""
    membership = MembershipFile().read()
    if membership is None:
        raise RefusedError("NB-7001")
    return membership


def can_ask() -> bool:
    """Whether somebody sits at a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def is_yes(answer: str) -> bool:
    """y, yes, はい"""
    return answer.strip().lower() in {"y", "yes", "はい", "ｙ"}


def _read_minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes <= 7 * 24 * 60:
        raise argparse.ArgumentTypeError("1 .. 10080")
    return minutes

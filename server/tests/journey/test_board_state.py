"""The board's reducer in real Chromium: snapshot + frames is the later snapshot, whatever happened between."""

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from nbpulse.classroom.figures import find_difference
from servers import CHROMIUM_FLAGS

pytestmark = pytest.mark.browser

Snapshot = dict[str, Any]
Frame = dict[str, Any]

CHARTS = {"funnel": "f", "trend": "x", "curve": "q"}
STATUSES = ["help", "stuck", "idle", "behind", "ok", "paused", "offline"]

# Everything a viewer can see; not when it came or by which way.
SEEN = """
function seen(state) {
  const { epoch, seq, at, health, alerts, ...rest } = state;
  const byId = Object.values(alerts).sort((a, b) => (a.id < b.id ? -1 : 1));
  return JSON.stringify({ ...rest, alerts: byId }, (key, value) =>
    value && typeof value === "object" && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))) : value);
}
"""


@pytest.fixture(scope="module")
def page(chromium_path: str, web_url: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_FLAGS)
        page = browser.new_page()
        page.goto(f"{web_url}/messages/en.json")  # any document of the origin will do: nothing of the board runs
        yield page
        browser.close()


class RandomClass:
    """A class to which anything happens; its snapshots are the truth, its frames the differences between two."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = 1_790_000_000_000
        self.made = 0
        self.truth: Snapshot = {
            "schema": 1,
            "epoch": "e1",
            "seq": self.random.randrange(1000),
            "server_time": "2026-11-23T01:02:03Z",
            "course": {"id": "c", "title": "t", "time_zone": "Asia/Tokyo", "join_code": "K7P4", "is_demo": False},
            "notebook": {"id": "n", "path": "week1.ipynb", "title": None},
            "notebooks": [{"id": "n", "path": "week1.ipynb", "title": None, "active": 0}],
            "cells": [],
            "students": [],
            "alerts": [],
            "errors": [],
            "hot": [],
            "muted": [],
            "meeting": None,
            "funnel": [],
            "trend": [],
            "curve": [],
            "exercises": [],
            "ago": None,
            "staff": [],
            "median": None,
        }
        for _ in range(self.random.randrange(8)):
            self.add_cell()
        for _ in range(self.random.randrange(12)):
            self.add_student()

    def take_snapshot(self) -> Snapshot:
        students = self.truth["students"]
        counts = {status: sum(s["st"] == status for s in students) for status in STATUSES}
        reached = sorted(s["pos"] for s in students)
        self.truth |= {
            "at": self.clock,
            "counts": counts,
            "connected": len(students) - counts["offline"],
            "median": float(reached[len(reached) // 2]) if reached else None,
            "h": {"lag_ms": self.random.randrange(400), "received": self.made, "stored": self.made},
        }
        for name in CHARTS:
            self.redraw(name)
        return copy.deepcopy(self.truth)

    def redraw(self, name: str) -> None:
        """Entries change, more come, and now and then the chart is another."""
        chart = [entry if self.random.random() < 0.7 else [entry[0], self.made] for entry in self.truth[name]]
        following = chart[-1][0] + 1 if chart else 0
        chart += [[following + n, self.made] for n in range(self.random.choice([0, 0, 0, 2]))]
        if self.random.random() < 0.1:
            chart = [[entry[0] + 1, entry[1]] for entry in chart[1:]]
        self.truth[name] = chart

    def live_on(self) -> None:
        """A quarter of a second passes."""
        self.clock += 250
        deeds = [self.run_cell] * 6 + [self.change_status, self.raise_alert, self.change_alert, self.clear_alert]
        deeds += [self.claim_alert]
        rare = [
            self.settle_group,
            self.change_course,
            self.share_error,
            self.end_exercise,
            self.add_student,
            self.rename_student,
            self.add_cell,
        ]
        for _ in range(self.random.randrange(9)):
            self.random.choice(deeds)()
        if self.random.random() < 0.3:
            self.random.choice(rare)()

    def new_id(self) -> str:
        self.made += 1
        return f"id-{self.random.randrange(10**9):09d}-{self.made}"

    def pick(self, what: str) -> Any:
        return self.random.choice(self.truth[what]) if self.truth[what] else None

    def add_cell(self) -> None:
        """Columns are learned from events, so a new one may come between others and already have states."""
        column = self.random.randrange(len(self.truth["cells"]) + 1)
        self.truth["cells"].insert(column, {"id": self.new_id(), "idx": 0, "title": None})
        for index, cell in enumerate(self.truth["cells"]):
            cell["idx"] = index
        for student in self.truth["students"]:
            state = self.random.choice("00013")
            student["s"] = student["s"][:column] + state + student["s"][column:]

    def add_student(self) -> None:
        width = len(self.truth["cells"])
        self.truth["students"].append(
            {
                "i": len(self.truth["students"]),
                "id": self.new_id(),
                "name": self.random.choice(["鈴木 咲良", "<b>Ana</b>", "a\u202eb", ""]),
                "num": str(self.made),
                "seat": self.random.choice([None, "B-04"]),
                "team": None,
                "s": "".join(self.random.choices("01234", k=width)),
                "pos": self.random.randrange(width + 1),
                "st": "ok",
                "since": self.clock,
            }
        )

    def rename_student(self) -> None:
        if student := self.pick("students"):
            student["name"] = f"renamed {self.new_id()}"

    def run_cell(self) -> None:
        student = self.pick("students")
        if student and student["s"]:
            column = self.random.randrange(len(student["s"]))
            state = self.random.choice("1234")
            student["s"] = student["s"][:column] + state + student["s"][column + 1 :]
            student["pos"] = max(student["pos"], column + 1)

    def change_status(self) -> None:
        if student := self.pick("students"):
            student |= {"st": self.random.choice(STATUSES), "since": self.clock}

    def raise_alert(self) -> None:
        if student := self.pick("students"):
            kind = self.random.choice(STATUSES[:4])
            self.truth["alerts"].append(
                {"id": self.new_id(), "i": student["i"], "kind": kind, "since": self.clock, "cell": None}
                | {"idx": None, "label": None, "n": None, "text": None}
                | {"weight": self.random.randrange(1, 5), "ranked_since": self.clock}
            )

    def change_alert(self) -> None:
        if alert := self.pick("alerts"):
            alert |= {"label": "NameError df", "n": self.random.randrange(3, 9)}

    def claim_alert(self) -> None:
        if alert := self.pick("alerts"):
            claim = {"by": "s", "name": "田中", "at": self.clock}
            alert["claim"] = None if alert.get("claim") else claim

    def share_error(self) -> None:
        error = {"fp": self.new_id(), "label": "NameError df", "cell": "c", "n": self.made, "since": self.clock}
        self.truth["errors"] = [error, *self.truth["errors"]][:3]

    def settle_group(self) -> None:
        """A group is called otherwise, or muted, or back again; so is a hot cell."""
        if error := self.pick("errors"):
            error["title"] = self.random.choice([None, "ours"])
            if self.random.random() < 0.5:
                self.truth["errors"].remove(error)
                self.truth["muted"] = [*self.truth["muted"], {"fp": error["fp"], "n": 2, "title": error["title"]}][-3:]
        elif muted := self.pick("muted"):
            self.truth["muted"].remove(muted)
        if cell := self.pick("cells"):
            self.truth["hot"] = [{"cell": cell["id"], "failed": self.made, "tried": self.made, "since": self.clock}]

    def change_course(self) -> None:
        self.truth["course"] = self.truth["course"] | {"title": f"title {self.made}"}
        self.truth["meeting"] = {"id": "m", "title": None, "started_at": self.clock, "ended_at": None}

    def end_exercise(self) -> None:
        self.truth["exercises"] = [["Q1", self.made, 0]]
        self.truth["staff"] = [{"id": "s", "name": "田中", "here": self.random.random() < 0.5, "with": None}]
        self.truth["ago"] = {"at": self.clock, "counts": {"help": self.made}}

    def clear_alert(self) -> None:
        if alert := self.pick("alerts"):
            self.truth["alerts"].remove(alert)

    def make_frame(self, before: Snapshot) -> tuple[Frame, Snapshot]:
        """The frame that leads from `before` to now."""
        after = self.take_snapshot()
        after["seq"] = self.truth["seq"] = before["seq"] + 1
        frame: Frame = {"t": "d", "seq": after["seq"], "at": after["at"], "h": after["h"]}
        for name in after.keys() - {"at", "h", "seq", "students", "alerts", *CHARTS}:
            if before[name] != after[name]:
                frame[name] = after[name]
        for name, delta in CHARTS.items():
            if before[name] != after[name]:
                difference = find_difference(before[name], after[name])
                frame[name if difference is None else delta] = after[name] if difference is None else difference
        frame |= describe_rows(before, after) | describe_alerts(before["alerts"], after["alerts"])
        return frame, after


def describe_rows(before: Snapshot, after: Snapshot) -> Frame:
    columns = [cell["id"] for cell in before["cells"]]
    came_from = [columns.index(cell["id"]) if cell["id"] in columns else None for cell in after["cells"]]
    known = {student["id"]: student for student in before["students"]}
    frame: Frame = {"students": [], "c": [], "p": [], "st": []}
    for student in after["students"]:
        old = known.get(student["id"])
        if old is None or old["name"] != student["name"]:
            frame["students"].append(student)
            continue
        moved = ["0" if column is None else old["s"][column] for column in came_from]
        changes = enumerate(zip(moved, student["s"], strict=True))
        frame["c"] += [[student["i"], column, int(new)] for column, (was, new) in changes if was != new]
        if old["pos"] != student["pos"]:
            frame["p"].append([student["i"], student["pos"]])
        if (old["st"], old["since"]) != (student["st"], student["since"]):
            frame["st"].append([student["i"], student["st"], student["since"]])
    return {name: part for name, part in frame.items() if part}


def describe_alerts(before: list[Any], after: list[Any]) -> Frame:
    old = {alert["id"]: alert for alert in before}
    new = {alert["id"]: alert for alert in after}
    frame = {
        "a+": [alert for alert in after if alert["id"] not in old],
        "a~": [alert for alert in after if alert["id"] in old and old[alert["id"]] != alert],
        "a-": [alert_id for alert_id in old if alert_id not in new],
    }
    return {name: part for name, part in frame.items() if part}


def play_class(seed: int, steps: int) -> tuple[Snapshot, list[Frame], Snapshot]:
    classroom = RandomClass(seed)
    first = last = classroom.take_snapshot()
    frames = []
    for _ in range(steps):
        classroom.live_on()
        frame, last = classroom.make_frame(last)
        frames.append(frame)
    return first, frames, last


def check_seeds(page: Page, seeds: range, steps: int) -> None:
    for seed in seeds:
        first, frames, last = play_class(seed, steps)
        reached, wanted = page.evaluate(
            "async ([first, frames, last]) => {"
            + SEEN
            + """
              const { applyFrame, applySnapshot } = await import("/js/state.js");
              return [seen(frames.reduce(applyFrame, applySnapshot(first))), seen(applySnapshot(last))];
            }""",
            [first, frames, last],
        )
        assert reached == wanted, f"seed {seed}"


def test_a_snapshot_and_its_frames_are_the_later_snapshot(page: Page) -> None:
    check_seeds(page, range(40), steps=60)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_snapshot_and_its_frames_are_the_later_snapshot_in_many_long_classes(page: Page) -> None:
    check_seeds(page, range(1000, 1100), steps=300)


def test_what_was_just_done_here_shows_before_the_server_has_told_and_changes_nothing_of_what_it_told(
    page: Page,
) -> None:
    shown = page.evaluate("""async () => {
      const { supposeAlerts } = await import("/js/state.js");
      const told = { a: { id: "a", claim: null }, b: { id: "b" }, c: { id: "c" } };
      const claim = { by: "me", name: "n", at: 1 };
      const supposed = supposeAlerts(told, { a: { claim }, b: { isGone: true }, gone: { isGone: true } });
      return { supposed, told, isSame: supposeAlerts(told, { gone: { claim } }) === told };
    }""")
    claimed = {"id": "a", "claim": {"by": "me", "name": "n", "at": 1}}
    assert shown["supposed"] == {"a": claimed, "c": {"id": "c"}}
    assert shown["told"] == {"a": {"id": "a", "claim": None}, "b": {"id": "b"}, "c": {"id": "c"}}
    assert shown["isSame"], "without a guess about them alerts keep their identity"


def test_frames_seen_again_change_nothing_and_a_missed_one_is_noticed(page: Page) -> None:
    first, frames, last = play_class(seed=7, steps=80)
    outcome = page.evaluate(
        "async ([first, frames, last]) => {"
        + SEEN
        + """
          const { applyFrame, applySnapshot, placeFrame } = await import("/js/state.js");
          let state = applySnapshot(first);
          const places = [placeFrame(state, frames[0]), placeFrame(state, frames[1])];
          let error = null;
          try { applyFrame(state, frames[1]); } catch (thrown) { error = thrown.name; }
          frames.forEach((frame, n) => {
            state = applyFrame(state, frame);
            if (applyFrame(state, frames[n >> 1]) !== state) throw new Error("an old frame changed something");
          });
          return { places, error, isSame: seen(state) === seen(applySnapshot(last)) };
        }""",
        [first, frames, last],
    )
    assert outcome == {"places": ["next", "gap"], "error": "RangeError", "isSame": True}


def test_a_viewer_that_starts_anywhere_and_resyncs_at_random_converges(page: Page) -> None:
    classroom = RandomClass(seed=11)
    chance = random.Random(11)
    snapshots, frames = [classroom.take_snapshot()], []
    for _ in range(120):
        classroom.live_on()
        frame, snapshot = classroom.make_frame(snapshots[-1])
        frames.append(frame)
        snapshots.append(snapshot)
    lost = [chance.random() < 0.2 for _ in frames]
    lost[-1] = False
    resyncs, is_same = page.evaluate(
        "async ([snapshots, frames, lost]) => {"
        + SEEN
        + """
          const { applyFrame, applySnapshot, placeFrame } = await import("/js/state.js");
          let state = applySnapshot(snapshots[0]), resyncs = 0;
          frames.forEach((frame, n) => {
            if (lost[n]) return;
            if (placeFrame(state, frame) === "gap") { state = applySnapshot(snapshots[n]); resyncs += 1; }
            state = applyFrame(state, frame);
          });
          return [resyncs, seen(state) === seen(applySnapshot(snapshots.at(-1)))];
        }""",
        [snapshots, frames, lost],
    )
    assert resyncs > 5
    assert is_same


def test_what_did_not_change_keeps_its_identity_and_a_stranger_is_refused(page: Page) -> None:
    classroom = RandomClass(seed=3)
    for _ in range(5):
        classroom.add_student()
    first = classroom.take_snapshot()
    outcome = page.evaluate(
        """async (first) => {
          const { applyFrame, applySnapshot } = await import("/js/state.js");
          const state = applySnapshot(first), seq = first.seq + 1;
          const next = applyFrame(state, { t: "d", seq, at: first.at, p: [[1, 9]] });
          let error = null;
          try { applyFrame(state, { t: "d", seq, at: first.at, st: [[9999, "ok", 0]] }); }
          catch (thrown) { error = thrown.name; }
          return {
            changed: next.rows.map((row, i) => row === state.rows[i]).filter((isSame) => !isSame).length,
            others: next.alerts === state.alerts && next.cells === state.cells && next.counts === state.counts,
            before: state.rows[1].pos === first.students[1].pos,
            after: next.rows[1].pos,
            error,
          };
        }""",
        first,
    )
    assert outcome == {"changed": 1, "others": True, "before": True, "after": 9, "error": "RangeError"}


def test_who_has_waited_longest_comes_first_by_the_weight_of_each_and_the_order_changes_with_time(page: Page) -> None:
    alerts = [("a", 4, 70), ("b", 1, 0), ("c", 2, 40), ("d", 1, 0)]
    ranked = page.evaluate(
        """async (alerts) => {
          const { rankAlerts } = await import("/js/state.js");
          return [80, 100, 200].map((at) => rankAlerts(alerts, at).map((alert) => alert.id).join(""));
        }""",
        {name: {"id": name, "weight": weight, "ranked_since": at, "since": at} for name, weight, at in alerts},
    )
    assert ranked == ["bdca", "cabd", "acbd"]


def test_search_folds_width_and_case_and_keeps_the_order(page: Page) -> None:
    rows = [
        {"i": i, "name": name, "num": num, "seat": seat, "team": None}
        for i, (name, num, seat) in enumerate(
            [("鈴木 咲良", "23A001", "B-04"), ("Ana Khan", "23A002", None), ("ｱﾅ ﾐﾗｰ", "23a003", "b-04")]
        )
    ]
    found = page.evaluate(
        """async (rows) => {
          const { filterRows } = await import("/js/state.js");
          return ["ANA", "アナ", "２３Ａ", "B-04", "", "x"].map((text) => filterRows(rows, text).map((row) => row.i));
        }""",
        rows,
    )
    assert found == [[1], [2], [0, 1, 2], [0, 2], [0, 1, 2], []]


def test_a_position_is_told_by_the_number_people_count_cells_by(page: Page) -> None:
    cells = [{"id": "a", "idx": 1, "title": None}, {"id": "b", "idx": 4, "title": None}]
    numbers = page.evaluate(
        """async (cells) => {
          const { cellNumberAt } = await import("/js/state.js");
          return [0, 1, 1.5, 2, 3].map((pos) => cellNumberAt(cells, pos)).concat(cellNumberAt([], 3));
        }""",
        cells,
    )
    assert numbers == [0, 2, 2, 5, 5, 0]

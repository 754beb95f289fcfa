"""A board as a browser keeps it, and the frames that come to it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from websockets.asyncio.client import ClientConnection

WAIT_S = 5.0
CHARTS = {"funnel": "f", "trend": "x", "curve": "q"}
FIGURES = ("counts", "median", "connected", "errors", "hot", "muted", "exercises", *CHARTS)


class Board:
    """What a browser keeps: a snapshot, and the frames applied to it."""

    def __init__(self, snapshot: dict[str, Any]) -> None:
        self.epoch, self.seq = snapshot["epoch"], snapshot["seq"]
        self.cells = [cell["id"] for cell in snapshot["cells"]]
        self.students = {student["i"]: dict(student) for student in snapshot["students"]}
        self.alerts = {alert["id"]: alert for alert in snapshot["alerts"]}
        self.figures = {name: snapshot[name] for name in FIGURES}
        self.notebooks, self.staff = snapshot["notebooks"], snapshot["staff"]

    def apply(self, frame: dict[str, Any]) -> None:
        assert frame["seq"] == self.seq + 1, "a gap"
        self.seq = frame["seq"]
        self.cells = [cell["id"] for cell in frame["cells"]] if "cells" in frame else self.cells
        self.notebooks = frame.get("notebooks", self.notebooks)
        self.staff = frame.get("staff", self.staff)
        self.figures |= {name: frame[name] for name in self.figures if name in frame}
        for name, delta in CHARTS.items():
            entries = {entry[0]: entry for entry in (*self.figures[name], *frame.get(delta, ()))}
            self.figures[name] = list(entries.values())
        for student in frame.get("students", ()):
            self.students[student["i"]] = dict(student)
        for i, column, state in frame.get("c", ()):
            squares = list(self.students[i]["s"])
            squares[column] = str(state)
            self.students[i]["s"] = "".join(squares)
        for i, position in frame.get("p", ()):
            self.students[i]["pos"] = position
        for i, status, since in frame.get("st", ()):
            self.students[i] |= {"st": status, "since": since}
        for i, doing in frame.get("do", ()):
            self.students[i]["do"] = doing
        for alert in (*frame.get("a+", ()), *frame.get("a~", ())):
            self.alerts[alert["id"]] = alert
        for alert_id in frame.get("a-", ()):
            self.alerts.pop(alert_id, None)

    def show(self) -> dict[str, Any]:
        students = sorted(self.students.values(), key=lambda one: one["id"])
        alerts = [{**alert, "i": self.students[alert["i"]]["id"]} for alert in self.alerts.values()]
        return {
            "cells": self.cells,
            "students": [{**student, "i": 0} for student in students],
            "alerts": sorted(alerts, key=lambda alert: alert["id"]),
            **self.figures,
        }


async def read(socket: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), WAIT_S))
    return message


async def follow(socket: ClientConnection, board: Board, until: Callable[[Board], bool]) -> None:
    """Apply frames until the board shows what is awaited."""
    deadline = time.monotonic() + WAIT_S
    while not until(board):
        assert time.monotonic() < deadline, board.show()
        message = await read(socket)
        if message["t"] == "d":
            board.apply(message)
        else:
            assert message["t"] in ("hello", "ping"), message


async def settle(socket: ClientConnection, board: Board, quiet_s: float = 0.8) -> None:
    """Apply frames until none has come for a while."""
    while True:
        try:
            message = json.loads(await asyncio.wait_for(socket.recv(), quiet_s))
        except TimeoutError:
            return
        if message["t"] == "d":
            board.apply(message)

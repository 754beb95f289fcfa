"""The front end's way to this computer's desk: `/nbpulse-capture/...` of the Jupyter server, for who is signed in.

Jupyter itself checks the login and, for everything that changes something, the XSRF token.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web

from nbpulse_capture.desk import Desk, list_texts
from nbpulse_capture.messages import RefusedError, translate

WAIT_CAP_S = 30.0
LONGEST_PAUSE_MINUTES = 7 * 24 * 60


class DeskHandler(APIHandler):
    """What all have in common."""

    def initialize(self, desk: Desk) -> None:
        """Called by tornado."""
        self.desk = desk

    @property
    def language(self) -> str:
        """The one the front end asks for."""
        return "ja" if self.get_query_argument("language", "en").startswith("ja") else "en"

    def read_json(self, kind: type) -> Any:
        """The body. Raises HTTPError 400 for anything else than a `kind`."""
        try:
            content = json.loads(self.request.body)
        except ValueError as error:
            raise web.HTTPError(400, "not JSON") from error
        if not isinstance(content, kind):
            raise web.HTTPError(400, f"{kind.__name__} expected")
        return content

    def refuse(self, refusal: RefusedError) -> None:
        """What the student is to be told, in the front end's language."""
        self.set_status(409)
        text = translate(self.language, refusal.code, refusal.facts | {"notice": refusal.facts.get(self.language)})
        version = refusal.facts.get("version")
        self.finish({"code": refusal.code, "text": text} | ({"notice_version": version} if version else {}))


class TextsHandler(DeskHandler):
    """`GET texts`: the catalogue of one language."""

    @web.authenticated
    def get(self) -> None:
        """Every text of the front end."""
        self.finish(list_texts(self.language))


class StateHandler(DeskHandler):
    """`GET state?after=&wait_s=`: answers when the state is another than the one known."""

    @web.authenticated
    async def get(self) -> None:
        """The state."""
        try:
            after = int(self.get_query_argument("after", "-1"))
            wait_s = min(WAIT_CAP_S, max(0.0, float(self.get_query_argument("wait_s", "0"))))
        except ValueError as error:
            raise web.HTTPError(400, "after, wait_s: numbers expected") from error
        self.finish(await asyncio.to_thread(self.desk.wait_for_state, after, wait_s))


class JoinHandler(DeskHandler):
    """`POST join`."""

    @web.authenticated
    async def post(self) -> None:
        """Join a class."""
        try:
            self.finish(await asyncio.to_thread(self.desk.join, self.read_json(dict)))
        except RefusedError as refusal:
            self.refuse(refusal)


class ObservedHandler(DeskHandler):
    """`POST observed`."""

    @web.authenticated
    async def post(self) -> None:
        """What the front end saw."""
        await asyncio.to_thread(self.desk.observe, self.read_json(list))
        self.set_status(204)


class HelpHandler(DeskHandler):
    """`POST help` raises the hand, `DELETE help` takes it down."""

    @web.authenticated
    async def post(self) -> None:
        """Raise it."""
        asked = self.read_json(dict)
        await self._do(self.desk.raise_hand, asked.get("path"), asked.get("message"))

    @web.authenticated
    async def delete(self) -> None:
        """Take it down."""
        await self._do(self.desk.take_down, self.get_query_argument("path", ""))

    async def _do(self, action: Any, *values: object) -> None:
        try:
            await asyncio.to_thread(action, *values)
            self.set_status(204)
        except RefusedError as refusal:
            self.refuse(refusal)


class MessagesHandler(DeskHandler):
    """`GET messages`: all that is kept; `POST messages` {text, thread_id}: the student answers."""

    @web.authenticated
    async def get(self) -> None:
        """The talk, oldest first."""
        self.finish({"messages": await asyncio.to_thread(self.desk.list_messages)})

    @web.authenticated
    async def post(self) -> None:
        """Answer; it is on its way when this answers, not yet there."""
        asked = self.read_json(dict)
        try:
            message_id = await asyncio.to_thread(self.desk.say, asked.get("text"), asked.get("thread_id"))
            self.set_status(202)
            self.finish({"id": message_id})
        except RefusedError as refusal:
            self.refuse(refusal)


class MessageStateHandler(DeskHandler):
    """`PUT messages/ID/state` {state}: shown, accepted, later, never."""

    @web.authenticated
    async def put(self, message_id: str) -> None:
        """Decide."""
        state = self.read_json(dict).get("state")
        try:
            await asyncio.to_thread(self.desk.decide, message_id, state)
            self.set_status(204)
        except RefusedError as refusal:
            self.refuse(refusal)


class FaultsHandler(DeskHandler):
    """`POST faults` {text}: a callback of the front end's has failed; the student's page goes on without it."""

    @web.authenticated
    async def post(self) -> None:
        """Note it."""
        await asyncio.to_thread(self.desk.note_fault, self.read_json(dict).get("text"))
        self.set_status(204)


class LooksHandler(DeskHandler):
    """`GET looks`: who looked at the student's work."""

    @web.authenticated
    async def get(self) -> None:
        """The newest first."""
        try:
            self.finish({"looks": await asyncio.to_thread(self.desk.list_looks, self.language)})
        except RefusedError as refusal:
            self.refuse(refusal)


class OwnPageHandler(DeskHandler):
    """`POST own-page`: a link to the student's own page at the board, good once."""

    @web.authenticated
    async def post(self) -> None:
        """Another link each time."""
        try:
            self.finish({"link": await asyncio.to_thread(self.desk.make_own_link)})
        except RefusedError as refusal:
            self.refuse(refusal)


class RecordingHandler(DeskHandler):
    """`POST pause` (`minutes` or until `resume`), `resume`, `consent` (`version`), `withdraw`."""

    def initialize(self, desk: Desk, action: str) -> None:  # type: ignore[override]
        """Called by tornado."""
        super().initialize(desk)
        self.action = action

    @web.authenticated
    async def post(self) -> None:
        """The student's own say in what is recorded."""
        asked = self.read_json(dict)
        try:
            told = await asyncio.to_thread(self._do, asked)
        except RefusedError as refusal:
            self.refuse(refusal)
        except (TypeError, ValueError) as error:
            raise web.HTTPError(400, "minutes, version: numbers expected") from error
        else:
            self.finish(told)

    def _do(self, asked: dict[str, Any]) -> dict[str, Any]:
        if self.action == "pause":
            minutes = float(asked["minutes"]) if asked.get("minutes") else None
            if minutes is not None and not 0 < minutes <= LONGEST_PAUSE_MINUTES:
                raise ValueError(minutes)
            self.desk.pause(minutes)
        elif self.action == "resume":
            self.desk.resume()
        elif self.action == "consent":
            self.desk.accept(int(asked.get("version") or 0))
        else:
            return {"text": self.desk.withdraw().get(self.language, "")}
        return {}


def add_routes(web_app: web.Application, desk: Desk) -> None:
    """Make them known to the Jupyter server's application."""
    base = web_app.settings["base_url"]
    routes = {
        "texts": TextsHandler,
        "state": StateHandler,
        "join": JoinHandler,
        "observed": ObservedHandler,
        "help": HelpHandler,
        "messages": MessagesHandler,
        "messages/([^/]+)/state": MessageStateHandler,
        "faults": FaultsHandler,
        "looks": LooksHandler,
        "own-page": OwnPageHandler,
    }
    own: list[tuple[str, type[DeskHandler], dict[str, Any]]]
    own = [(url_path_join(base, "nbpulse-capture", name), kind, {"desk": desk}) for name, kind in routes.items()]
    own += [
        (url_path_join(base, "nbpulse-capture", action), RecordingHandler, {"desk": desk, "action": action})
        for action in ("pause", "resume", "consent", "withdraw")
    ]
    web_app.add_handlers(".*$", own)

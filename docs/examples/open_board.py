"""Holds one board open, as a browser does: a WebSocket of the course $COURSE_ID with $TEACHER_TOKEN. For ever."""

from __future__ import annotations

import asyncio
import json
import os

from websockets.asyncio.client import connect


async def main() -> None:
    address = f"ws{os.environ['API_URL'].removeprefix('http')}/api/v1/courses/{os.environ['COURSE_ID']}/ws"
    async with connect(address, max_size=None) as line:
        await line.send(json.dumps({"t": "hello", "token": os.environ["TEACHER_TOKEN"]}))
        async for message in line:
            kind = json.loads(message)["t"]
            if kind == "ping":
                await line.send('{"t":"pong"}')
            elif kind != "frame":
                print(kind, flush=True)


if __name__ == "__main__":
    asyncio.run(main())

"""The specification's own flow, `make bench`'s yardstick: PUBLISH, answer, a subscriber storing one row at a time."""

import asyncio
import os
from contextlib import asynccontextmanager
from datetime import datetime
from uuid import UUID

import asyncpg
from fastapi import FastAPI, WebSocket
from pydantic import BaseModel
from redis.asyncio import BlockingConnectionPool, Redis

UPDATE_SESSION_STATS = """INSERT INTO learning_sessions AS s VALUES ($1, $2, now(), 1, $3) ON CONFLICT (user_id,
    notebook_path) DO UPDATE SET cell_executions = s.cell_executions + 1, error_count = s.error_count + $3"""
STORE_POINT = "INSERT INTO cell_executions VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"


class EventData(BaseModel):
    event_id: UUID
    event_type: str
    user_id: UUID
    notebook_path: str
    cell_index: int | None = None
    occurred_at: datetime
    data: dict = {}


client = Redis(connection_pool=BlockingConnectionPool.from_url(os.environ["REDIS_URL"], max_connections=20))
viewers: set[WebSocket] = set()


async def subscribe(channel, handle):
    async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(channel)
        async for message in pubsub.listen():
            await handle(message["data"])


async def notify_websocket_clients(message):
    for viewer in list(viewers):
        await viewer.send_text(message.decode())


@asynccontextmanager
async def run_notifications(_):
    task = asyncio.create_task(subscribe("stored_events", notify_websocket_clients))
    yield
    task.cancel()


app = FastAPI(lifespan=run_notifications)


@app.post("/api/v1/events")
async def receive_event(event: EventData):
    await client.publish("progress_events", event.model_dump_json())
    return {"status": "received", "event_id": event.event_id}


@app.websocket("/ws")
async def watch(viewer: WebSocket):
    await viewer.accept()
    viewers.add(viewer)
    await viewer.receive()  # it never speaks: what comes next is its leaving
    viewers.discard(viewer)


async def process_events():
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=2, max_size=10) as db:

        async def store_cell_execution(message):
            event = EventData.model_validate_json(message)
            key, data = (event.user_id, event.notebook_path), event.data
            await db.execute(UPDATE_SESSION_STATS, *key, int(data.get("has_error", False)))
            point = (event.cell_index, event.event_type, data.get("execution_duration_ms"), data.get("has_error"))
            await db.execute(STORE_POINT, event.event_id, *key, *point, data.get("error_message"), event.occurred_at)
            await client.publish("stored_events", message)

        await subscribe("progress_events", store_cell_execution)

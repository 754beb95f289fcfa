"""Who is asking: the person as whom row-level security lets this task read.

Promises: it holds for the task that said so and those it starts, in every store that asks PostgreSQL; where nobody has
said so it is nobody, who sees no row. The worker's login needs none: its policies let it see all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from uuid import UUID

_asker: ContextVar[UUID | None] = ContextVar("nbpulse_asker", default=None)


def ask_as(user_id: UUID | None) -> None:
    """From now on this task asks as `user_id` (None: nobody)."""
    _asker.set(user_id)


def get_asker() -> UUID | None:
    """As whom this task asks."""
    return _asker.get()


@contextmanager
def asking_as(user_id: UUID | None) -> Iterator[None]:
    """Ask as `user_id` for the length of the block."""
    token = _asker.set(user_id)
    try:
        yield
    finally:
        _asker.reset(token)


def identify() -> str:
    """
    The statement that tells the database who is asking, until the end of its transaction.

    As text, to be sent with others in one round trip: the id is written by us, from a UUID. Without an asker it is
    nobody. Nothing sent with it may be a SET: Citus would send the whole text to its nodes.
    """
    return f"SELECT ask_as('{_asker.get() or ''}')"

"""What the database still owes somebody: points not yet in the time series, entries set aside."""

from __future__ import annotations

from typing import NamedTuple

from nbpulse.records.people import People


class Owed(NamedTuple):
    """
    Batches whose points are owed, dead letters not replayed, students' notebooks whose derived points are owed; of
    batches and notebooks the oldest one's age (0 for none). NaN: not known.
    """

    debt_batches: float
    debt_oldest_s: float
    dead_letters: float
    series_marks: float
    mark_oldest_s: float


async def read_owed(people: People) -> Owed:
    """As it stands. Raises Unavailable (NB-2003)."""
    async with people.connect("read_owed") as connection:
        return Owed(*map(float, await connection.fetchrow("SELECT * FROM count_owed()")))

"""Who waits for one student's news: woken by a word about their inbox, or by a hand that is not as they know it."""

from __future__ import annotations

import asyncio

from nbpulse.classroom import HelpRequest, LearnerState


class Listener:
    """One waiting question. `known`: the student's hand as it was told; runs and the like wake nobody."""

    def __init__(self) -> None:
        self.known: HelpRequest | None = None
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There is news."""
        self._woken.set()

    def hear(self, state: LearnerState) -> None:
        """The student's newest state; without having been told of any hand, every state is news."""
        if self.known is None or _describe(state.help) != _describe(self.known):
            self.wake()

    async def wait(self, timeout_s: float) -> bool:
        """Whether there was news in that time, or since the last wait."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        return True


def _describe(hand: HelpRequest) -> tuple[str, bool]:
    return hand.request_id, hand.is_open

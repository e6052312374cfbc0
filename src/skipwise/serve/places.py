"""The places of a server behind this one: how many requests it computes at once, and whose is the next."""

import asyncio
from collections import Counter

from skipwise.serve.scheduler import Turns

_SECONDS_OF_A_REQUEST = 2.0  # a guess, for clients that are told when to try again


class Places:
    """The places of a mode at its server. The next one goes to the owner with the fewest, then to who came first."""

    def __init__(self, places: int, turns: Turns) -> None:
        self._places, self._turns = places, turns
        self._taken: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    @property
    def load(self) -> tuple[int, int]:
        """How many are taken, and how many requests wait."""
        return self._taken.total(), len(self._waiting)

    async def take(self, owner: str) -> None:
        """Waits for a place. Raises Refusal if too many wait already."""
        own = sum(one == owner for one, _ in self._waiting)
        self._turns.check_queue(len(self._waiting), own, _SECONDS_OF_A_REQUEST)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((owner, turn))
        self._hand_out()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(owner)
            else:
                self._waiting = [one for one in self._waiting if one[1] is not turn]
            raise

    def leave(self, owner: str) -> None:
        """Gives a place back."""
        self._taken[owner] -= 1
        self._taken += Counter()  # forgets owners of none
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._taken.total() < self._places:
            place = min(range(len(self._waiting)), key=lambda one: (self._taken[self._waiting[one][0]], one))
            owner, turn = self._waiting.pop(place)
            if not turn.cancelled():
                self._taken[owner] += 1
                turn.set_result(None)

"""Assignment of items to workers: bookkeeping without dask and without a clock.

A worker has one item at a time, so when it dies it is known what it died of. An item that was lost
goes to the end of the line: one that kills every worker is met again when all else is committed.
A worker without a heartbeat loses its item as well, and gets no other one until it has one.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from logitcache.errors import ClusterError
from logitcache.precompute.plan.worklist import in_words
from logitcache.precompute.run.compute import Progress, WorkerProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from logitcache.precompute.plan.worklist import WorkItem

__all__ = ["Dispatch"]

_SLOW = 2.0
_AGAIN_SECONDS = 0.5
_OFTEN = 20


@dataclass
class _Hand:
    """One worker.

    Attributes:
        name: As the user is told.
        state: ``preparing``, ``ready``, ``silent`` or ``refused``.
        before: Its state before it was silent.
        why: Why it was refused.
        item: Number of the item it has.
        images: Images of that item so far.
        since: When it took it.
    """

    name: str
    state: str = "preparing"
    before: str = ""
    why: str = ""
    item: int | None = None
    images: int = 0
    since: float = 0.0


@dataclass
class Dispatch:
    """The items of a run and the workers of a cluster.

    Attributes:
        items: What is missing, in order.
        images_of: How many images an item shows.
        clock: Seconds, from whenever.
        most_losses: How many workers may die of one item.
        notices: What has happened that the user should know.
        shown: Images shown to the teachers by items that are done.
    """

    items: Sequence[WorkItem]
    images_of: Callable[[WorkItem], int]
    clock: Callable[[], float]
    most_losses: int
    notices: list[str] = field(default_factory=list)
    shown: int = 0

    def __post_init__(self) -> None:
        self._hands: dict[str, _Hand] = {}
        self._pending = deque(range(len(self.items)))
        self._not_before: dict[int, float] = {}
        self._lost: Counter[int] = Counter()
        self._put_off: Counter[int] = Counter()
        self._waits: dict[int, str] = {}
        self._took: list[float] = []
        self._left = len(self.items)
        self._total = sum(map(self.images_of, self.items))

    @property
    def finished(self) -> bool:
        """Whether every item is done."""
        return self._left == 0

    @property
    def hopeful(self) -> bool:
        """Whether some worker can take an item, or may be able to soon."""
        return any(hand.state not in {"refused", "silent"} for hand in self._hands.values())

    @property
    def refusals(self) -> dict[str, str]:
        """Why workers were refused, by name."""
        hands = self._hands.values()
        return {hand.name: hand.why for hand in hands if hand.state == "refused"}

    def name_of(self, address: str) -> str:
        """Return how the user is told of a worker."""
        return self._hands[address].name if address in self._hands else address

    def here(self, address: str, name: str) -> None:
        """Note that a worker is there; it prepares itself."""
        self._hands.setdefault(address, _Hand(name))

    def ready(self, address: str, name: str) -> None:
        """Note that a worker can take items."""
        self.here(address, name)
        self._hands[address].name, self._hands[address].state = name, "ready"

    def refused(self, address: str, name: str, why: str) -> None:
        """Note that a worker cannot."""
        self.here(address, name)
        hand = self._hands[address]
        hand.name, hand.state, hand.why = name, "refused", why
        self.notices.append(f"worker {name} was refused: {_one_line(why)}")

    def progressed(self, address: str, images: int) -> None:
        """Note how many images of its item a worker has shown."""
        if address in self._hands and self._hands[address].item is not None:
            self._hands[address].images = images

    def gone(self, addresses: Collection[str]) -> None:
        """Note which workers there are no more, and give their items to others.

        Raises:
            ClusterError: An item has lost too many of them.
        """
        for address in addresses:
            hand = self._hands.pop(address)
            if hand.item is None:
                continue
            self._lost[hand.item] += 1
            self._pending.append(hand.item)
            words = in_words(self.items[hand.item])
            self.notices.append(f"worker {hand.name} was lost; {words} goes to another one")
            if self._lost[hand.item] > self.most_losses:
                raise ClusterError(
                    "every worker that takes this unit dies",
                    where=words,
                    got=f"{self._lost[hand.item]} workers lost, {hand.name} last; "
                    f"{self.done} of {len(self.items)} items are committed",
                    hint="look for the cause in that worker's log: memory, often, or the images "
                    "of this unit; what was committed is intact, the same command goes on",
                )

    def silent(self, address: str, seconds: float) -> WorkItem | None:
        """Note that a worker sends no heartbeat; return the item that goes to another one."""
        hand = self._hands[address]
        if hand.state in {"silent", "refused"}:
            return None
        hand.state, hand.before = "silent", hand.state
        number, hand.item, hand.images = hand.item, None, 0
        notice = f"worker {hand.name} has sent no heartbeat for {seconds:.0f} s"
        if number is None:
            self.notices.append(notice)
            return None
        self._pending.append(number)
        self.notices.append(f"{notice}; {in_words(self.items[number])} goes to another one")
        return self.items[number]

    def alive(self, address: str) -> None:
        """Note that a worker sends heartbeats."""
        hand = self._hands[address]
        if hand.state == "silent":
            hand.state = hand.before
            self.notices.append(f"worker {hand.name} sends heartbeats again")

    def item_of(self, address: str) -> WorkItem | None:
        """Return the item that a worker has."""
        number = self._hands[address].item
        return None if number is None else self.items[number]

    def waits(self, address: str, why: str) -> None:
        """Note that the item of a worker is another run's, and for which process that waits."""
        hand = self._hands.get(address)
        if hand is not None and hand.item is not None:
            self._waits.pop(hand.item, None)  # the last one is the newest
            self._waits[hand.item] = why

    @property
    def done(self) -> int:
        """How many items are done."""
        return len(self.items) - self._left

    def take(self) -> Iterator[tuple[str, int]]:
        """Yield (address, number) of items that idle workers take now."""
        idle = [a for a, hand in self._hands.items() if hand.state == "ready" and hand.item is None]
        for address in idle:
            number = self._next()
            if number is None:
                return
            hand = self._hands[address]
            hand.item, hand.images, hand.since = number, 0, self.clock()
            yield address, number

    def returned(self, address: str, number: int, *, committed: bool) -> None:
        """Note that a worker has given an item back.

        Args:
            address: The worker.
            number: The item.
            committed: Whether all of it is; otherwise it was put off, and its turn comes again.
        """
        hand = self._hands[address]
        if committed:
            self._left -= 1
            self._waits.pop(number, None)
            if hand.images:
                self._took.append(self.clock() - hand.since)
                self.shown += self.images_of(self.items[number])
        else:
            self._pending.append(number)
            self._not_before[number] = self.clock() + _AGAIN_SECONDS
            self._put_off[number] += 1
            if self._put_off[number] == _OFTEN:
                words = in_words(self.items[number])
                self.notices.append(f"{words} is waited for: another run has claimed it")
        hand.item, hand.images = None, 0

    def has(self, address: str, number: int) -> bool:
        """Return whether a worker is there and has this item."""
        return address in self._hands and self._hands[address].item == number

    def addresses(self) -> list[str]:
        """Return the workers that are known."""
        return list(self._hands)

    def progress(self) -> Progress:
        """Return how far the run is, and what every worker does."""
        begun = sum(hand.images for hand in self._hands.values() if hand.item is not None)
        return Progress(
            min(self.shown + begun, self._total),
            self._total,
            tuple(self._seen(hand) for hand in self._hands.values()),
            tuple(self.notices),
            waiting=list(self._waits.values())[-1] if 0 < self._left == len(self._waits) else "",
        )

    def _next(self) -> int | None:
        """Return the first item whose time has come."""
        now = self.clock()
        for _ in range(len(self._pending)):
            number = self._pending.popleft()
            if self._not_before.get(number, now) <= now:
                return number
            self._pending.append(number)
        return None

    def _seen(self, hand: _Hand) -> WorkerProgress:
        if hand.item is None:
            state = "idle" if hand.state == "ready" else hand.state
            return WorkerProgress(hand.name, state)
        item, seconds = self.items[hand.item], self.clock() - hand.since
        usual = statistics.median(self._took) if self._took else None
        total = self.images_of(item)
        return WorkerProgress(
            hand.name,
            "working",
            in_words(item),
            min(hand.images, total),
            total,
            seconds,
            slow=usual is not None and seconds > _SLOW * usual,
        )


def _one_line(text: str) -> str:
    return "; ".join(" ".join(line.split()) for line in text.splitlines())

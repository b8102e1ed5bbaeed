"""Assignment of items to workers: bookkeeping without dask and without a clock.

A worker has one item at a time, so when it dies it is known what it died of. It gets all views of a
block, whose images it has decoded. An item that was lost is assigned again when there is no other
one: one that kills every worker is met again when all else is committed.
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
class _WorkerState:
    """One worker.

    Attributes:
        name: Name in messages.
        state: ``preparing``, ``ready``, ``silent`` or ``refused``.
        before: Its state before it was silent.
        why: Why it was refused.
        item: Number of the item it has.
        block: Block of its last item.
        images: Images of that item so far.
        since: When it took it.
    """

    name: str
    state: str = "preparing"
    before: str = ""
    why: str = ""
    item: int | None = None
    block: int | None = None
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
        self._workers: dict[str, _WorkerState] = {}
        self._pending: dict[int, deque[int]] = {}
        """Items that were not assigned yet, by block."""
        for number, item in enumerate(self.items):
            self._pending.setdefault(item.block, deque()).append(number)
        self._again: deque[int] = deque()
        """Items that were lost or put off."""
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
    def can_continue(self) -> bool:
        """Whether some worker can take an item, or may be able to soon."""
        return any(worker.state not in {"refused", "silent"} for worker in self._workers.values())

    @property
    def refusals(self) -> dict[str, str]:
        """Why workers were refused, by name."""
        workers = self._workers.values()
        return {worker.name: worker.why for worker in workers if worker.state == "refused"}

    def name_of(self, address: str) -> str:
        """Return the name of a worker in messages."""
        return self._workers[address].name if address in self._workers else address

    def joined(self, address: str, name: str) -> None:
        """Note that a worker is there; it prepares itself."""
        self._workers.setdefault(address, _WorkerState(name))

    def ready(self, address: str, name: str) -> None:
        """Note that a worker can take items."""
        self.joined(address, name)
        self._workers[address].name, self._workers[address].state = name, "ready"

    def refused(self, address: str, name: str, why: str) -> None:
        """Note that a worker cannot."""
        self.joined(address, name)
        worker = self._workers[address]
        worker.name, worker.state, worker.why = name, "refused", why
        self.notices.append(f"worker {name} was refused: {_one_line(why)}")

    def progressed(self, address: str, images: int) -> None:
        """Note how many images of its item a worker has shown."""
        if address in self._workers and self._workers[address].item is not None:
            self._workers[address].images = images

    def gone(self, addresses: Collection[str]) -> None:
        """Note which workers there are no more, and give their items to others.

        Raises:
            ClusterError: An item has lost too many of them.
        """
        for address in addresses:
            worker = self._workers.pop(address)
            if worker.item is None:
                continue
            self._lost[worker.item] += 1
            self._again.append(worker.item)
            words = in_words(self.items[worker.item])
            self.notices.append(f"worker {worker.name} was lost; {words} is reassigned")
            if self._lost[worker.item] > self.most_losses:
                raise ClusterError(
                    "this unit terminates every worker that computes it",
                    where=words,
                    got=f"{self._lost[worker.item]} workers lost, {worker.name} last; "
                    f"{self.done} of {len(self.items)} items are committed",
                    hint="check the log of that worker for the cause, often its memory or "
                    "the images of this unit; committed data is intact, the same command resumes",
                )

    def silent(self, address: str, seconds: float) -> WorkItem | None:
        """Note that a worker sends no heartbeat; return the item that is reassigned."""
        worker = self._workers[address]
        if worker.state in {"silent", "refused"}:
            return None
        worker.state, worker.before = "silent", worker.state
        number, worker.item, worker.images = worker.item, None, 0
        notice = f"worker {worker.name} has sent no heartbeat for {seconds:.0f} s"
        if number is None:
            self.notices.append(notice)
            return None
        self._again.append(number)
        self.notices.append(f"{notice}; {in_words(self.items[number])} is reassigned")
        return self.items[number]

    def alive(self, address: str) -> None:
        """Note that a worker sends heartbeats."""
        worker = self._workers[address]
        if worker.state == "silent":
            worker.state = worker.before
            self.notices.append(f"worker {worker.name} sends heartbeats again")

    def item_of(self, address: str) -> WorkItem | None:
        """Return the item that a worker has."""
        number = self._workers[address].item
        return None if number is None else self.items[number]

    def waits(self, address: str, why: str) -> None:
        """Note that the item of a worker is another run's, and for which process that waits."""
        worker = self._workers.get(address)
        if worker is not None and worker.item is not None:
            self._waits.pop(worker.item, None)  # the last one is the newest
            self._waits[worker.item] = why

    @property
    def done(self) -> int:
        """How many items are done."""
        return len(self.items) - self._left

    def take(self) -> Iterator[tuple[str, int]]:
        """Yield (address, number) of items that idle workers take now."""
        idle = [
            a
            for a, worker in self._workers.items()
            if worker.state == "ready" and worker.item is None
        ]
        for address in idle:
            worker = self._workers[address]
            number = self._next(worker)
            if number is None:
                return
            worker.block = self.items[number].block
            worker.item, worker.images, worker.since = number, 0, self.clock()
            yield address, number

    def returned(self, address: str, number: int, *, committed: bool) -> None:
        """Note that a worker has given an item back.

        Args:
            address: The worker.
            number: The item.
            committed: Whether all of it is; otherwise it was put off, and its turn comes again.
        """
        worker = self._workers[address]
        if committed:
            self._left -= 1
            self._waits.pop(number, None)
            if worker.images:
                self._took.append(self.clock() - worker.since)
                self.shown += self.images_of(self.items[number])
        else:
            self._again.append(number)
            self._not_before[number] = self.clock() + _AGAIN_SECONDS
            self._put_off[number] += 1
            if self._put_off[number] == _OFTEN:
                words = in_words(self.items[number])
                self.notices.append(f"{words} waits: another run has claimed it")
        worker.item, worker.images = None, 0

    def has(self, address: str, number: int) -> bool:
        """Return whether a worker is there and has this item."""
        return address in self._workers and self._workers[address].item == number

    def addresses(self) -> list[str]:
        """Return the workers that are known."""
        return list(self._workers)

    def progress(self) -> Progress:
        """Return how far the run is, and what every worker does."""
        begun = sum(worker.images for worker in self._workers.values() if worker.item is not None)
        return Progress(
            min(self.shown + begun, self._total),
            self._total,
            tuple(self._seen(worker) for worker in self._workers.values()),
            tuple(self.notices),
            waiting=list(self._waits.values())[-1] if 0 < self._left == len(self._waits) else "",
        )

    def _next(self, worker: _WorkerState) -> int | None:
        """Return an item of the worker's block, of one nobody works on, of any; then a lost one."""
        block = worker.block
        if block not in self._pending:
            busy = {other.block for other in self._workers.values() if other.item is not None}
            free = (number for number in self._pending if number not in busy)
            block = next(free, next(iter(self._pending), None))
        if block is not None:
            numbers = self._pending[block]
            number = numbers.popleft()
            if not numbers:
                del self._pending[block]
            return number
        now = self.clock()
        for _ in range(len(self._again)):
            number = self._again.popleft()
            if self._not_before.get(number, now) <= now:
                return number
            self._again.append(number)
        return None

    def _seen(self, worker: _WorkerState) -> WorkerProgress:
        if worker.item is None:
            state = "idle" if worker.state == "ready" else worker.state
            return WorkerProgress(worker.name, state)
        item, seconds = self.items[worker.item], self.clock() - worker.since
        usual = statistics.median(self._took) if self._took else None
        total = self.images_of(item)
        return WorkerProgress(
            worker.name,
            "working",
            in_words(item),
            min(worker.images, total),
            total,
            seconds,
            slow=usual is not None and seconds > _SLOW * usual,
        )


def _one_line(text: str) -> str:
    return "; ".join(" ".join(line.split()) for line in text.splitlines())

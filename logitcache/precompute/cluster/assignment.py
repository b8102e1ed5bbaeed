"""Assignment of items to workers: bookkeeping without dask and without a clock.

A worker has one item at a time, so the item that terminates a worker is known. A worker gets all
views of a block, since it has decoded the images. The item of a lost worker is assigned again after
all others: if it terminates every worker, everything else is committed by then. A worker without
heartbeats loses its item, too, and gets no other one until it sends them again.
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

__all__ = ["Assignment"]

_SLOW = 2.0
_AGAIN_SECONDS = 0.5
_OFTEN = 20


@dataclass
class _WorkerState:
    """State of one worker.

    Attributes:
        name: Name in messages.
        state: ``preparing``, ``ready``, ``silent`` (no heartbeats) or ``refused``.
        before: State before the worker was silent.
        why: Reason for which it was refused.
        item: Number of its item; None if it has none.
        block: Block of its last item.
        images: Number of images of its item that are done.
        since: Time at which the item was assigned.
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
class Assignment:
    """Assignment of the items of a run to the workers of a cluster.

    Attributes:
        items: Missing items in order.
        images_of: Function that returns the number of images of an item.
        clock: Function that returns a time in seconds, from any origin.
        most_losses: Number of workers that may be lost with one item before the run fails.
        notices: Messages for the user, oldest first.
        shown: Number of images of the items that this run has committed.
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
        """Numbers of items that were not assigned yet, by block."""
        for number, item in enumerate(self.items):
            self._pending.setdefault(item.block, deque()).append(number)
        self._again: deque[int] = deque()
        """Numbers of items that are assigned again, after all pending ones."""
        self._not_before: dict[int, float] = {}
        self._lost: Counter[int] = Counter()
        self._put_off: Counter[int] = Counter()
        self._waits: dict[int, str] = {}
        self._took: list[float] = []
        self._left = len(self.items)
        self._total = sum(map(self.images_of, self.items))

    @property
    def finished(self) -> bool:
        """Whether every item is committed."""
        return self._left == 0

    @property
    def can_continue(self) -> bool:
        """Whether some worker can take an item now, or is preparing."""
        return any(worker.state not in {"refused", "silent"} for worker in self._workers.values())

    @property
    def refusals(self) -> dict[str, str]:
        """Reasons for which workers were refused, by name."""
        workers = self._workers.values()
        return {worker.name: worker.why for worker in workers if worker.state == "refused"}

    def name_of(self, address: str) -> str:
        """Return the name of a worker in messages."""
        return self._workers[address].name if address in self._workers else address

    def joined(self, address: str, name: str) -> None:
        """Record a worker; it is preparing."""
        self._workers.setdefault(address, _WorkerState(name))

    def ready(self, address: str, name: str) -> None:
        """Record that a worker can take items."""
        self.joined(address, name)
        self._workers[address].name, self._workers[address].state = name, "ready"

    def refused(self, address: str, name: str, why: str) -> None:
        """Record that a worker was refused, and the reason."""
        self.joined(address, name)
        worker = self._workers[address]
        worker.name, worker.state, worker.why = name, "refused", why
        self.notices.append(f"worker {name} was refused: {_one_line(why)}")

    def progressed(self, address: str, images: int) -> None:
        """Record the number of images of its item that a worker has done."""
        if address in self._workers and self._workers[address].item is not None:
            self._workers[address].images = images

    def gone(self, addresses: Collection[str]) -> None:
        """Remove workers that are lost; their items are assigned again.

        Raises:
            ClusterError: Too many workers were lost with the same item.
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
                    "every worker that computes this item terminates",
                    where=words,
                    got=f"{self._lost[worker.item]} workers lost, {worker.name} last; "
                    f"{self.done} of {len(self.items)} items are committed",
                    hint="check the log of that worker for the cause, often a lack of memory or an "
                    "image of this block; committed data is intact, the same command resumes",
                )

    def silent(self, address: str, seconds: float) -> WorkItem | None:
        """Record that a worker sends no heartbeats; return its item, which is assigned again."""
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
        """Record that a worker sends heartbeats."""
        worker = self._workers[address]
        if worker.state == "silent":
            worker.state = worker.before
            self.notices.append(f"worker {worker.name} sends heartbeats again")

    def item_of(self, address: str) -> WorkItem | None:
        """Return the item of a worker; None if it has none."""
        number = self._workers[address].item
        return None if number is None else self.items[number]

    def waits(self, address: str, why: str) -> None:
        """Record that another process has claimed the item of a worker, with a description."""
        worker = self._workers.get(address)
        if worker is not None and worker.item is not None:
            self._waits.pop(worker.item, None)  # the last one is the newest
            self._waits[worker.item] = why

    @property
    def done(self) -> int:
        """Number of items that are committed."""
        return len(self.items) - self._left

    def take(self) -> Iterator[tuple[str, int]]:
        """Assign items to idle workers; yield (address of the worker, number of the item)."""
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
        """Record the end of a task.

        Args:
            address: Address of the worker.
            number: Number of the item.
            committed: Whether the item is committed; otherwise it is assigned again later.
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
                self.notices.append(f"{words} is claimed by another run; waiting")
        worker.item, worker.images = None, 0

    def has(self, address: str, number: int) -> bool:
        """Return whether a worker is connected and has this item."""
        return address in self._workers and self._workers[address].item == number

    def addresses(self) -> list[str]:
        """Return the addresses of the connected workers."""
        return list(self._workers)

    def progress(self) -> Progress:
        """Return the progress of the run and of every worker."""
        begun = sum(worker.images for worker in self._workers.values() if worker.item is not None)
        return Progress(
            min(self.shown + begun, self._total),
            self._total,
            tuple(self._seen(worker) for worker in self._workers.values()),
            tuple(self.notices),
            waiting=list(self._waits.values())[-1] if 0 < self._left == len(self._waits) else "",
        )

    def _next(self, worker: _WorkerState) -> int | None:
        """Return the next item: of the worker's block, a free block, any block; then a lost one."""
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

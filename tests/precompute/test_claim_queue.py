"""Items are shared between runs, and one is written while the next is computed."""

from __future__ import annotations

import threading
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from logitcache.cache.store.open import locate
from logitcache.cache.write.claims import CLAIMS, Claims
from logitcache.cache.write.unit_commit import Conditions
from logitcache.precompute.run.background import Background
from logitcache.precompute.run.claim_queue import ClaimQueue
from logitcache.precompute.run.unit import Work, compute_item
from logitcache.views.spec import ViewsConfig
from tests.precompute import null

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from logitcache.cache.write.writer import CacheWriter
    from logitcache.precompute.plan.worklist import WorkItem
    from logitcache.views.tokens import ShownPatches

WAIT_SECONDS = 20.0
FIRST, SECOND = null.VIEWS[:2]


@pytest.fixture
def writer(tmp_path: Path) -> CacheWriter:
    """Return a cache that lacks everything of one teacher and two views."""
    writer = null.open_or_create(tmp_path / "c")
    null.declare_all(writer, {"t": null.UNIT}, null.VIEWS)
    return writer


def queue_of(writer: CacheWriter, settle: Callable[[], None]) -> tuple[ClaimQueue, list[WorkItem]]:
    groups = writer.teachers()
    items = null.missing_items(writer, groups, null.VIEWS)

    def never(what: str) -> None:
        raise AssertionError(what)

    claims = Claims(writer.location)
    return (
        ClaimQueue(items, writer.location, groups, claims, settle=settle, while_waiting=never),
        items,
    )


def work_of(writer: CacheWriter, teachers: null.NullTeachers) -> Work:
    groups = writer.row_groups()
    return Work(
        writer=writer,
        renderer=null.NullRenderer(),
        teachers=teachers,
        groups=groups,
        conditions={name: Conditions(null.BATCH, "float32", 1) for name in groups},
        views={view.id: view for view in ViewsConfig(count=2).views()},
        batch_rows=null.BATCH,
        skip_bad_images=False,
        after_batch=lambda _: None,
    )


def claimed(cache: Path) -> set[str]:
    return {path.stem for path in (cache / CLAIMS).glob("*.json")}


def test_a_claim_is_kept_until_its_item_is_given_back(writer: CacheWriter, tmp_path: Path) -> None:
    queue, items = queue_of(writer, settle=lambda: None)
    with queue:
        left = iter(queue)
        first, second = next(left), next(left)
        assert [first, second] == items[:2]
        assert claimed(tmp_path / "c") == {f"{FIRST}-0", f"{SECOND}-0"}
        queue.give_back(first)
        assert claimed(tmp_path / "c") == {f"{SECOND}-0"}
    assert claimed(tmp_path / "c") == set()


def test_no_output_is_committed_before_its_images(
    writer: CacheWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second view of a block is computed while the samples are written, and written later."""
    written: list[tuple[str, int]] = []

    def note(name: str) -> None:
        write: Callable[..., None] = getattr(writer, name)

        def noting(*arguments: Any) -> None:
            write(*arguments)
            written.append((name, next(a for a in arguments if isinstance(a, int))))

        monkeypatch.setattr(writer, name, noting)

    note("write_samples")
    note("write_unit")
    work = work_of(writer, null.NullTeachers())
    with Background() as background:
        queue, items = queue_of(writer, background.settle)
        with queue:
            for item in queue:
                compute_item(work, item, null.block_of(writer, item.block), background)
    blocks = -(-null.ROWS // null.UNIT)
    order = ["write_samples", "write_unit", "write_unit"]
    assert written == [(name, block) for block in range(blocks) for name in order]
    assert null.missing_items(writer, writer.teachers(), null.VIEWS) == []
    assert claimed(tmp_path / "c") == set()
    assert len(items) == 2 * blocks


def test_a_claim_that_is_held_is_acquired_again_after_its_item_is_committed(
    writer: CacheWriter,
) -> None:
    """Where a unit is smaller than a block, its samples are an item of their own."""
    null.declare_all(writer, {"small": null.UNIT // 2}, null.VIEWS)
    settled: list[int] = []
    work = work_of(writer, null.NullTeachers())
    with Background() as background:

        def settle() -> None:
            background.settle()
            settled.append(1)

        queue, items = queue_of(writer, settle)
        with queue:
            for item in queue:
                compute_item(work, item, null.block_of(writer, item.block), background)
    assert null.missing_items(writer, writer.teachers(), null.VIEWS) == []
    assert len(settled) == sum(not item.units for item in items) > 0


def test_the_next_view_of_a_block_that_is_being_written_is_ours_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One block, so that nothing else is to be done until its samples are committed."""
    writer = null.open_or_create(tmp_path / "c", null.UNIT)
    null.declare_all(writer, {"t": null.UNIT}, null.VIEWS)
    write = writer.write_samples

    def slowly(*arguments: object) -> None:
        time.sleep(0.3)
        write(*arguments)  # type: ignore[arg-type]  # passed on as they come

    monkeypatch.setattr(writer, "write_samples", slowly)
    work = work_of(writer, null.NullTeachers())
    with Background() as background:
        queue, items = queue_of(writer, background.settle)
        with queue:
            for item in queue:  # fails where it waits for somebody else
                compute_item(work, item, null.block_of(writer, item.block), background)
    assert len(items) == 2
    assert null.missing_items(writer, writer.teachers(), null.VIEWS) == []


def test_an_item_is_written_while_the_next_is_computed(
    writer: CacheWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = threading.Event()
    write_unit = writer.write_unit

    class Teachers(null.NullTeachers):
        def start(
            self,
            pixels: Mapping[int, NDArray[np.uint8]],
            batches: Mapping[str, int],
            kept_patches: Mapping[str, NDArray[np.int64] | None],
            shown: ShownPatches | None = None,
        ) -> dict[str, Callable[[], NDArray[np.float32]]]:
            if len(self.requested) >= null.UNIT:  # of the first item all are answered
                requested.set()
            return super().start(pixels, batches, kept_patches, shown)

    def write_when_the_next_is_asked(*arguments: object) -> None:
        assert requested.wait(WAIT_SECONDS), "the next item waits for this one"
        write_unit(*arguments)  # type: ignore[arg-type]  # passed on as they come

    monkeypatch.setattr(writer, "write_unit", write_when_the_next_is_asked)
    work = work_of(writer, Teachers())
    items = null.missing_items(writer, writer.teachers(), [FIRST])[:2]
    with Background() as background:
        for item in items:
            compute_item(work, item, null.block_of(writer, item.block), background)
    assert writer.missing_units(writer.teachers()["t"].path, FIRST, null.UNIT).isdisjoint({0, 1})


def test_two_runs_share_items(writer: CacheWriter, tmp_path: Path) -> None:
    mine, items = queue_of(writer, settle=lambda: None)
    other = Claims(locate(tmp_path / "c"))
    with other.claimed(f"{FIRST}-0") as won, mine:
        assert won
        assert next(iter(mine)) == items[2], "of the next block, whose images nobody has decoded"


def test_two_runs_share_a_block_where_no_other_is_left(writer: CacheWriter, tmp_path: Path) -> None:
    mine, items = queue_of(writer, settle=lambda: None)
    other = Claims(locate(tmp_path / "c"))
    last = items[-1].block
    for block in range(last + 1):  # as another run would have written it
        writer.write_samples(block, null.block_of(writer, block).samples())
    with other.claimed(f"{FIRST}-{last}") as won, mine:
        assert won
        taken = list(islice(mine, len(items) - 1))
    assert [(item.view_id, item.block) for item in taken[-2:]] == [
        (SECOND, last - 1),
        (SECOND, last),
    ]

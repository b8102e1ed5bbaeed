"""Memory of batches is used again, but never while anything refers to it."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from logitcache.views.batch_memory import BatchMemory
from logitcache.views.pixel_values import Normalized
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPE = (4, 3, 8, 8)
HOLDERS: dict[str, Callable[[Any], Any]] = {
    "the array": lambda array: array,
    "a slice": lambda array: array[1:2],
    "a slice of a slice": lambda array: array[1:][:1, :, ::2],
    "a transposed array": lambda array: array.transpose(0, 2, 3, 1),
    "other bytes": lambda array: array.view(np.uint8)[2],
    "a memoryview": lambda array: memoryview(array[3]),
    "a tensor": torch.from_numpy,
    "a row of a tensor": lambda array: torch.from_numpy(array)[2],
    "an array of a tensor": lambda array: torch.from_numpy(array)[2:].numpy()[0],
    "a detached tensor": lambda array: torch.from_numpy(array).requires_grad_().detach()[0],
    "a graph": lambda array: (torch.from_numpy(array) * torch.ones(1, requires_grad=True)).sum(),
}


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.mark.parametrize("kind", HOLDERS)
def test_memory_is_not_used_again_while_something_refers_to_it(kind: str) -> None:
    memory = BatchMemory()
    array = memory.empty(SHAPE, np.float32)
    array[:] = 7
    place = address(array)
    held = HOLDERS[kind](array)
    del array
    gc.collect()
    others = [memory.empty(SHAPE, np.float32) for _ in range(8)]
    assert place not in [address(other) for other in others]
    del held
    gc.collect()
    assert address(memory.empty(SHAPE, np.float32)) == place


def test_only_arrays_of_a_shape_and_dtype_share_memory() -> None:
    memory = BatchMemory()
    place = address(memory.empty(SHAPE, np.float32))
    assert memory.empty((*SHAPE[:3], 4), np.float32).shape == (*SHAPE[:3], 4)
    assert memory.empty(SHAPE, np.uint8).dtype == np.uint8
    assert address(memory.empty(SHAPE, np.float32)) == place


def test_little_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = BatchMemory()
    many = [memory.empty(SHAPE, np.uint8) for _ in range(20)]
    many.clear()
    for side in range(1, 10):
        memory.empty((1, 3, side, side), np.uint8)
    kept = [array for arrays in memory._free.values() for array in arrays]
    assert len(kept) <= 4, "of the shapes that were used last"
    last = memory.empty(SHAPE, np.uint8)
    memory.close()
    del last
    assert not memory._free, "memory that was in use when it was closed is released"


def batches_of(values: Normalized | None, *, hold: bool) -> list[Any]:
    """Render twelve batches, and return copies, or the slices that were held to the end."""
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (16, 20, 3), dtype=np.uint8) for _ in range(48)]
    view, places = ViewsConfig().random_view(1), np.arange(48)
    requests = [BatchRequest(view, part, part.astype(np.uint64)) for part in np.split(places, 12)]
    with ViewRenderer(images.__getitem__, [8], threads=2, values=values) as renderer:
        if hold:
            return [torch.from_numpy(b.pixels[8])[1:] for b in renderer.batches(requests)]
        return [torch.from_numpy(b.pixels[8][1:].copy()) for b in renderer.batches(requests)]


@pytest.mark.parametrize("values", [None, Normalized((0.5, 0.25, 0.0), (0.5, 0.25, 1.0))])
def test_batches_that_are_held_are_those_that_were_copied_at_once(
    values: Normalized | None,
) -> None:
    """As by a training step that accumulates gradients, or a list of all batches."""
    held, copied = batches_of(values, hold=True), batches_of(values, hold=False)
    assert len(held) == 12
    assert all(map(torch.equal, held, copied))


def test_normalized_batches_have_the_bits_of_torch() -> None:
    """Every level of every channel: floats, less the mean, over the deviation."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    levels_3SS = np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(3).reshape(16, 16, 3)
    out_3SS = np.empty((3, 16, 16), np.float32)
    Normalized(mean, std).write(levels_3SS.transpose(2, 0, 1), out_3SS)
    means, stds = ((255.0 * torch.tensor(values)).view(-1, 1, 1) for values in (mean, std))
    expected = torch.from_numpy(levels_3SS).permute(2, 0, 1).float().sub(means).div(stds)
    assert torch.equal(torch.from_numpy(out_3SS), expected)


def test_a_row_that_stays_empty_is_zero_in_memory_that_was_used_before() -> None:
    def read(index: int) -> Any:
        return b"junk" if index == 9 else np.full((8, 8), 200, dtype=np.uint8)

    view, hashes = ViewsConfig().random_view(1), np.zeros(2, dtype=np.uint64)
    rows = [[0, 1]] * 6 + [[9, 0], [-1, 0]] * 3
    requests = [BatchRequest(view, np.array(each), hashes) for each in rows]
    with ViewRenderer(read, [8], threads=2) as renderer:
        shown = [
            batch.pixels[8].max(axis=(1, 2, 3)).tolist() for batch in renderer.batches(requests)
        ]
    assert shown == [[200, 200]] * 6 + [[0, 200]] * 6

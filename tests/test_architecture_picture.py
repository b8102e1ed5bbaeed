"""The picture of the architecture is what the import table says, and can be read."""

from __future__ import annotations

import re
from itertools import combinations

from tests.architecture_picture import (
    PICTURE,
    WIDTH,
    boxes,
    imports_by_package,
    layers,
    picture,
)


def test_the_picture_is_what_the_table_says() -> None:
    assert PICTURE.read_text() == picture(), "run python -m tests.architecture_picture"


def test_no_two_boxes_overlap_and_all_are_inside() -> None:
    for box in boxes():
        assert box.x >= 0
        assert box.x + box.width <= WIDTH
    for a, b in combinations(boxes(), 2):
        apart = a.x + a.width <= b.x or b.x + b.width <= a.x
        assert apart or a.bottom <= b.y or b.bottom <= a.y, (a.name, b.name)


def test_arrows_point_downwards_and_text_is_large_enough() -> None:
    arrows = re.findall(r'class="arrow" d="M[\d.]+ ([\d.]+)V([\d.]+)"', picture())
    assert len(arrows) > 10
    assert all(float(start) < float(end) for start, end in arrows)
    sizes = [int(size) for size in re.findall(r"(\d+)px", picture())]
    assert min(sizes) >= 12


def test_a_package_imports_from_lower_layers_alone() -> None:
    depth = {package: -n for n, layer in enumerate(layers()) for package in layer}
    for package, imports in imports_by_package().items():
        assert all(depth[other] < depth[package] for other in imports), package

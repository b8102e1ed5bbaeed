"""``docs/architecture.svg``: the flow of data, and the packages in layers by the import table.

``python -m tests.architecture_picture`` writes it; ``test_architecture_picture.py`` compares.
"""

from __future__ import annotations

import itertools
import textwrap
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from tests.test_architecture import EVERYBODY_MAY_IMPORT, MAY_IMPORT, SUB_ROOMS

__all__ = ["PICTURE", "Box", "boxes", "imports_by_package", "layers", "picture"]

PICTURE = Path(__file__).parent.parent / "docs" / "architecture.svg"

WIDTH = 900
_LEFT, _RIGHT = 24, WIDTH - 24
_LINE, _GAP, _PADDING = 17, 26, 10
_CHARACTER = 7.3  # width of a letter of 12 pixels in the widest of the fonts named below

_STYLE = """
svg { font: 12px Verdana, "DejaVu Sans", sans-serif; }
.page { fill: #ffffff; }
text { fill: #1f2328; }
.name { font-weight: bold; font-size: 14px; }
.title { font-weight: bold; font-size: 17px; }
.rooms { font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #59636e; }
.box { stroke: #59636e; stroke-width: 1; }
.shared { fill: #eef1f4; } .teacher { fill: #fff1e0; } .store { fill: #e3f4e5; }
.student { fill: #e1eefc; } .side { fill: #f5e9fb; }
.frame { fill: none; stroke: #59636e; stroke-dasharray: 5 4; }
.arrow { stroke: #59636e; stroke-width: 1.5; fill: none; marker-end: url(#head); }
#head path { fill: #59636e; }
@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117; }
  text { fill: #e6edf3; }
  .rooms { fill: #9da7b1; }
  .box, .frame, .arrow { stroke: #9da7b1; }
  #head path { fill: #9da7b1; }
  .shared { fill: #21262d; } .teacher { fill: #3d2a12; } .store { fill: #12351b; }
  .student { fill: #10294a; } .side { fill: #321d42; }
}
"""


@dataclass(frozen=True)
class Box:
    """A box of the picture.

    Attributes:
        name: Its heading.
        text: What it does.
        rooms: Rows of the import table.
        kind: Class of its color.
        x: Left edge.
        y: Upper edge.
        width: In pixels.
        height: In pixels.
    """

    name: str
    text: str
    rooms: tuple[str, ...]
    kind: str
    x: float
    y: float
    width: float
    height: float = 58

    @property
    def middle(self) -> float:
        """Middle between left and right edge."""
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        """Lower edge."""
        return self.y + self.height


def _flow() -> tuple[list[Box], list[tuple[float, float, float]], list[Box]]:
    """Return boxes, arrows (x, from y, to y) and frames of the flow of data."""
    for_teacher, right = (100, 390), (530, _RIGHT - 530)
    steps = [
        ("images", "folders, tar files, sets: keys, digests", ("data",), "shared"),
        ("views", "crops, flips, …: pixels by seed and draw", ("views", "draws"), "shared"),
        ("teachers", "frozen networks, each run once", ("teachers", "networks"), "teacher"),
        ("encodings", "top-k and dense logits, features", ("encoding",), "teacher"),
        ("commits", "one per unit, with SHA-256", ("cache.write",), "teacher"),
        ("seal", "ledgers and a revision", ("cache.write",), "teacher"),
        ("cache", "arrays of Zarr in a folder or an object store", ("cache",), "store"),
        ("targets", "rows matched to images, verified", ("targets", "cache.read"), "student"),
        ("loader", "batches: targets with the same pixels", ("targets", "batch"), "student"),
        ("objective", "terms, projectors: one loss", ("objectives",), "student"),
        (
            "student",
            "any number: trained, evaluated, exported",
            ("students", "training"),
            "student",
        ),
    ]
    flow, y = [], 66.0
    for name, text, rooms, kind in steps:
        x, width = for_teacher
        if kind == "shared" or name == "loader":
            x, width = _LEFT + 16, for_teacher[0] + for_teacher[1] - _LEFT - 16
        elif name == "cache":
            width = _RIGHT - x
        flow.append(Box(name, text, rooms, kind, x, y, width))
        y += 58 + _GAP
    by_name = {box.name: box for box in flow}
    center = for_teacher[0] + for_teacher[1] / 2
    arrows = [(center, above.bottom, below.y) for above, below in itertools.pairwise(flow)]
    # students see the pixels that teachers were given
    arrows.append((_LEFT + 40, by_name["views"].bottom, by_name["loader"].y))
    x, width = right
    side = [
        Box("check", "verify, audit, repair", ("check", "cache.verify"), "side", x, 0, width),
        Box("report", "describe, survey, gallery", ("report",), "side", x, 0, width),
        Box("tools", "weights of teachers", ("tools",), "side", x, 0, width),
    ]
    lane, y = 24, by_name["cache"].bottom + _GAP
    for number, box in enumerate(side):
        # each box has a lane of its own, so that arrows from the cache pass the boxes above it
        left = x + lane * (len(side) - 1 - number)
        flow.append(Box(box.name, box.text, box.rooms, box.kind, left, y, _RIGHT - left))
        arrows.append((left + lane / 2, by_name["cache"].bottom, y))
        y += 58 + _GAP
    first, last = by_name["teachers"], by_name["seal"]
    run = Box(
        "precompute",
        "runs these steps once, unit by unit, on one machine or a cluster",
        tuple(room for room in MAY_IMPORT if room.startswith("precompute.")),
        "frame",
        first.x - 12,
        first.y - 10,
        _RIGHT - first.x + 12,
        last.bottom - first.y + 20,
    )
    return flow, arrows, [run]


def imports_by_package() -> dict[str, set[str]]:
    """Return the import table by packages of the first level, without what all may import."""
    table: dict[str, set[str]] = {}
    for room, allowed in MAY_IMPORT.items():
        package = room.partition(".")[0]
        others = {name.partition(".")[0] for name in allowed} - {package} - EVERYBODY_MAY_IMPORT
        table[package] = table.get(package, set()) | others
    return {
        package: found for package, found in table.items() if package not in EVERYBODY_MAY_IMPORT
    }


def layers() -> list[list[str]]:
    """Return packages in layers: each imports packages of lower layers alone; the top is first."""
    table = imports_by_package()
    depths: dict[str, int] = {}

    def depth(package: str) -> int:
        if package not in depths:
            depths[package] = 1 + max((depth(other) for other in table[package]), default=-1)
        return depths[package]

    found: list[list[str]] = [[] for _ in range(1 + max(depth(package) for package in table))]
    for package in table:
        found[depths[package]].append(package)
    return found[::-1]


def _rooms(top: float) -> list[Box]:
    """Return one box for each package, in layers, from an upper edge on."""
    table, found, y = imports_by_package(), [], top
    for layer in layers():
        width = (_RIGHT - _LEFT - 12 * (len(layer) - 1)) / len(layer)
        texts = [_described(package, table[package]) for package in layer]
        height = max(_height(text, width) for text in texts)
        for number, (package, text) in enumerate(zip(layer, texts, strict=True)):
            x = _LEFT + number * (width + 12)
            found.append(Box(package, text, (), _kind(package), x, y, width, height))
        y += height + 12
    names = ", ".join(sorted(EVERYBODY_MAY_IMPORT))
    text, width = f"{names}: every package may import these", _RIGHT - _LEFT
    found.append(Box("for all", text, (), "shared", _LEFT, y, width, _height(text, width)))
    return found


def _described(package: str, imports: set[str]) -> str:
    inside = [room.partition(".")[2] for room in MAY_IMPORT if room.startswith(f"{package}.")]
    parts = [f"imports {', '.join(sorted(imports))}"] if imports else []
    if package in SUB_ROOMS:
        parts.append(f"(parts: {', '.join(inside)})")
    return " ".join(parts)


def _kind(package: str) -> str:
    kinds = {box.rooms[0].partition(".")[0]: box.kind for box in _flow()[0]}
    more = {"precompute": "teacher", "networks": "teacher", "cache": "store"}
    return {**kinds, "students": "student", "training": "student", **more}.get(package, "shared")


def _height(text: str, width: float) -> float:
    return 2 * _PADDING + 18 + _LINE * len(_wrapped(text, width))


def _wrapped(text: str, width: float) -> list[str]:
    return textwrap.wrap(text, int((width - 2 * _PADDING) / _CHARACTER))


def boxes() -> list[Box]:
    """Return all boxes of the picture, without frames."""
    flow, _, _ = _flow()
    return [*flow, *_rooms(max(box.bottom for box in flow) + 78)]


def picture() -> str:
    """Return the picture as SVG."""
    flow, arrows, frames = _flow()
    for box in [*flow, *frames]:
        for room in box.rooms:
            assert room in MAY_IMPORT, f"{box.name}: the import table has no row {room}"
    below = max(box.bottom for box in flow)
    rooms = _rooms(below + 78)
    height = max(box.bottom for box in rooms) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        f'width="{WIDTH}" height="{height:g}" role="img">',
        "<title>logitcache: flow of data, and packages in layers</title>",
        f"<style>{_STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>',
        f'<rect class="page" width="{WIDTH}" height="{height:g}" rx="10"/>',
        _text("title", _LEFT, 40, "Flow of data, with the packages that do each step"),
        *(_frame(frame) for frame in frames),
        *(f'<path class="arrow" d="M{x:g} {start:g}V{end:g}"/>' for x, start, end in arrows),
        *(_box(box) for box in flow),
        _text("title", _LEFT, below + 46, "Packages: each imports packages of lower rows alone"),
        *(_box(box) for box in rooms),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _box(box: Box) -> str:
    x, lines = box.x + _PADDING, _wrapped(box.text, box.width)
    parts = [
        f'<rect class="box {box.kind}" x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" '
        f'height="{box.height:g}" rx="6"/>',
        _text("name", x, box.y + 23, box.name),
    ]
    y = box.y + 42
    for number, line in enumerate(lines):
        parts.append(_text("", x, y + _LINE * number, line))
    if box.rooms:
        end, rooms = box.x + box.width - _PADDING, "  ".join(box.rooms)
        parts.append(_text("rooms", end, box.y + 23, rooms, anchor="end"))
    return "\n".join(parts)


def _frame(frame: Box) -> str:
    x = frame.x + 426
    width = frame.x + frame.width - x
    lines = [*_wrapped(frame.text, width), "", *frame.rooms]
    return "\n".join(
        [
            f'<rect class="frame" x="{frame.x:g}" y="{frame.y:g}" width="{frame.width:g}" '
            f'height="{frame.height:g}" rx="8"/>',
            _text("name", x, frame.y + 33, frame.name),
            *(
                _text("rooms" if line in frame.rooms else "", x, frame.y + 54 + _LINE * n, line)
                for n, line in enumerate(lines)
                if line
            ),
        ]
    )


def _text(kind: str, x: float, y: float, text: str, anchor: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    style += f' text-anchor="{anchor}"' if anchor else ""
    return f'<text{style} x="{x:g}" y="{y:g}">{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(picture())

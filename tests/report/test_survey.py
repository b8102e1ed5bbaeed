"""A survey against plain loops over every row."""

from __future__ import annotations

import json
import math
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from logitcache.cache.format.names import Status
from logitcache.cache.read.reader import open_cache
from logitcache.cli.survey import run_survey
from logitcache.encoding.decoded import DecodedSparse
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import CacheDamaged, CacheUnsealed
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.report.survey import survey
from tests.cache.building import CLASS_NAMES, VIEW, make_cache, start_cache
from tests.conftest import write_teacher
from tests.label_set_images import TAGS, sets_of, write_listing

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from logitcache.encoding.kinds import Encoding

ROWS, UNREADABLE = 70, (3, 40)
ENCODINGS: dict[str, Encoding] = {
    "dense": DenseEncoding(3, "float16"),
    "sparse": SparseEncoding(3, 2),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("survey") / "c"
    generator = np.random.default_rng(0)
    logits = {n: 3 * generator.normal(size=(80, 3)).astype(np.float32) for n in ENCODINGS}
    named = {name: (encoding, logits[name]) for name, encoding in ENCODINGS.items()}
    make_cache(path, named, ROWS, UNREADABLE)
    return path


def rows_of(path: Path, teacher: str) -> list[tuple[int, int, float, float]]:
    """Return (label, likeliest class, entropy, tail mass) of every readable row."""
    cache = open_cache(path)
    encoding = cache.teachers[teacher].encoding
    found = []
    for row, status in enumerate(cache.samples.status.tolist()):
        if status != Status.OK:
            continue
        decoded = encoding.decode(cache.read(teacher, VIEW, row, row + 1))
        log_p = [float(value) for value in decoded.log_probs[0]]
        ids = getattr(decoded, "class_ids", np.arange(3)[None])[0].tolist()
        entropy = -sum(math.exp(value) * value for value in log_p)
        tail = math.exp(float(decoded.tail[0, 0])) if isinstance(decoded, DecodedSparse) else 0.0
        entropy -= tail * math.log(tail) if tail else 0.0  # one class is absent
        found.append((int(cache.samples.labels[row]), ids[int(np.argmax(log_p))], entropy, tail))
    return found


def test_a_survey_is_what_plain_loops_find(path: Path) -> None:
    found = survey(str(path))
    everything = {name: rows_of(path, name) for name in ENCODINGS}
    assert [teacher.teacher for teacher in found.teachers] == ["dense", "sparse"]
    for teacher in found.teachers:
        rows = everything[teacher.teacher]
        assert found.labels == [sum(row[0] == c for row in rows) for c in range(len(CLASS_NAMES))]
        assert found.labeled == sum(found.labels)
        assert teacher.predicted == [sum(row[1] == c for row in rows) for c in range(3)]
        right = [sum(row[0] == row[1] == c for row in rows) for c in range(3)]
        expected = [r / n for r, n in zip(right, found.labels[:3], strict=True)]
        assert teacher.class_accuracy[:3] == pytest.approx(expected)
        assert set(teacher.class_accuracy[3:]) == {None}, "classes without an image"
        (view,) = teacher.views
        assert (view.view, view.rows) == (VIEW, ROWS - len(UNREADABLE))
        assert view.accuracy == pytest.approx(sum(right) / len(rows))
        assert view.entropy == pytest.approx(np.mean([row[2] for row in rows]), abs=1e-6)
        tail = None if teacher.teacher == "dense" else np.mean([row[3] for row in rows])
        assert view.tail_mass == (None if tail is None else pytest.approx(tail))
        for name, share in (("10%", 0.1), ("50%", 0.5), ("90%", 0.9)):
            exact = np.quantile([row[2] for row in rows], share, method="inverted_cdf")
            assert teacher.entropy_quantiles[name] == pytest.approx(exact, abs=math.log(3) / 64)
    pairs = zip(everything["dense"], everything["sparse"], strict=True)
    agreed = [a[1] == b[1] for a, b in pairs]
    assert found.agreement == {"dense sparse": pytest.approx(np.mean(agreed))}


def test_it_is_printed_and_written_as_a_document(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_survey(str(path), None, revision=None, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert document["teachers"][0]["teacher"] == "dense"
    run_survey(str(path), None, revision=None, as_json=False)
    shown = capsys.readouterr().out
    assert "dense and sparse predict the same class for" in shown
    assert "lowest accuracy: " in shown


def test_an_answer_that_was_damaged_is_no_statistic(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "c")
    shard = tmp_path / "c/teachers/sparse/tail/c/0/1/0"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(CacheDamaged):
        survey(str(tmp_path / "c"))


def test_what_is_not_sealed_is_not_surveyed(tmp_path: Path) -> None:
    start_cache(tmp_path / "c", 20)
    with pytest.raises(CacheUnsealed):
        survey(str(tmp_path / "c"))


def test_images_with_label_sets_count_for_each_of_their_classes(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = write_teacher(tmp_path / "teacher", classes=len(TAGS), model="cnn")
    values: dict[str, Any] = {
        "cache": str(tmp_path / "c"),
        "data": write_listing(images, tmp_path / "t.jsonl"),
        "teachers": {"t": {"model": f"local-dir:{teacher}", "head": "sigmoid"}},
        "views": {"count": 2},
        "unit_rows": 16,
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    found, sets = survey(values["cache"]), sets_of(images)
    known = [tags for tags in sets.values() if tags is not None]
    assert 0 < found.labeled == len(known) < len(sets)
    assert found.labels == [sum(tag in tags for tags in known) for tag in TAGS]
    (t,) = found.teachers
    assert [view.accuracy for view in t.views] == [None, None]
    assert t.class_accuracy == [None] * len(TAGS)
    run_survey(values["cache"], None, revision=None, as_json=False)
    assert f"{len(known)} labeled images" in capsys.readouterr().out

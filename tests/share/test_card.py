"""The card of a cache: what it says, that nothing is guessed, and that it is part of a revision."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from huggingface_hub import DatasetCard
from pyarrow import parquet

from logitcache.cache.format.card import CardConfig, joined_facts, read_facts
from logitcache.cache.format.names import CARD_DOCUMENTS, sha256
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.verify.restore import restore_documents
from logitcache.cache.write.exclude import withdraw_images
from logitcache.check.verify import verify as verify_all
from logitcache.errors import CacheDamaged
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.share.card import card_notes, write_card
from logitcache.share.merging import merge_caches
from logitcache.share.sign import sign_cache
from logitcache.share.slicing import slice_cache
from logitcache.share.transfer import pull, push
from tests.share.growing import build, files, grow
from tests.share.signing import write_keys

if TYPE_CHECKING:
    from pathlib import Path

FACTS = CardConfig(
    title="Two teachers",
    license="cc-by-4.0",
    creator=["Ada", "B. <b>Babbage</b>"],
    citation="@misc{two, title = {Two teachers}}",
    source="thin air",
    images_license="CC BY-SA 4.0",
    teacher_licenses={"a": "apache-2.0"},
)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return build(tmp_path / "cache")


def front_matter(cache: Path) -> dict[str, Any]:
    card = DatasetCard((cache / "README.md").read_text())
    found: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    return found


def test_a_card_says_what_is_stored_and_what_is_stated(cache: Path) -> None:
    found = write_card(cache, FACTS)
    assert (found.number, found.changed) == (2, CARD_DOCUMENTS)
    assert found.missing_licenses == ("teacher b",)
    text = (cache / "README.md").read_text()
    for part in ("# Two teachers", "40 images", "apache-2.0", "not stated", "thin air", "Ada"):
        assert part in text
    assert "<b>" not in text, "text from people is no markup"
    assert "No license is stated for teacher b." in text
    data = front_matter(cache)
    assert data["license"] == "cc-by-4.0"
    assert data["size_categories"] == ["n<1K"]
    assert data["task_categories"] == ["image-classification"]
    assert data["logitcache"]["teachers"].keys() == {"a", "b"}
    assert verify(cache).ok
    assert not verify(cache).orphans


def test_a_license_without_an_identifier_is_other_with_a_name(cache: Path) -> None:
    write_card(cache, CardConfig(license="Ask Ada before use"))
    data = front_matter(cache)
    assert (data["license"], data["license_name"]) == ("other", "Ask Ada before use")


def test_nothing_is_guessed(cache: Path) -> None:
    found = write_card(cache)
    assert found.missing_licenses == ("the cache", "the images", "teacher a", "teacher b")
    assert "license" not in front_matter(cache)
    metadata = json.loads((cache / "croissant.json").read_bytes())
    assert not {"license", "creator", "citeAs", "isBasedOn"} & metadata.keys()
    assert "license of images: not stated" in metadata["usageInfo"]


def test_what_was_stated_is_kept_and_a_card_that_is_current_is_left_alone(cache: Path) -> None:
    write_card(cache, FACTS)
    again = write_card(cache)
    assert (again.number, again.changed) == (2, ())
    more = write_card(cache, CardConfig(license="mit", teacher_licenses={"b": "mit"}))
    assert (more.number, more.missing_licenses) == (3, ())
    facts = read_facts(locate(cache))
    assert (facts.license, facts.creator) == ("mit", FACTS.creator)
    assert facts.teacher_licenses == {"a": "apache-2.0", "b": "mit"}


@pytest.mark.requirement("F11.27.4", "F11.27.5")
def test_the_card_is_part_of_the_revision(cache: Path, tmp_path: Path) -> None:
    write_card(cache, FACTS)
    revision = open_cache(cache).revision
    assert set(CARD_DOCUMENTS) <= revision.metadata.keys()
    push(cache, tmp_path / "copy")
    assert files(tmp_path / "copy").items() <= files(cache).items()
    assert (tmp_path / "copy/index.parquet").exists()
    (cache / "README.md").write_text("# Mine\n")
    report = verify(cache)
    assert [fault.key for fault in report.faults] == ["README.md"]
    assert restore_documents(locate(cache, write=True), report.faults)
    assert verify(cache).ok


def test_a_card_of_an_earlier_state_is_reported(cache: Path) -> None:
    assert "has no card" in card_notes(locate(cache))[1]
    write_card(cache, FACTS)
    assert card_notes(locate(cache)) == ("no license is stated for teacher b (logitcache card)",)
    grow(cache)
    assert set(CARD_DOCUMENTS) <= open_cache(cache).revision.metadata.keys()
    assert "describes an earlier state" in card_notes(locate(cache))[1]
    write_card(cache)
    assert len(card_notes(locate(cache))) == 1
    assert verify(cache).ok


def test_a_part_keeps_the_stated_facts_alone(cache: Path, tmp_path: Path) -> None:
    write_card(cache, FACTS)
    pull(cache, tmp_path / "part", teachers=["a"])
    assert read_facts(locate(tmp_path / "part")) == FACTS
    assert not (tmp_path / "part/README.md").exists()
    assert write_card(tmp_path / "part").missing_licenses == ()
    assert verify(tmp_path / "part").ok


def test_a_signature_covers_the_card(cache: Path, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "ada")
    write_card(cache, FACTS)
    sign_cache(cache, private)
    pull(cache, tmp_path / "copy", signed_by=public)
    write_card(cache, CardConfig(license="mit"))
    with pytest.raises(CacheDamaged, match="another revision"):
        pull(cache, tmp_path / "other", revision="0" * 64)
    assert open_cache(cache).revision.number == 3


def test_the_index_has_the_rows_that_students_are_trained_on(cache: Path) -> None:
    withdraw_images(cache, ["img/000001.jpg"], "blurred")
    write_card(cache, FACTS)
    content = (cache / "index.parquet").read_bytes()
    table = parquet.read_table(io.BytesIO(content)).to_pydict()
    samples = open_cache(cache).samples
    assert table["row"] == list(samples.readable)
    assert table["key"] == list(samples.keys[samples.readable])
    assert table["label"] == list(samples.labels[samples.readable])
    assert "img/000001.jpg" not in table["key"]
    (index,) = [
        entry
        for entry in json.loads((cache / "croissant.json").read_bytes())["distribution"]
        if entry["name"] == "index.parquet"
    ]
    assert index["sha256"] == sha256(content)


@pytest.mark.requirement("F11.27.7")
@pytest.mark.parametrize("column", ["key", "row", "label", "digest", "lists nothing", "no table"])
def test_rows_of_an_index_are_compared_with_the_samples(
    cache: Path, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the card has the digest of the wrong index."""
    write_card(cache, FACTS)
    content = (cache / "index.parquet").read_bytes()
    assert verify_all(cache).index is None
    table = parquet.read_table(io.BytesIO(content))
    wrong = {
        "key": ["img/000000.jpg"] * len(table),
        "row": [*range(1, len(table)), 10**9],
        "label": [7] * len(table),
        "digest": ["00" * 16] * len(table),
    }
    changed = b"no table"
    if column != changed.decode():
        changed_table = table.rename_columns(["key", "place", "label", "digest"])
        if column in wrong:
            values = pa.array(wrong[column], table.schema.field(column).type)
            changed_table = table.set_column(table.schema.get_field_index(column), column, values)
        out = io.BytesIO()
        parquet.write_table(changed_table, out)
        changed = out.getvalue()
    monkeypatch.setattr("logitcache.share.card._index", lambda _: changed)
    write_card(cache, FACTS)
    assert verify(cache).ok
    report = verify_all(cache)
    assert not report.ok
    assert report.index is not None
    assert verify_all(cache, quick=True).index is None


@pytest.mark.requirement("F11.27.6")
def test_an_index_that_is_not_the_one_of_the_card_is_damage(cache: Path, tmp_path: Path) -> None:
    write_card(cache, FACTS)
    path = cache / "index.parquet"
    content = path.read_bytes()
    for damaged in (content[:-1], content.replace(b"img", b"gmi", 1), None):
        if damaged is None:
            path.unlink()
        else:
            path.write_bytes(damaged)
        (fault,) = verify(cache).faults
        assert (fault.key, fault.recompute) == ("index.parquet", False)
        assert "logitcache card" in fault.detail
    assert restore_documents(locate(cache, write=True), verify(cache).faults) == []
    number = write_card(cache).number
    assert path.read_bytes() == content
    assert (verify(cache).ok, number) == (True, 2)
    # where croissant.json is damaged too, its digest is worth nothing
    (cache / "croissant.json").write_text("{}")
    assert [found.key for found in verify(cache).faults] == ["croissant.json"]
    pull(cache, tmp_path / "part", teachers=["a"])
    assert verify(tmp_path / "part").ok


@pytest.mark.filterwarnings("ignore")  # its dependencies are deprecated in several places
def test_croissant_is_read_by_its_own_library(cache: Path) -> None:
    croissant = pytest.importorskip("mlcroissant")
    write_card(cache, FACTS)
    dataset = croissant.Dataset(jsonld=cache / "croissant.json")
    assert not dataset.metadata.ctx.issues.errors
    classes = list(dataset.records("classes"))
    assert [record["classes/number"] for record in classes] == list(range(10))
    assert classes[3]["classes/class_name"] in (b"d", "d")
    rows = list(dataset.records("rows"))
    assert len(rows) == 40
    assert rows[0]["rows/row"] == 0


def test_licenses_are_stated_at_precompute(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    values: dict[str, Any] = {
        "cache": str(tmp_path / "cache"),
        "data": str(images),
        "teachers": {"red": teachers["red"]},
        "unit_rows": 32,
        "card": {"license": "mit", "creator": ["Ada"]},
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    assert open_cache(tmp_path / "cache").revision.metadata.keys() & set(CARD_DOCUMENTS) == {
        "card.json"
    }
    found = write_card(tmp_path / "cache")
    assert found.missing_licenses == ("the images", "teacher red")
    text = (tmp_path / "cache/README.md").read_text()
    assert str(images) not in text, "folders of this machine are not published"
    again = build_cache(PrecomputeConfig.parse(values, ""))
    assert again.revision == found.number
    assert verify(tmp_path / "cache").ok


def test_a_card_says_whether_the_images_are_in_the_cache(
    images: Path, teachers: dict[str, dict[str, str]], cache: Path, tmp_path: Path
) -> None:
    write_card(cache)
    text = (cache / "README.md").read_text()
    assert "The images are not in the cache" in text
    assert 'loader(cache, "IMAGES", ' in text
    values: dict[str, Any] = {
        "cache": str(tmp_path / "packed"),
        "data": str(images),
        "teachers": {"red": teachers["red"]},
        "images": "packed:32",
        "unit_rows": 32,
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    write_card(tmp_path / "packed")
    text = (tmp_path / "packed/README.md").read_text()
    assert "at most 32 pixels on the shorter side" in text
    assert "loader(cache, batch_size" in text
    assert "The images are not in the cache" not in text


def test_a_readme_of_the_user_is_left_alone(tmp_path: Path) -> None:
    cache = build(tmp_path / "cache")
    (cache / "README.md").write_text("mine")
    grow(cache)
    assert "README.md" not in open_cache(cache).revision.metadata
    (cache / "README.md").write_text("changed")
    assert verify(cache).ok


@pytest.mark.parametrize("content", [b"{", b'{"license": 3}', b'{"creator": "x"}', b"[]"])
def test_facts_from_elsewhere_are_checked(cache: Path, content: bytes) -> None:
    (cache / "card.json").write_bytes(content)
    with pytest.raises(CacheDamaged):
        read_facts(locate(cache))


def test_a_cache_of_parts_lists_the_licenses_of_its_parts() -> None:
    one = CardConfig(license="mit", creator=["Ada"], teacher_licenses={"a": "x", "gone": "y"})
    two = CardConfig(title="Two", license="cc0-1.0", creator=["Ada", "Bob"], source="here")
    both = joined_facts([one, two], {"a", "b"})
    assert both.license == "mit; cc0-1.0"
    assert (both.creator, both.source, both.title) == (["Ada", "Bob"], "here", None)
    assert both.teacher_licenses == {"a": "x"}
    assert joined_facts([one, CardConfig()], set()).license == "mit; not stated"
    assert joined_facts([one, one], set()).license == "mit"
    assert joined_facts([two], set()) == two
    assert joined_facts([CardConfig(), CardConfig()], set()).stated() == {}


def test_slices_and_merged_caches_keep_the_facts_of_their_sources(
    cache: Path, tmp_path: Path
) -> None:
    write_card(cache, FACTS)
    for number, teacher in enumerate("ab"):
        slice_cache(cache, tmp_path / teacher, teachers=[teacher])
        write_card(tmp_path / teacher, CardConfig(license=f"license {number}"))
    merge_caches([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    facts = read_facts(locate(tmp_path / "both"))
    assert facts.license == "license 0; license 1"
    assert facts.images_license == FACTS.images_license
    assert facts.teacher_licenses == {"a": "apache-2.0"}
    assert "card.json" in open_cache(tmp_path / "both").revision.metadata
    assert verify(tmp_path / "both").ok

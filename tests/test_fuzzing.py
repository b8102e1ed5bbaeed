"""Whatever is in a file or on the command line: an error of ours, or none. Never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tarfile
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.local import LocalLocation
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.writer import CacheWriter
from logitcache.cli import app as cli
from logitcache.data.identity import normalize_key
from logitcache.data.readers import open_source
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import CacheDamaged, CacheError, DataError, LogitcacheError, UsageError
from logitcache.pipeline.config import PipelineConfig
from logitcache.pipeline.run import Pipeline
from logitcache.pipeline.settings import override, read_yaml
from logitcache.precompute.config import PrecomputeConfig
from logitcache.report.describe import describe
from logitcache.training.config import TrainConfig
from tests.cache.building import VIEW, make_cache
from tests.cache.damage import edit_json
from tests.conftest import jpeg, shape_image

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 40
TOO_MUCH = 300 * 2**20
DEEP = b"[" * 100_000
FUZZ = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

numbers = st.one_of(
    st.integers(-3, 70), st.sampled_from([10**15, 2**63, -(2**70), 2**31]), st.floats()
)
texts = st.one_of(
    st.text(max_size=12), st.sampled_from(["../../x", "/etc/passwd", "\0", "a/../..", "v\ud800"])
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "cache"
    logits = np.random.default_rng(0).normal(size=(ROWS, 30)).astype(np.float32)
    make_cache(path, {"a": (SparseEncoding(30, 5), logits), "b": (DenseEncoding(30), logits)}, ROWS)
    return path


@pytest.fixture
def cache(intact: Path, tmp_path: Path) -> Path:
    shutil.copytree(intact, tmp_path / "cache")
    return tmp_path / "cache"


def read_everything(cache: Path) -> None:
    opened = open_cache(cache)
    assert opened.samples.rows.size
    for name in opened.teachers:
        for view in opened.views_of([name]):
            opened.read(name, view, 0, 48)


def extend(cache: Path) -> None:
    CacheWriter.open(locate(cache)).missing()


EVERYBODY: list[Callable[[Path], object]] = [read_everything, extend, describe, verify]


def survives(cache: Path, name: str = "", content: bytes = b"") -> None:
    """Let everybody meet a cache: each must succeed, or say what is wrong in our words.

    Args:
        cache: The cache.
        name: A document to replace meanwhile.
        content: What to replace it with.
    """
    before = (cache / name).read_bytes() if name else b""
    try:
        if name:
            (cache / name).write_bytes(content)
        for somebody in EVERYBODY:
            with contextlib.suppress(LogitcacheError):
                somebody(cache)
    finally:
        if name:
            (cache / name).write_bytes(before)


def mutate(document: Any, data: st.DataObject) -> Any:
    """Replace one value anywhere inside a JSON document."""
    at = data.draw(st.integers(0, 6), label="depth")
    place = document
    for _ in range(at):
        inner = [k for k, v in _items(place) if isinstance(v, dict | list) and v]
        if not inner:
            break
        place = place[data.draw(st.sampled_from(inner), label="into")]
    keys = [key for key, _ in _items(place)]
    if keys:
        place[data.draw(st.sampled_from(keys), label="key")] = data.draw(values, label="value")
    return document


def _items(place: Any) -> list[tuple[Any, Any]]:
    return list(place.items()) if isinstance(place, dict) else list(enumerate(place))


def documents(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*.json"))


@FUZZ
@given(data=st.data())
def test_a_mutated_document_is_an_error_of_ours(cache: Path, data: st.DataObject) -> None:
    """Manifest, group, array, commit, ledger, revision, copies."""
    name = data.draw(st.sampled_from(documents(cache)))
    mutated = mutate(json.loads((cache / name).read_bytes()), data)
    survives(cache, name, json.dumps(mutated).encode())


@FUZZ
@given(data=st.data())
def test_so_is_one_of_a_cache_that_nobody_vouches_for(cache: Path, data: st.DataObject) -> None:
    """Without a revision there is no digest: every document has to be doubted for itself."""
    edit_json(cache / "zarr.json", lambda v: v["attributes"]["logitcache"].update(revision=None))
    name = data.draw(st.sampled_from(documents(cache)))
    mutated = mutate(json.loads((cache / name).read_bytes()), data)
    survives(cache, name, json.dumps(mutated).encode())


@FUZZ
@given(number=st.integers(0, 10**6), content=st.one_of(st.binary(max_size=40), st.just(DEEP)))
def test_a_document_of_junk_is_an_error_of_ours(cache: Path, number: int, content: bytes) -> None:
    names = documents(cache)
    survives(cache, names[number % len(names)], content)


def _rows(manifest: Any) -> None:
    manifest["segments"] = [{"start": 0, "rows": 10**15}]


def _many_rows(manifest: Any) -> None:
    manifest["segments"] = [{"start": 0, "rows": 10**12}]
    manifest["revision"] = None


def _large_units(manifest: Any) -> None:
    manifest["segments"] = [{"start": 0, "rows": 2**36}]
    manifest["unit_rows"] = 65536
    manifest["revision"] = None


@pytest.mark.requirement("F12.9")
@pytest.mark.parametrize("change", [_rows, _many_rows, _large_units])
def test_a_claim_of_very_many_rows_allocates_nothing(
    cache: Path, change: Callable[[Any], None]
) -> None:
    edit_json(cache / "zarr.json", lambda values: change(values["attributes"]["logitcache"]))
    tracemalloc.start()
    survives(cache)
    with pytest.raises(CacheError):
        read_everything(cache)
    assert tracemalloc.get_traced_memory()[1] < TOO_MUCH
    tracemalloc.stop()


@pytest.mark.requirement("F11.29")
@pytest.mark.parametrize(
    "fields",
    [
        {"num_classes": 10**12},
        {
            "num_classes": 2**26,
            "unit_rows": 65536,
            "encoding": {"kind": "dense", "values": "uint8"},
        },
        {"unit_rows": 0},
        {"unit_rows": 10**9},
        {"encoding": {"kind": "sparse", "top_k": 10**9, "values": "codes"}},
        {"encoding": {"kind": "sparse", "top_k": 5, "values": "codes", "bits": 60}},
        {"encoding": {"kind": "sparse", "top_k": True, "values": "codes"}},
        {"view_ids": ["../../../x"]},
        {"view_ids": 3},
    ],
)
def test_a_group_that_cannot_be_is_refused(cache: Path, fields: dict[str, object]) -> None:
    path = cache / "teachers/a/zarr.json"
    edit_json(path, lambda values: values["attributes"]["logitcache"].update(fields))
    tracemalloc.start()
    survives(cache)
    with pytest.raises(CacheError):
        open_cache(cache).read("a", VIEW, 0, 48)
    assert tracemalloc.get_traced_memory()[1] < TOO_MUCH
    tracemalloc.stop()


@pytest.mark.requirement("F11.32")
@given(st.text())
def test_no_key_leaves_the_cache(key: str) -> None:
    location = LocalLocation(Path("/nowhere/cache"))
    try:
        path = location.path(key)
    except CacheDamaged:
        return
    assert path == location.root or location.root in path.parents
    assert ".." not in path.parts


@given(st.text(min_size=1))
def test_no_name_of_an_image_leaves_the_data(name: str) -> None:
    try:
        key = normalize_key(name)
    except DataError:
        return
    assert not key.startswith("/")
    assert ".." not in key.split("/")
    assert key.encode().decode() == key
    assert normalize_key(key) == key


@pytest.mark.parametrize("name", ["../../evil.jpg", "/etc/evil.jpg", "a/../../evil.jpg"])
def test_a_tar_file_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    content = jpeg(shape_image(1))
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match="leads out"):
        open_source(str(tmp_path / "x.tar"))


def test_odd_names_are_read_inside_the_root(tmp_path: Path) -> None:
    names = ["a/\u202egpj.exe.jpg", "a/ \u00e9\u0301.jpg", "a/\U0001f600.jpg", "a/b..c.jpg"]
    for index, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(shape_image(index)))
    source = open_source(str(tmp_path))
    assert len(set(source.keys)) == 4
    assert all((tmp_path / "a").samefile((tmp_path / key).parent) for key in source.keys)
    broken = b"a/\xff\xfe.jpg"
    (Path(str(tmp_path)) / broken.decode(errors="surrogateescape")).write_bytes(b"x")
    with pytest.raises(DataError, match="not valid text"):
        open_source(str(tmp_path))


yaml_texts = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [
            "a: &a [*a]",
            "? [1]\n: 2",
            "1: 2",
            "2020-99-99: x",
            "a: 2020-99-99",
            "a: !!python/object:os.system x",
            "&" * 50,
            "[" * 3000,
            "a: .inf\nb: 0x",
            "stages: [{name: 3}]",
            "a: 1_0_\n<<: 3",
            "!!binary x",
            "a: !!timestamp x",
        ]
    ),
)


@FUZZ
@example(text="0: &0 [*0]")  # contains itself
@given(text=yaml_texts)
def test_yaml_is_an_error_of_ours_or_a_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8", errors="ignore")
    try:
        found = read_yaml(path)
    except UsageError:
        return
    for config in (PrecomputeConfig, TrainConfig, PipelineConfig):
        with pytest.raises(UsageError):
            config.parse(found, "x")


@FUZZ
@given(data=st.data())
def test_a_mutated_configuration_is_an_error_of_ours(data: st.DataObject) -> None:
    kinds: list[tuple[type[Any], dict[str, Any]]] = [
        (
            PrecomputeConfig,
            {"cache": "c", "data": {"name": "d"}, "teachers": {"a": {"model": "m"}}, "views": {}},
        ),
        (TrainConfig, {"out": "o", "data": "d", "student": {"model": "m"}, "epochs": 1}),
        (
            PipelineConfig,
            {"name": "n", "out": "o", "data": "d", "stages": [{"name": "a", "train": {"x": 1}}]},
        ),
    ]
    kind, valid = data.draw(st.sampled_from(kinds))
    try:
        config = kind.parse(mutate(valid, data), "x")
        if isinstance(config, PipelineConfig):
            Pipeline(config)
    except UsageError:
        return
    assert config.model_dump()


@given(st.text(max_size=20))
def test_an_assignment_is_an_error_of_ours_or_done(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(override({"a": {"b": 1}}, [text]), dict)


COMMANDS = ["precompute", "train", "run", "inspect", "status", "verify", "repair", "withdraw"]
FLAGS = ["--cache", "--data", "--teacher", "--views", "--set", "--config", "--json", "--quick"]
FLAGS += ["--objective", "--student", "--out", "--teachers", "--samples", "--only", "--seeds"]
arguments = st.lists(
    st.one_of(
        st.sampled_from(COMMANDS + FLAGS),
        st.sampled_from(["x=y", "a.b=[", "\0", "file://[", "..", "/proc/1/mem", "-1", "a=b@c", ""]),
        st.text(max_size=8).filter(lambda text: text not in {"demo"}),
    ),
    max_size=6,
)


@FUZZ
@given(command=st.sampled_from(COMMANDS), rest=arguments)
def test_the_command_line_never_shows_a_traceback(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    rest: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["logitcache", command, *rest])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code in {0, 1, 2, 3, 4, 130}
    assert "Traceback" not in capsys.readouterr().err

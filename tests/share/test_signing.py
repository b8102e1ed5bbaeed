"""Signatures: who signed what, what a change of anything leads to, and how long a check takes."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from logitcache.cache.format.envelope import read_envelope
from logitcache.cache.format.keys import PASSPHRASE, read_public_key, read_signing_key
from logitcache.cache.format.ledger import (
    Ledger,
    parse_ledger,
    read_revision,
    write_ledger,
    write_revision,
)
from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.format.names import CARD_DOCUMENTS, canonical_json
from logitcache.cache.read.signature import signed_revision
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.exclude import withdraw_images
from logitcache.cache.write.writer import CacheWriter
from logitcache.errors import LogitcacheError, SignatureError, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.report.describe import describe
from logitcache.share.sign import sign_cache
from logitcache.share.transfer import pull, push
from logitcache.targets.cache_targets import open_cache
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from tests.cache.building import VIEW
from tests.share.growing import build, grow
from tests.share.signing import TAMPERINGS, write_keys

if TYPE_CHECKING:
    from pathlib import Path

Teachers = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_keys(tmp_path_factory.mktemp("keys"), "alice")


@pytest.fixture(scope="module")
def trainable(
    images: Path, teachers: Teachers, keys: tuple[Path, Path], tmp_path_factory: Any
) -> Path:
    """Return a folder with a cache of two signed revisions, and the root of the first."""
    root: Path = tmp_path_factory.mktemp("trainable")
    values: dict[str, Any] = {
        "cache": str(root / "cache"),
        "data": str(images),
        "teachers": {"red": teachers["red"]},
        "views": {"count": 1},
        "unit_rows": 32,
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    location = locate(root / "cache", write=True)
    location.write("card.json", b"{}")
    location.write("README.md", b"# A cache\n")
    sealed = read_revision(location, read_manifest(location).revision)  # type: ignore[arg-type]
    assert not set(CARD_DOCUMENTS) & sealed.metadata.keys()
    writer = CacheWriter.open(location)
    writer.seal(str(writer.manifest.data.fingerprint), {})  # the card becomes part of it
    sign_cache(root / "cache", keys[0])
    (root / "older-root").write_bytes((root / "cache/zarr.json").read_bytes())
    withdraw_images(root / "cache", ["cat/001.jpg"], "blurred")
    sign_cache(root / "cache", keys[0], command="logitcache precompute …")
    return root


def training(folder: Path, out: Path, images: Path, public: Path) -> TrainConfig:
    values = {
        "out": str(out),
        "data": str(images),
        "cache": str(folder / "cache"),
        "signed_by": str(public),
        "student": {"model": "resnet10t", "kwargs": {"channels": [16] * 4, "stem_width": 16}},
        "steps": 1,
        "batch_size": 8,
        "threads": 1,
        "device": "cpu",
    }
    return TrainConfig.parse(values, "")


def test_a_student_is_trained_from_a_signed_cache(
    trainable: Path, images: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    train_student(training(trainable, tmp_path / "run", images, keys[1]))
    assert verify(trainable / "cache").ok
    assert not verify(trainable / "cache").orphans


def test_there_are_forty_kinds_of_tampering() -> None:
    assert len(TAMPERINGS) >= 40


@pytest.mark.requirement("F11.27.1", "F11.27.2", "F11.27.3")
@pytest.mark.parametrize("kind", TAMPERINGS)
def test_a_cache_that_was_tampered_with_is_refused_before_the_first_step(
    trainable: Path, images: Path, keys: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(trainable, folder)
    TAMPERINGS[kind](folder / "cache")
    steps: list[int] = []
    with pytest.raises(LogitcacheError) as caught:
        train_student(
            training(folder, tmp_path / "run", images, keys[1]),
            on_progress=lambda progress: steps.append(progress.done),
        )
    assert not any(steps)
    assert caught.value.exit_code in {1, 4}


def test_a_signature_names_what_the_cache_was_computed_from(
    trainable: Path, keys: tuple[Path, Path]
) -> None:
    location = locate(trainable / "cache")
    manifest = read_manifest(location)
    assert manifest.revision is not None
    envelope = read_envelope(location, manifest.revision)
    assert envelope is not None
    document = json.loads((trainable / "cache/signatures/3.json").read_bytes())
    statement = json.loads(base64.b64decode(document["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [
        {"name": "revisions/3.json", "digest": {"sha256": manifest.revision.sha256}}
    ]
    predicate = statement["predicate"]
    assert predicate["images"]["fingerprint"] == manifest.data.fingerprint
    locked = manifest.teachers["red"].locked
    assert predicate["teachers"]["red"]["weights_sha256"] == locked.weights_sha256
    assert predicate["command"] == "logitcache precompute …"
    assert predicate["versions"] == manifest.versions
    assert envelope.signers == (read_public_key(keys[1]).id,)


def test_the_envelope_is_that_of_dsse(keys: tuple[Path, Path], tmp_path: Path) -> None:
    """Compared with the definition, written out: DSSEv1, lengths in decimal, one space each."""
    cache = build(tmp_path / "cache")
    sign_cache(cache, keys[0])
    document = json.loads((cache / "signatures/1.json").read_bytes())
    payload = base64.b64decode(document["payload"])
    kind = document["payloadType"].encode()
    signed = b"DSSEv1 " + str(len(kind)).encode() + b" " + kind
    signed += b" " + str(len(payload)).encode() + b" " + payload
    (signature,) = document["signatures"]
    public = read_public_key(keys[1]).key
    public.verify(base64.b64decode(signature["sig"]), signed)


def test_a_new_revision_is_unsigned_and_names_its_signed_parent(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    cache = build(tmp_path / "cache")
    sign_cache(cache, keys[0])
    digest = open_cache(cache, signed_by=keys[1]).revision_sha256
    assert describe(cache).signers == [read_public_key(keys[1]).id]
    grow(cache)
    withdraw_images(cache, ["img/000001.jpg"], "blurred")
    with pytest.raises(SignatureError, match="not signed"):
        open_cache(cache, signed_by=keys[1])
    found = describe(cache)
    assert (found.signers, found.signed_parent) == ([], 1)
    revision = open_cache(cache).revision
    assert json.loads((cache / "revisions/2.json").read_bytes())["parents"] == [digest]
    assert len(revision.parents) == 1
    assert verify(cache).ok
    # the signed revision can still be had
    pull(cache, tmp_path / "signed", revision=digest)
    assert open_cache(tmp_path / "signed", signed_by=keys[1]).revision_sha256 == digest


def test_a_signature_is_copied_and_a_part_has_none(keys: tuple[Path, Path], tmp_path: Path) -> None:
    cache = build(tmp_path / "cache")
    push(cache, tmp_path / "copy")
    sign_cache(cache, keys[0])
    assert push(cache, tmp_path / "copy").objects == 1
    assert open_cache(tmp_path / "copy", signed_by=keys[1])
    pull(cache, tmp_path / "part", teachers=["a"], signed_by=keys[1])
    with pytest.raises(SignatureError, match="not signed"):
        open_cache(tmp_path / "part", signed_by=keys[1])
    _, other = write_keys(tmp_path, "bob")
    with pytest.raises(SignatureError, match="no valid signature"):
        pull(cache, tmp_path / "more", signed_by=other)
    assert not (tmp_path / "more").exists()


def test_several_people_sign_one_statement(keys: tuple[Path, Path], tmp_path: Path) -> None:
    cache = build(tmp_path / "cache")
    bob, bobs = write_keys(tmp_path, "bob")
    sign_cache(cache, keys[0], command="first")
    assert len(sign_cache(cache, bob).signers) == 2
    assert len(sign_cache(cache, bob).signers) == 2
    assert open_cache(cache, signed_by=keys[1]).revision_sha256
    assert open_cache(cache, signed_by=bobs).revision_sha256
    with pytest.raises(UsageError, match="another command"):
        sign_cache(cache, bob, command="second")


def test_what_is_not_sealed_is_not_signed(keys: tuple[Path, Path], tmp_path: Path) -> None:
    cache = build(tmp_path / "cache")
    (cache / "README.md").write_text("mine")
    with pytest.raises(SignatureError, match=r"README\.md is not part"):
        sign_cache(cache, keys[0])
    assert not (cache / "signatures").exists()
    assert verify(cache).ok


@pytest.mark.parametrize("ssh", [False, True])
def test_keys_are_pem_or_openssh_with_and_without_a_passphrase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ssh: bool
) -> None:
    plain, public = write_keys(tmp_path, "plain", ssh=ssh)
    monkeypatch.delenv(PASSPHRASE, raising=False)
    assert read_signing_key(plain).public.id == read_public_key(public).id
    monkeypatch.setenv(PASSPHRASE, "secret words")
    assert read_signing_key(plain).public.id == read_public_key(public).id
    if not ssh:  # OpenSSH's own encryption needs another package
        hidden, public = write_keys(tmp_path, "hidden", "secret words")
        assert read_signing_key(hidden).public.id == read_public_key(public).id
        monkeypatch.setenv(PASSPHRASE, "wrong")
        with pytest.raises(UsageError, match="cannot be read"):
            read_signing_key(hidden)
        monkeypatch.delenv(PASSPHRASE)
        with pytest.raises(UsageError, match=PASSPHRASE):
            read_signing_key(hidden)


def test_keys_of_openssl_are_read(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    made = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(private)]
    subprocess.run(made, check=True, capture_output=True)
    shown = ["openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public)]
    subprocess.run(shown, check=True, capture_output=True)
    assert read_signing_key(private).public.id == read_public_key(public).id


def test_other_files_are_not_keys(keys: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no key"):
        read_signing_key(tmp_path / "missing.pem")
    (tmp_path / "text").write_text("hello")
    for read in (read_signing_key, read_public_key):
        with pytest.raises(UsageError, match="not a key"):
            read(tmp_path / "text")
    with pytest.raises(UsageError, match="this is a private key"):
        read_public_key(keys[0])
    with pytest.raises(UsageError, match="not a key"):
        read_signing_key(keys[1])


def test_a_cache_of_a_terabyte_is_checked_in_under_a_second(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """Ledgers of 4096 units with shards of 64 MB in 16 views are named; none of it exists."""
    cache = build(tmp_path / "cache")
    location = locate(cache, write=True)
    manifest = read_manifest(location)
    assert manifest.revision is not None
    revision = read_revision(location, manifest.revision)
    pointer = revision.ledgers[f"teachers/a/{VIEW}"]
    commit = parse_ledger(location, pointer).commits[0]
    arrays = {path: replace(s, bytes=64_000_000) for path, s in commit.arrays.items()}
    commits = {unit: replace(commit, unit=unit, arrays=arrays) for unit in range(4096)}
    large = write_ledger(location, Ledger("teachers/a", VIEW, commits), 1)
    views = {f"teachers/a/v{number:016x}": large for number in range(16)}
    changed = replace(revision, ledgers={**revision.ledgers, **views})
    total = sum(s.bytes for c in commits.values() for s in c.arrays.values()) * len(views)
    assert total > 10**12
    digest = write_revision(location, changed)
    root = json.loads((cache / "zarr.json").read_bytes())
    root["attributes"]["logitcache"]["revision"]["sha256"] = digest
    (cache / "zarr.json").write_bytes(canonical_json(root))
    sign_cache(cache, keys[0])
    started = time.perf_counter()
    assert signed_revision(location, keys[1]) == digest
    assert time.perf_counter() - started < 1

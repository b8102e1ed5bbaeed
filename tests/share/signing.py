"""Keys, and changes of a signed cache that its check has to find."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from logitcache.cache.format.names import canonical_json, sha256
from logitcache.share.sign import sign_cache
from logitcache.views.recipe import recipe_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def write_keys(
    folder: Path, name: str, passphrase: str | None = None, *, ssh: bool = False
) -> tuple[Path, Path]:
    """Write a new pair of keys; return the files of the private and the public one."""
    folder.mkdir(parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    hidden = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    kind = PrivateFormat.OpenSSH if ssh else PrivateFormat.PKCS8
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, kind, hidden))
    private.chmod(0o600)
    written = (
        (Encoding.OpenSSH, PublicFormat.OpenSSH)
        if ssh
        else (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    public.write_bytes(key.public_key().public_bytes(*written))
    return private, public


def _edit(cache: Path, key: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a document, and write it as canonical JSON."""
    path = cache / key
    values = json.loads(path.read_bytes())
    change(values)
    path.write_bytes(canonical_json(values))


def _edit_root(cache: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    _edit(cache, "zarr.json", lambda values: change(values["attributes"]["logitcache"]))


def _flip(cache: Path, pattern: str, share: float = 0.5) -> None:
    path = min(path for path in cache.glob(pattern) if path.is_file())
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def _number(cache: Path) -> int:
    found: int = json.loads((cache / "zarr.json").read_bytes())["attributes"]["logitcache"][
        "revision"
    ]["number"]
    return found


def _signature(cache: Path) -> str:
    return f"signatures/{_number(cache)}.json"


def _edit_statement(cache: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what is signed, and leave the signature."""

    def envelope(values: dict[str, Any]) -> None:
        statement = json.loads(base64.b64decode(values["payload"]))
        change(statement)
        values["payload"] = base64.b64encode(canonical_json(statement)).decode()

    _edit(cache, _signature(cache), envelope)


def _reseal(cache: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the revision, and let the root name the changed one, as a careful forger would."""
    key = f"revisions/{_number(cache)}.json"
    _edit(cache, key, change)
    digest = sha256((cache / key).read_bytes())
    _edit_root(cache, lambda root: root["revision"].update(sha256=digest))


def _forge_ledger(cache: Path) -> None:
    """Change a shard, its ledger, the revision and the root, all digests computed again."""
    key = min(p.relative_to(cache).as_posix() for p in cache.glob("ledger/teachers/*/*.json"))
    ledger = json.loads((cache / key).read_bytes())
    stored = next(iter(ledger["commits"][0]["arrays"].values()))
    content = bytearray((cache / stored["key"]).read_bytes())
    content[0] ^= 1
    (cache / stored["key"]).write_bytes(content)
    stored["sha256"] = sha256(content)
    (cache / key).write_bytes(canonical_json(ledger))
    digest = sha256((cache / key).read_bytes())

    def change(revision: dict[str, Any]) -> None:
        for pointer in revision["ledgers"].values():
            if pointer["key"] == key:
                pointer["sha256"] = digest

    _reseal(cache, change)


def _exclude(cache: Path) -> None:
    """Add an exclusion with a correct digest of its own."""
    values = {"format": 1, "keys": ["bird/000.jpg"], "reason": ""}
    content = canonical_json({**values, "sha256": sha256(canonical_json(values))})
    (cache / "withdrawn").mkdir(exist_ok=True)
    count = len(list((cache / "withdrawn").glob("*.json")))
    (cache / f"withdrawn/{count + 1}.json").write_bytes(content)


def _other_signer(cache: Path) -> None:
    private, _ = write_keys(cache.parent / "other", "mallory")
    (cache / _signature(cache)).unlink()
    sign_cache(cache, private)


def _claimed_signer(cache: Path) -> None:
    """Sign with another key under the id of the right one."""
    keyid = json.loads((cache / _signature(cache)).read_bytes())["signatures"][0]["keyid"]
    _other_signer(cache)
    _edit(cache, _signature(cache), lambda values: values["signatures"][0].update(keyid=keyid))


def _older_root(cache: Path) -> None:
    """Put back the root of the revision before, which is signed as well."""
    (cache / "zarr.json").write_bytes((cache.parent / "older-root").read_bytes())


def _older_signature(cache: Path) -> None:
    older = (cache / f"signatures/{_number(cache) - 1}.json").read_bytes()
    (cache / _signature(cache)).write_bytes(older)


def _view(root: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(root["views"].values()))
    return found


def _add_view(root: dict[str, Any]) -> None:
    recipe = {**_view(root), "seed": 12345}
    root["views"][recipe_id(recipe)] = recipe


def _remove(pattern: str) -> Callable[[Path], None]:
    return lambda cache: min(p for p in cache.glob(pattern) if p.is_file()).unlink()


TAMPERINGS: dict[str, Callable[[Path], Any]] = {
    # bytes of what a step uses
    "first byte of a shard": lambda c: _flip(c, "teachers/*/logp/c/**/*", 0),
    "middle byte of a shard": lambda c: _flip(c, "teachers/*/logp/c/**/*"),
    "last byte of a shard": lambda c: _flip(c, "teachers/*/logp/c/**/*", 1),
    "a byte of the labels": lambda c: _flip(c, "samples/label/c/*"),
    "a byte of the keys": lambda c: _flip(c, "samples/key/c/*"),
    "a byte of the digests of images": lambda c: _flip(c, "samples/digest/c/**/*"),
    "a byte of the status": lambda c: _flip(c, "samples/status/c/*"),
    "a shard that is missing": _remove("teachers/*/logp/c/**/*"),
    "a shard that is empty": lambda c: min(
        p for p in c.glob("teachers/*/logp/c/**/*") if p.is_file()
    ).write_bytes(b""),
    # documents
    "a byte of a ledger": lambda c: _flip(c, "ledger/teachers/*/*.json"),
    "a byte of the ledger of the samples": lambda c: _flip(c, "ledger/samples/*.json"),
    "a ledger that is missing": _remove("ledger/teachers/*/*.json"),
    "a byte of a revision": lambda c: _flip(c, f"revisions/{_number(c)}.json"),
    "a revision that is missing": lambda c: (c / f"revisions/{_number(c)}.json").unlink(),
    "the metadata of a group": lambda c: _flip(c, "teachers/*/zarr.json"),
    "the metadata of an array": lambda c: _flip(c, "teachers/*/logp/zarr.json"),
    "the metadata of the samples": lambda c: _flip(c, "samples/label/zarr.json"),
    "a view fingerprint": lambda c: _flip(c, "probes/1.json"),
    "an exclusion that is added": _exclude,
    "a consistent forgery of everything but the signature": _forge_ledger,
    "segments of the revision": lambda c: _reseal(c, lambda r: r["segments"][0].__setitem__(1, 8)),
    "parents of the revision": lambda c: _reseal(c, lambda r: r.update(parents=["0" * 64])),
    "a ledger that is taken out": lambda c: _reseal(c, lambda r: r["ledgers"].popitem()),
    # the root
    "a byte of the root": lambda c: _flip(c, "zarr.json"),
    "class names of the root": lambda c: _edit_root(
        c, lambda r: r["data"]["class_names"].sort(reverse=True)
    ),
    "the listing of the root": lambda c: _edit_root(c, lambda r: r["data"].update(listing=1)),
    "the fingerprint of the images": lambda c: _edit_root(
        c, lambda r: r["data"].update(fingerprint="0" * 64)
    ),
    "a recipe of a view": lambda c: _edit_root(c, lambda r: _view(r).update(seed=99)),
    "a view that is added": lambda c: _edit_root(c, _add_view),
    "a teacher that is taken out": lambda c: _edit_root(c, lambda r: r["teachers"].popitem()),
    "the lock of a teacher": lambda c: _edit_root(
        c, lambda r: next(iter(r["teachers"].values()))["lock"].update(precision="float16")
    ),
    "an unknown field of the root": lambda c: _edit_root(c, lambda r: r.update(note="mine")),
    "a requirement that is removed": lambda c: _edit_root(c, lambda r: r["requires"].clear()),
    "other attributes of the root": lambda c: _edit(
        c, "zarr.json", lambda v: v["attributes"].update(other=1)
    ),
    "consolidated metadata": lambda c: _edit(
        c, "zarr.json", lambda v: v.update(consolidated_metadata={"kind": "inline", "metadata": {}})
    ),
    "a root that was never sealed": lambda c: _edit_root(c, lambda r: r.update(revision=None)),
    "the root of an older signed revision": _older_root,
    "the signature of an older revision": _older_signature,
    # the card
    "a byte of the card": lambda c: _flip(c, "README.md"),
    "a byte of the stated facts": lambda c: _flip(c, "card.json"),
    "a card that is missing": lambda c: (c / "README.md").unlink(),
    "a document of the card that is added": lambda c: (c / "croissant.json").write_bytes(b"{}"),
    # signature and signer
    "no signature": lambda c: (c / _signature(c)).unlink(),
    "another signer": _other_signer,
    "another signer under the same id": _claimed_signer,
    "a byte of the envelope": lambda c: _flip(c, _signature(c)),
    "first byte of the envelope": lambda c: _flip(c, _signature(c), 0),
    "last byte of the envelope": lambda c: _flip(c, _signature(c), 1),
    "white space in the envelope": lambda c: (c / _signature(c)).write_bytes(
        (c / _signature(c)).read_bytes() + b"\n"
    ),
    "a signature of zeros": lambda c: _edit(
        c,
        _signature(c),
        lambda v: v["signatures"][0].update(sig=base64.b64encode(bytes(64)).decode()),
    ),
    "a signature that is cut": lambda c: _edit(
        c, _signature(c), lambda v: v["signatures"][0].update(sig=v["signatures"][0]["sig"][:40])
    ),
    "an envelope without signatures": lambda c: _edit(
        c, _signature(c), lambda v: v["signatures"].clear()
    ),
    "another type of the payload": lambda c: _edit(
        c, _signature(c), lambda v: v.update(payloadType="text/plain")
    ),
    "the provenance": lambda c: _edit_statement(
        c, lambda s: s["predicate"]["images"].update(rows=1)
    ),
    "the command": lambda c: _edit_statement(c, lambda s: s["predicate"].update(command="other")),
    "the subject": lambda c: _edit_statement(
        c, lambda s: s["subject"][0]["digest"].update(sha256="0" * 64)
    ),
    "the type of the predicate": lambda c: _edit_statement(
        c, lambda s: s.update(predicateType="urn:other")
    ),
    "a second subject": lambda c: _edit_statement(
        c, lambda s: s["subject"].append(dict(s["subject"][0]))
    ),
}
"""Changes of a folder with a signed cache, by what is changed."""

"""Commands that move caches between places.

Heavy imports happen inside them, so that help comes at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from logitcache.cli.commands import Commands
from logitcache.cli.echo import echo
from logitcache.cli.flags import Creator, Json, License, Revision

__all__ = ["transfer_app"]

transfer_app = Commands()

_SHARE = "Share"

_Revision = Annotated[
    str | None,
    typer.Option(
        metavar="SHA256",
        help="Copy this revision, which may be an earlier one: its sha256, or the first 12 or more "
        "digits.",
    ),
]
_Views = Annotated[
    int | None, typer.Option("--views", min=1, help="Copy the first views only: how many.")
]
_SignedBy = Annotated[
    str | None,
    typer.Option(
        metavar="PUBLICKEY",
        help="Require a valid signature of the source's current revision by this Ed25519 key.",
    ),
]
_Teachers = Annotated[
    list[str] | None,
    typer.Option("--teacher", metavar="NAME", help="Copy this teacher only; repeatable."),
]


@transfer_app.command(rich_help_panel=_SHARE)
def push(
    cache: Annotated[str, typer.Argument(help="Folder or URL of a sealed cache.")],
    url: Annotated[str, typer.Argument(help="Destination: s3://…, gs://… or a folder.")],
    revision: _Revision = None,
    views: _Views = None,
    teacher: _Teachers = None,
    as_json: Json = False,
) -> None:
    """Copy a cache to an object store or folder.

    Only what is missing there is sent. The same command resumes after an
    interruption, and updates a copy of an earlier revision. The root of the
    cache is written last: readers find the old revision or the new one.
    """
    _copy("push", cache, url, revision, views, teacher, None, as_json=as_json)


@transfer_app.command(rich_help_panel=_SHARE)
def pull(
    url: Annotated[
        str,
        typer.Argument(
            help="Sealed cache: a URL (s3, gs, http(s), hf), demo:digits or shelf:NAME."
        ),
    ],
    cache: Annotated[str, typer.Argument(help="Destination: a folder.")],
    revision: _Revision = None,
    views: _Views = None,
    teacher: _Teachers = None,
    signed_by: _SignedBy = None,
    as_json: Json = False,
) -> None:
    """Copy a cache, or some views and teachers of it, from a URL.

    Every object is compared with its checksum. Only what is missing is
    received. The same command resumes after an interruption, and updates a
    copy of an earlier revision.
    """
    _copy("pull", url, cache, revision, views, teacher, signed_by, as_json=as_json)


@transfer_app.command(rich_help_panel=_SHARE)
def card(
    cache: Annotated[str, typer.Argument(help="Folder or URL of a sealed cache.")],
    title: Annotated[str | None, typer.Option(help="Name of the cache.")] = None,
    license_: License = None,
    creator: Creator = None,
    images_license: Annotated[str | None, typer.Option(help="License of the images.")] = None,
    teacher_license: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LICENSE", help="License of a teacher's weights; repeatable."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Where the images come from: a URL or a name.")
    ] = None,
    citation: Annotated[str | None, typer.Option(help="How to cite the cache, as text.")] = None,
    as_json: Json = False,
) -> None:
    """Write the card of a cache: README.md, croissant.json, index.parquet.

    What is stated once is kept; every call adds to it. Licenses that are
    not stated are listed, and nothing is guessed. The card is part of the
    next revision: sign the cache afterwards.
    """
    from logitcache.cli.options import named_values, print_json

    facts = {
        "title": title,
        "license": license_,
        "creator": creator,
        "images_license": images_license,
        "teacher_licenses": named_values("--teacher-license", teacher_license or []),
        "source": source,
        "citation": citation,
    }
    from logitcache.cache.format.card import CardConfig
    from logitcache.share.card import write_card

    found = write_card(cache, CardConfig.parse({k: v for k, v in facts.items() if v}, "card"))
    if as_json:
        print_json({"cache": cache, **found.to_json()})
        return
    written = ", ".join(found.changed) or "nothing, it is up to date"
    echo(f"{cache}: revision {found.number}, sha256 {found.revision}; written: {written}")
    if found.missing_licenses:
        echo(f"note: no license is stated for {', '.join(found.missing_licenses)}")
    for note in found.notes:
        echo(f"note: {note}")


@transfer_app.command(rich_help_panel=_SHARE)
def sign(
    cache: Annotated[str, typer.Argument(help="Folder or URL of a sealed cache.")],
    key: Annotated[
        str, typer.Option(metavar="FILE", help="Ed25519 private key: a PEM or OpenSSH file.")
    ],
    command: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Command that computed the cache, to be part of the signed statement.",
        ),
    ] = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Sign the current revision of a cache with a key of your own.

    The signature is stored in the cache and covers every sealed byte. Who
    has the public key checks it with verify, train or pull --signed-by.
    The passphrase of the key, if it has one, is read from
    LOGITCACHE_KEY_PASSPHRASE.
    """
    from logitcache.cli.options import print_json
    from logitcache.share.sign import sign_cache

    found = sign_cache(cache, key, command=command, revision=revision)
    if as_json:
        print_json({"cache": cache, **found.to_json()})
        return
    echo(f"{cache}: revision {found.number}, sha256 {found.revision}, signed by {found.signer}")


def _copy(
    title: str,
    source: str,
    destination: str,
    revision: str | None,
    views: int | None,
    teachers: list[str] | None,
    signed_by: str | None,
    *,
    as_json: bool,
) -> None:
    from logitcache.cli.interrupt import StopRequest
    from logitcache.cli.options import print_json
    from logitcache.cli.progress import ProgressLine
    from logitcache.share.transfer import push as copy

    with StopRequest() as stop, ProgressLine(title) as line:
        found = copy(
            source,
            destination,
            revision=revision,
            views=views,
            teachers=teachers or (),
            signed_by=signed_by,
            on_progress=line.bytes,
            on_wait=lambda wait: echo(f"{title}: {wait}", err=True),
            should_stop=stop,
        )
    notes = _notes(source) if title == "push" else ()
    if as_json:
        print_json({**found.to_json(), "notes": list(notes)})
        return
    echo(
        f"{found.destination}: revision {found.number}, sha256 {found.revision}: "
        f"{found.objects} objects of {found.bytes / 1e6:.1f} MB copied, "
        f"{found.present} of {found.present_bytes / 1e6:.1f} MB already present"
    )
    for note in notes:
        echo(f"note: {note}")


def _notes(cache: str) -> tuple[str, ...]:
    """Return what whoever publishes a cache should know about its card."""
    from logitcache.cache.store.open import locate
    from logitcache.share.card import card_notes

    return card_notes(locate(cache))

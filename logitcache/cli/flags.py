"""Flags that several commands share, with their help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AddViews",
    "BatchSize",
    "Budget",
    "CacheFolder",
    "Compile",
    "Config",
    "Data",
    "Device",
    "Feature",
    "Json",
    "MaxKl",
    "OnBadImage",
    "Precision",
    "Revision",
    "Sets",
    "Teacher",
    "Threads",
    "TopK",
    "UnitRows",
    "VerifySets",
    "Views",
]

Config = Annotated[
    Path | None, typer.Option(help="YAML config file with the same settings; flags override it.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=VALUE",
        help="Set any field that docs/configuration.md lists; repeatable.",
    ),
]
VerifySets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=VALUE",
        help="Set any field of data and teachers, as data.limit=9 or teachers.cnn.size=64; "
        "repeatable.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]

CacheFolder = Annotated[str | None, typer.Option(help="Folder or URL of the cache.")]
Data = Annotated[str | None, typer.Option(help="Folder, .tar file, digits, or torch/SET:FOLDER.")]
Teacher = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=MODEL[@WEIGHTS]",
        help="A timm model with a weights file or 'pretrained', local-dir:FOLDER, or "
        "hf-hub:REPOSITORY; repeatable.",
    ),
]
Feature = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=TAP[,OPTION=VALUE…]",
        help="Also cache intermediate activations of a layer, as vit=blocks.11,values=int8; "
        "repeatable.",
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        metavar="SHA256",
        help="Require this revision of the cache: the sha256 printed by inspect, or its first 12 "
        "or more digits.",
    ),
]
Views = Annotated[int | None, typer.Option(help="Number of random views.")]
AddViews = Annotated[
    bool | None,
    typer.Option(
        "--add-views", help="Add views with other augmentation settings to an existing cache."
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(help="Classes to store per row; by default 50, or all for up to 256 classes."),
]
Budget = Annotated[
    str | None, typer.Option(metavar="80B", help="Maximum bytes per image and view.")
]
MaxKl = Annotated[
    str | None,
    typer.Option(
        metavar="0.05@T=1", help="Maximum KL divergence in nats; chooses the number of classes."
    ),
]
BatchSize = Annotated[
    str | None,
    typer.Option(metavar="N|auto", help="Images per forward pass; auto for the fastest."),
]
UnitRows = Annotated[int | None, typer.Option(help="Rows per unit of work.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda …")]
Precision = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Threads = Annotated[int | None, typer.Option(help="Number of decoding threads.")]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile all teachers with torch.compile.")
]
OnBadImage = Annotated[
    str | None, typer.Option(help="error, or skip to leave out images that cannot be decoded.")
]

"""The commands that make something: caches, students, whole pipelines.

Heavy imports happen inside them, so that help comes at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from logitcache.cli.flags import (
    AddViews,
    BatchSize,
    Budget,
    CacheFolder,
    Compile,
    Config,
    Data,
    Device,
    Feature,
    Json,
    MaxKl,
    OnBadImage,
    Precision,
    Revision,
    Sets,
    Teacher,
    Threads,
    TopK,
    UnitRows,
    Views,
)
from logitcache.cli.launch import launched_rank

__all__ = ["create_app"]

create_app = typer.Typer()

_PANEL = "Create"


@create_app.command(rich_help_panel=_PANEL)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="How many times, for mean and spread.")] = 1,
    as_json: Json = False,
) -> None:
    """Show the whole story on scikit-learn's digits, in about three minutes."""
    from logitcache.cli.demo import run_demo

    run_demo(out, seeds=seeds, as_json=as_json)


@create_app.command(rich_help_panel=_PANEL)
def plan(
    configs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[CONFIG]...", help="YAML files as for precompute; later go over."),
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="A cache to compare with: what would be computed for it.")
    ] = None,
    data: Data = None,
    teacher: Teacher = None,
    feature: Feature = None,
    views: Views = None,
    top_k: TopK = None,
    budget: Budget = None,
    max_kl: MaxKl = None,
    add_views: AddViews = None,
    batch_size: BatchSize = None,
    unit_rows: UnitRows = None,
    device: Device = None,
    precision: Precision = None,
    threads: Threads = None,
    compiled: Compile = False,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Say what a cache would cost and lose; nothing is written.

    The teachers are shown a few hundred images in the views they would see.
    With V views a cache costs no more than live teachers after
    V store / (teach - fetch) student epochs, those of all students together:
    store is the time of an image and view in precompute, teach that of all
    teachers' forwards, fetch that of reading the targets.
    """
    from logitcache.cli.options import teachers
    from logitcache.cli.plan import run_plan

    flags = {
        "cache": cache,
        "data": data,
        "teachers": teachers(teacher or []),
        "views.count": views,
        "add_views": add_views,
        "encoding.top_k": top_k,
        "encoding.budget": budget,
        "encoding.max_kl": max_kl,
        "batch_size": batch_size,
        "unit_rows": unit_rows,
        "device": device,
        "precision": precision,
        "threads": threads,
    }
    files = [str(path) for path in configs or []]
    run_plan(files, flags, sets or [], feature or [], compiled=compiled, as_json=as_json)


@create_app.command(rich_help_panel=_PANEL)
def precompute(
    cache: CacheFolder = None,
    data: Data = None,
    teacher: Teacher = None,
    feature: Feature = None,
    views: Views = None,
    add_views: AddViews = None,
    top_k: TopK = None,
    budget: Budget = None,
    max_kl: MaxKl = None,
    batch_size: BatchSize = None,
    unit_rows: UnitRows = None,
    device: Device = None,
    precision: Precision = None,
    threads: Threads = None,
    compiled: Compile = False,
    on_bad_image: OnBadImage = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that compute, one for each GPU or share of cores.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="tcp://HOST:PORT", help="A dask scheduler to join.")
    ] = None,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Run teachers over views of images and store what they say.

    What is already in the cache is not computed again: the same command
    resumes, and a longer one adds teachers, views or new images.
    """
    from logitcache.cli.interrupt import StopRequest
    from logitcache.cli.options import (
        gather,
        print_json,
        teachers,
        with_compiling,
        with_features,
    )
    from logitcache.cli.progress import ProgressLine
    from logitcache.cli.tables import print_precompute

    flags = {
        "cache": cache,
        "data": data,
        "teachers": teachers(teacher or []),
        "views.count": views,
        "add_views": add_views,
        "encoding.top_k": top_k,
        "encoding.budget": budget,
        "encoding.max_kl": max_kl,
        "batch_size": batch_size,
        "unit_rows": unit_rows,
        "device": device,
        "precision": precision,
        "threads": threads,
        "on_bad_image": on_bad_image,
        "workers": workers,
        "scheduler": scheduler,
    }
    values = with_features(gather(_text(config), flags, sets or []), feature or [])
    values = with_compiling(values, compiled)
    from logitcache.precompute.build import build_cache
    from logitcache.precompute.config import PrecomputeConfig

    parsed = PrecomputeConfig.parse(values, "precompute")
    with StopRequest() as stop, ProgressLine("precompute") as line:
        summary = build_cache(parsed, on_progress=line.precompute, should_stop=stop)
    if as_json:
        print_json(summary.to_json())
    else:
        print_precompute(summary)


@create_app.command(rich_help_panel=_PANEL)
def train(
    out: Annotated[
        str | None, typer.Option(help="Folder for checkpoints, journal, result and export.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Images to train on: with a cache, those it was made from.")
    ] = None,
    val: Annotated[str | None, typer.Option(help="Images to evaluate on.")] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Folder or URL of the cache to learn from; none for labels alone."),
    ] = None,
    student: Annotated[str | None, typer.Option(help="timm model, or local-dir:FOLDER.")] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=WEIGHT]", help="soft, split or label; repeatable. Others need a file."
        ),
    ] = None,
    labels: Annotated[int | None, typer.Option(help="How many labels the student may see.")] = None,
    epochs: Annotated[int | None, typer.Option(help="How long, in epochs.")] = None,
    steps: Annotated[int | None, typer.Option(help="How long, in batches.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images of a batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and dropout.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, or cpu.")] = None,
    revision: Revision = None,
    use_views: Annotated[
        str | None,
        typer.Option(
            metavar="VIEWS", help="Which views of the cache: numbers, ranges or ids, as 0,2-5."
        ),
    ] = None,
    target_memory: Annotated[
        str | None,
        typer.Option(metavar="2GB", help="What targets may take in memory, in each process."),
    ] = None,
    tolerate_pixel_drift: Annotated[
        int | None,
        typer.Option(help="Levels of 255 by which the cache's probes may differ here."),
    ] = None,
    local_copy: Annotated[
        str | None, typer.Option(help="Folder that keeps shards of a cache that lies elsewhere.")
    ] = None,
    local_copy_bytes: Annotated[
        str | None, typer.Option(help="What that folder may take; 10 GiB by default, 0 for none.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="no, bf16 or fp16: automatic mixed precision.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads that decode, in each process.")
    ] = None,
    on_bad_image: Annotated[
        str | None,
        typer.Option(help="error, or skip to leave out images that cannot be decoded."),
    ] = None,
    onnx: Annotated[
        bool | None, typer.Option("--onnx", help="Export the network as ONNX, too.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on where the run in --out stopped, with its own settings; --epochs or --steps "
            "may be larger than before.",
        ),
    ] = False,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Train a student from a cache, or any network from labels alone.

    No teacher is loaded, and none needs to be there. On several processes:
    torchrun --nproc-per-node 2 -m logitcache train …
    """
    from logitcache.cli.interrupt import StopRequest
    from logitcache.cli.options import gather, objectives, print_json, saved_config
    from logitcache.cli.progress import ProgressLine
    from logitcache.cli.tables import print_train

    flags = {
        "out": out,
        "data": data,
        "val": val,
        "cache": cache,
        "student.model": student,
        "objectives": objectives(objective or []),
        "labels.count": labels,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "optimizer.lr": lr,
        "seed": seed,
        "device": device,
        "tolerate_pixel_drift": tolerate_pixel_drift,
        "local_copy": local_copy,
        "local_copy_bytes": local_copy_bytes,
        "revision": revision,
        "use_views": use_views,
        "target_memory": target_memory,
        "precision": precision,
        "threads": threads,
        "on_bad_image": on_bad_image,
        "onnx": onnx,
    }
    saved = saved_config(out, data=data, cache=cache) if resume and config is None else None
    values = gather(_text(config) or saved, flags, sets or [])
    from logitcache.training.config import TrainConfig
    from logitcache.training.loop import train_student

    parsed = TrainConfig.parse(values, "train")
    rank = launched_rank()
    with StopRequest() as stop, ProgressLine("train", quiet=rank > 0) as line:
        result = train_student(parsed, resume=resume, on_progress=line.train, should_stop=stop)
    if rank > 0:
        return
    if as_json:
        print_json(result.to_json())
    else:
        print_train(result)


@create_app.command(rich_help_panel=_PANEL)
def run(
    pipeline: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped one.")],
    out: Annotated[str | None, typer.Option(help="Folder of all outputs.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run just this stage; repeatable.")] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="How many times with another seed, for mean and spread.")
    ] = 1,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Run every stage of a pipeline, skipping what is done."""
    from logitcache.cli.run import run_pipeline

    run_pipeline(pipeline, out=out, only=only or [], seeds=seeds, sets=sets or [], as_json=as_json)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)

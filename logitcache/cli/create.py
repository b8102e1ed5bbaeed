"""Commands that create caches, students and runs of pipelines.

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
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/demo"),
    seeds: Annotated[
        int,
        typer.Option(
            min=1, help="Number of runs with different seeds, for mean and standard deviation."
        ),
    ] = 1,
    as_json: Json = False,
) -> None:
    """Run all stages on scikit-learn's digits, in about three minutes."""
    from logitcache.cli.demo import run_demo

    run_demo(out, seeds=seeds, as_json=as_json)


@create_app.command(rich_help_panel=_PANEL)
def plan(
    configs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[CONFIG]...",
            help="YAML config files as for precompute; later files override earlier ones.",
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="An existing cache; the estimate is for what is missing from it."),
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
    """Estimate size, time and fidelity of a cache without writing it.

    The teachers are run on a few hundred images in the configured views.
    With V views, a cache breaks even with live teachers after
    V write / (forward - read) student epochs of all students together, with
    the seconds per image of: writing one view in precompute, the forward
    passes of all teachers, and reading the targets.
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
        int | None,
        typer.Option(help="Number of worker processes, one for each GPU or share of the cores."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="tcp://HOST:PORT", help="Address of a running dask scheduler."),
    ] = None,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Run teachers on augmented views of images and cache their outputs.

    Committed units are not computed again: the same command resumes, and
    with further teachers, views or images it extends the cache.
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
        str | None,
        typer.Option(help="Training images; with a cache, the images it was computed from."),
    ] = None,
    val: Annotated[str | None, typer.Option(help="Validation images.")] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Folder or URL of the cache to train from; omit it to train on labels."),
    ] = None,
    student: Annotated[str | None, typer.Option(help="A timm model, or local-dir:FOLDER.")] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=WEIGHT]",
            help="Objective: soft, split or label; repeatable. Others need a config file.",
        ),
    ] = None,
    labels: Annotated[
        int | None, typer.Option(help="Number of labels used for training; all by default.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps (batches).")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per batch, of all processes together.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed for initialization, data order and dropout.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, or cpu.")] = None,
    revision: Revision = None,
    use_views: Annotated[
        str | None,
        typer.Option(
            metavar="VIEWS",
            help="Views of the cache to train on: numbers, ranges or ids, as 0,2-5.",
        ),
    ] = None,
    target_memory: Annotated[
        str | None,
        typer.Option(metavar="2GB", help="Maximum memory for targets, per process."),
    ] = None,
    tolerate_pixel_drift: Annotated[
        int | None,
        typer.Option(
            help="Largest allowed difference (0 to 255) between view fingerprints of the cache "
            "and of this machine."
        ),
    ] = None,
    local_copy: Annotated[
        str | None, typer.Option(help="Folder for local copies of the shards of a remote cache.")
    ] = None,
    local_copy_bytes: Annotated[
        str | None,
        typer.Option(help="Maximum size of that folder; 10 GiB by default, 0 for no copies."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Automatic mixed precision: no, bf16 or fp16.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Number of decoding threads, per process.")
    ] = None,
    on_bad_image: Annotated[
        str | None,
        typer.Option(help="error, or skip to leave out images that cannot be decoded."),
    ] = None,
    onnx: Annotated[
        bool | None, typer.Option("--onnx", help="Also export the network as ONNX.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume the run in --out with its own settings; --epochs or --steps "
            "may be larger than before.",
        ),
    ] = False,
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Train a student from a cache, or any network from labels.

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
    pipeline: Annotated[
        str, typer.Argument(help="A pipeline file (YAML), or the name of a shipped one.")
    ],
    out: Annotated[str | None, typer.Option(help="Output folder of all stages.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run only this stage; repeatable.")] = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, help="Number of runs with different seeds, for mean and standard deviation."
        ),
    ] = 1,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Run the stages of a pipeline; finished stages are skipped."""
    from logitcache.cli.run import run_pipeline

    run_pipeline(pipeline, out=out, only=only or [], seeds=seeds, sets=sets or [], as_json=as_json)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)

"""Commands that create caches, students and runs of pipelines.

Heavy imports happen inside them, so that help comes at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from logitcache.cli.commands import Commands
from logitcache.cli.flags import (
    AddViews,
    BatchSize,
    Budget,
    CacheFolder,
    ClassMap,
    Compile,
    Config,
    Creator,
    Data,
    Device,
    Encoding,
    Feature,
    ImageMemory,
    Images,
    Json,
    License,
    MaxKl,
    Objective,
    OnBadImage,
    Precision,
    Revision,
    Sets,
    ShowSettings,
    SignedBy,
    Teacher,
    Threads,
    TopK,
    UnitRows,
    Views,
    settings_of,
)
from logitcache.cli.launch import launched_rank

__all__ = ["create_app"]

create_app = Commands()

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
    """Run a whole pipeline, teachers to students, on scikit-learn's digits in three minutes."""
    from logitcache.cli.demo import run_demo

    run_demo(out, seeds=seeds, as_json=as_json)


@create_app.command(rich_help_panel=_PANEL)
def plan(
    configs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="CONFIG",
            help="YAML config files as for precompute; later files override earlier ones.",
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Folder or URL of an existing cache; lists what it lacks, too."),
    ] = None,
    data: Data = None,
    images: Images = None,
    teacher: Teacher = None,
    feature: Feature = None,
    views: Views = None,
    encoding: Encoding = None,
    top_k: TopK = None,
    budget: Budget = None,
    max_kl: MaxKl = None,
    add_views: AddViews = None,
    batch_size: BatchSize = None,
    unit_rows: UnitRows = None,
    device: Device = None,
    precision: Precision = None,
    threads: Threads = None,
    image_memory: ImageMemory = None,
    compiled: Compile = False,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Estimate size, time and fidelity of a cache without writing it.

    The teachers are run on a few hundred images in the configured views.
    With V views, a cache breaks even with live teachers after
    (decode + V * write) / (forward - read) student epochs, counted over all
    students. These are seconds per image: decode once, write to compute and
    store one view, forward for the forward passes of all teachers, read for
    reading the cached outputs.
    """
    flags = settings_of(locals())
    from logitcache.cli.plan import run_plan

    files = [str(path) for path in configs or []]
    run_plan(files, flags, sets or [], feature or [], compiled=compiled, as_json=as_json)


@create_app.command(rich_help_panel=_PANEL)
def precompute(
    cache: CacheFolder = None,
    data: Data = None,
    images: Images = None,
    teacher: Teacher = None,
    feature: Feature = None,
    views: Views = None,
    add_views: AddViews = None,
    encoding: Encoding = None,
    top_k: TopK = None,
    budget: Budget = None,
    max_kl: MaxKl = None,
    batch_size: BatchSize = None,
    unit_rows: UnitRows = None,
    device: Device = None,
    precision: Precision = None,
    threads: Threads = None,
    image_memory: ImageMemory = None,
    compiled: Compile = False,
    on_bad_image: OnBadImage = None,
    license_: License = None,
    creator: Creator = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of worker processes: one per GPU, or each with a share of the processors."
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="tcp://HOST:PORT", help="Address of a running dask scheduler."),
    ] = None,
    config: Config = None,
    sets: Sets = None,
    dry_run: ShowSettings = False,
    as_json: Json = False,
) -> None:
    """Run teachers on augmented views of images and cache their outputs.

    The same command resumes an interrupted run: units that are already
    stored are not computed again. Further teachers, views or images extend
    the cache. For example:
    logitcache precompute --cache runs/cache --data photos/train --views 8
    --teacher cnn=local-dir:runs/cnn/export
    """
    flags = settings_of(locals())
    from logitcache.cli.interrupt import StopRequest
    from logitcache.cli.options import gather, print_json, print_settings, with_teacher_options
    from logitcache.cli.progress import ProgressLine
    from logitcache.cli.tables import print_precompute

    values = gather(_text(config), flags, sets or [])
    values = with_teacher_options(values, feature or [], compiled)
    from logitcache.platforms import tune_allocator
    from logitcache.precompute.build import build_cache
    from logitcache.precompute.config import PrecomputeConfig

    parsed = PrecomputeConfig.parse(values, "precompute")
    if dry_run:
        print_settings("precompute", parsed, as_json=as_json)
        return
    tune_allocator()  # only here: a library must not change the allocator of a user's process
    with StopRequest() as stop, ProgressLine("precompute") as line:
        summary = build_cache(parsed, on_progress=line.precompute, should_stop=stop)
    if as_json:
        print_json(summary.to_json())
    else:
        print_precompute(summary)


@create_app.command(rich_help_panel=_PANEL)
def train(
    out: Annotated[
        str | None,
        typer.Option(help="Folder for checkpoints, training log, result and exported network."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Training images; with a cache, the images it was computed from, by default those "
            "that it contains."
        ),
    ] = None,
    val: Annotated[str | None, typer.Option(help="Validation images.")] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Folder or URL of the cache to train from; omit it to train on labels."),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(help="Network to train: the name of a timm model, or local-dir:FOLDER."),
    ] = None,
    objective: Objective = None,
    class_map: ClassMap = None,
    labels: Annotated[
        int | None, typer.Option(help="Number of images whose labels are used; all by default.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps, instead of --epochs.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per batch, of all processes together.")
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(help="Parts that each process divides its batch into, to save memory."),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(help="Factor of the learning rate from each layer to the one before it."),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Schedule of the learning rate: cosine, poly, tanh, constant, or multistep (at "
            "the shares of schedule.milestones)."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed for initialization, data order and dropout.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, or cpu to use no accelerator.")] = None,
    revision: Revision = None,
    signed_by: SignedBy = None,
    use_views: Annotated[
        str | None,
        typer.Option(
            metavar="VIEWS",
            help="Views of the cache to train on: numbers, ranges or ids, for example 0,2-5.",
        ),
    ] = None,
    target_memory: Annotated[
        str | None,
        typer.Option(metavar="2GB", help="Maximum memory for teacher outputs, per process."),
    ] = None,
    tolerate_pixel_drift: Annotated[
        int | None,
        typer.Option(
            help="Largest allowed difference (0 to 255) between pixels of the views when the "
            "cache was computed and on this machine."
        ),
    ] = None,
    local_copy: Annotated[
        str | None, typer.Option(help="Folder for local copies of the shards of a remote cache.")
    ] = None,
    local_copy_bytes: Annotated[
        str | None,
        typer.Option(
            help="Maximum size of the --local-copy folder; 10 GiB by default, 0 for no copies."
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Automatic mixed precision: no, bf16 or fp16.")
    ] = None,
    channels_last: Annotated[
        bool | None,
        typer.Option("--channels-last", help="Run convolutions in this memory format."),
    ] = None,
    compile_student: Annotated[
        bool | None,
        typer.Option("--compile", help="Compile the student with torch.compile."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Number of decoding threads, per process.")
    ] = None,
    image_memory: Annotated[
        str | None,
        typer.Option(
            metavar="4GB",
            help="Maximum memory for decoded training images, per process: images that fit are "
            "decoded in the first epoch only. None by default.",
        ),
    ] = None,
    on_bad_image: OnBadImage = None,
    onnx: Annotated[
        bool | None, typer.Option("--onnx", help="Also export the network as ONNX.")
    ] = None,
    log_with: Annotated[
        str | None,
        typer.Option(
            metavar="TRACKERS",
            help="Trackers: tensorboard, wandb, mlflow, separated by commas; TensorBoard by "
            "default if it is installed.",
        ),
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
    dry_run: ShowSettings = False,
    as_json: Json = False,
) -> None:
    """Train a student from a cache, or any network from labels.

    No teacher is loaded. For example:
    logitcache train --cache runs/cache --data photos/train --val photos/val
    --student resnet18 --epochs 30 --out runs/student.
    On several GPUs: torchrun --nproc-per-node 2 -m logitcache train …
    """
    flags = settings_of(locals())
    from logitcache.cli.interrupt import StopRequest
    from logitcache.cli.options import gather, print_json, print_settings, saved_config
    from logitcache.cli.progress import ProgressLine
    from logitcache.cli.tables import print_train

    saved = saved_config(out, data=data, cache=cache) if resume and config is None else None
    values = gather(_text(config) or saved, flags, sets or [])
    from logitcache.training.config import TrainConfig
    from logitcache.training.loop import train_student

    parsed = TrainConfig.parse(values, "train")
    if dry_run:
        print_settings("train", parsed, as_json=as_json)
        return
    rank = launched_rank()
    with StopRequest() as stop, ProgressLine("train", quiet=rank > 0) as line:
        result = train_student(parsed, resume=resume, on_progress=line.train, should_stop=stop)
    if rank > 0:
        return
    if as_json:
        print_json(result.to_json())
    else:
        print_train(result, parsed.model_dump(mode="json"))


@create_app.command("timm-train", rich_help_panel=_PANEL)
def timm_train(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="-- ARGS", help="Arguments of the script, after two dashes."),
    ],
    cache: Annotated[str, typer.Option(help="Folder or URL of the cache.")],
    script: Annotated[Path, typer.Option(help="Path of timm's train.py.")] = Path("train.py"),
    data: Annotated[
        str | None,
        typer.Option(
            help="Images; by default those in the cache, or else the script's training folder."
        ),
    ] = None,
    use_views: Annotated[
        str | None,
        typer.Option(
            metavar="VIEWS",
            help="Views of the cache to train on: numbers, ranges or ids, for example 0,2-5.",
        ),
    ] = None,
    revision: Revision = None,
) -> None:
    """Run timm's own train.py with the images and a teacher of a cache.

    The script is not changed. Its training images are the views of the
    cache, and --kd-model-name is a teacher of the cache, by name, or may be
    left out if there is only one. On several GPUs:
    torchrun --nproc-per-node 2 -m logitcache timm-train …
    """
    from logitcache.cli.echo import echo
    from logitcache.training.timm_train.script import run_timm_script

    run_timm_script(
        script,
        arguments,
        cache=cache,
        data=data,
        views=use_views.split(",") if use_views else (),
        revision=revision,
        on_report=lambda line: None if launched_rank() else echo(f"logitcache: {line}", err=True),
    )


@create_app.command(rich_help_panel=_PANEL)
def run(
    pipeline: Annotated[
        str, typer.Argument(help="A pipeline file (YAML), or the name of a built-in pipeline.")
    ],
    out: Annotated[
        str | None, typer.Option(help="Output folder of all stages; overrides out in the file.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Name of the only stage to run; repeatable.")
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, help="Number of runs with different seeds, for mean and standard deviation."
        ),
    ] = 1,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print what the stages would do, their bytes and steps, and how the pipeline "
            "differs from its paper. Neither images nor weights have to exist.",
        ),
    ] = False,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Run the stages of a pipeline; finished stages are skipped.

    For example: logitcache run tinyvit --set data=photos/train --set
    val=photos/val --out runs/tinyvit
    """
    from logitcache.cli.run import run_pipeline

    run_pipeline(
        pipeline,
        out=out,
        only=only or [],
        seeds=seeds,
        sets=sets or [],
        dry_run=dry_run,
        as_json=as_json,
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)

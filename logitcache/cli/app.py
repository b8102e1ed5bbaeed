"""The command line: what can be typed, and what a run leaves with.

Results go to stdout, progress and errors to stderr. Heavy imports happen inside the commands, so
that help comes at once.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from logitcache.cli.flags import (
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
    Sets,
    Teacher,
    Threads,
    TopK,
    UnitRows,
    Views,
)
from logitcache.cli.launch import launched_rank
from logitcache.cli.tools import tools_app
from logitcache.cli.views import views_app
from logitcache.errors import Interrupted, LogitcacheError

__all__ = ["app", "main"]

app = typer.Typer(
    name="logitcache",
    help="Run teachers once, train any number of students from what they said.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_CREATE, _LOOK, _TRUST = "Create", "Look", "Trust"
app.add_typer(views_app, name="views", rich_help_panel=_LOOK)
app.add_typer(tools_app, name="tools", rich_help_panel=_LOOK)


@app.command(rich_help_panel=_CREATE)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="How many times, for mean and spread.")] = 1,
    as_json: Json = False,
) -> None:
    """Show the whole story on scikit-learn's digits, in about three minutes."""
    from logitcache.cli.demo import run_demo

    run_demo(out, seeds=seeds, as_json=as_json)


@app.command(rich_help_panel=_CREATE)
def plan(
    configs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[CONFIG]...", help="YAML files as for precompute; later go over."),
    ] = None,
    data: Data = None,
    teacher: Teacher = None,
    feature: Feature = None,
    views: Views = None,
    top_k: TopK = None,
    budget: Budget = None,
    max_kl: MaxKl = None,
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
        "data": data,
        "teachers": teachers(teacher or []),
        "views.count": views,
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


@app.command(rich_help_panel=_CREATE)
def precompute(
    cache: CacheFolder = None,
    data: Data = None,
    teacher: Teacher = None,
    feature: Feature = None,
    views: Views = None,
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
    from logitcache.precompute.config import PrecomputeConfig
    from logitcache.precompute.local import build_cache

    parsed = PrecomputeConfig.parse(values, "precompute")
    with StopRequest() as stop, ProgressLine("precompute") as line:
        summary = build_cache(parsed, on_progress=line.precompute, should_stop=stop)
    if as_json:
        print_json(summary.to_json())
    else:
        print_precompute(summary)


@app.command(rich_help_panel=_CREATE)
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
    onnx: Annotated[
        bool | None, typer.Option("--onnx", help="Export the network as ONNX, too.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")
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
    from logitcache.cli.options import gather, objectives, print_json
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
        "target_memory": target_memory,
        "onnx": onnx,
    }
    values = gather(_text(config), flags, sets or [])
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


@app.command(rich_help_panel=_CREATE)
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


@app.command(rich_help_panel=_LOOK)
def inspect(
    cache: Annotated[str, typer.Argument(help="A cache.")],
    survey: Annotated[
        bool, typer.Option("--survey", help="Go through every answer: classes, entropy, accuracy.")
    ] = False,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="tcp://HOST:PORT", help="A dask scheduler to do that on."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a cache holds: images, views, teachers, bytes."""
    from logitcache.cache.describe import describe
    from logitcache.cli.options import print_json
    from logitcache.cli.tables import print_cache

    if survey:
        from logitcache.cli.survey import run_survey

        run_survey(cache, scheduler, as_json=as_json)
        return
    found = describe(cache)
    if as_json:
        print_json(found.to_json())
    else:
        print_cache(found)


@app.command(rich_help_panel=_LOOK)
def status(cache: Annotated[str, typer.Argument(help="A cache.")], as_json: Json = False) -> None:
    """Show which units are committed; exit 3 if some are missing."""
    from logitcache.cache.describe import describe
    from logitcache.cli.options import print_json
    from logitcache.cli.tables import print_status

    found = describe(cache)
    if as_json:
        print_json(found.to_json())
    else:
        print_status(found)
    if not found.complete or found.revision is None:
        raise typer.Exit(3)


@app.command(rich_help_panel=_TRUST)
def verify(
    cache: Annotated[str, typer.Argument(help="A cache.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Look at sizes and headers of shards only.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Images to compare with those it was made from.")
    ] = None,
    teachers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL[@WEIGHTS]",
            help="Ask this teacher again about a random sample; needs --data; repeatable.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=16, help="Rows of that sample.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
    as_json: Json = False,
) -> None:
    """Check every byte of a cache against its commits; exit 4 if any is not as committed."""
    from logitcache.cli.trust import run_verify

    run_verify(
        cache,
        quick=quick,
        data=data,
        named=teachers or [],
        samples=samples,
        device=device,
        as_json=as_json,
    )


@app.command(rich_help_panel=_TRUST)
def repair(
    cache: Annotated[str, typer.Argument(help="A cache.")],
    data: Annotated[str, typer.Option(help="The images it was made from.")],
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL[@WEIGHTS]", help="A teacher whose units are damaged; repeatable."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
    threads: Annotated[int | None, typer.Option(help="Threads that decode.")] = None,
    as_json: Json = False,
) -> None:
    """Compute damaged units again, exactly those; refuse other images or weights."""
    from logitcache.cli.trust import run_repair

    run_repair(cache, data, teacher or [], device=device, threads=threads, as_json=as_json)


@app.command(rich_help_panel=_TRUST)
def withdraw(
    cache: Annotated[str, typer.Argument(help="A cache.")],
    keys: Annotated[list[str], typer.Argument(help="Names of images, relative to the data root.")],
    reason: Annotated[str, typer.Option(help="Why, for people.")] = "",
    as_json: Json = False,
) -> None:
    """Keep images of a cache from every student; nothing that is committed is touched."""
    from logitcache.cache.withdraw import withdraw_images
    from logitcache.cli.options import print_json

    count = withdraw_images(cache, keys, reason)
    if as_json:
        print_json({"cache": cache, "withdrawn": count})
    else:
        typer.echo(f"{cache}: {count} images are withdrawn")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        typer.echo(version_of("logitcache"))
        raise typer.Exit


def main() -> None:
    """Run the command line and leave with the exit code of what happened."""
    try:
        app()
    except LogitcacheError as error:
        _complain(error)
    except KeyboardInterrupt:
        _complain(Interrupted("interrupted", kept=False))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone, which is no error of ours
        sys.exit(1)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        _complain(_no_space(error))


def _no_space(error: OSError) -> LogitcacheError:
    from logitcache.errors import StorageError

    return StorageError(
        "no space left",
        where=error.filename,
        hint="free some space and run the same command again; what was committed is intact",
    )


def _complain(error: LogitcacheError) -> Any:
    rank = launched_rank()
    who = f"process {rank}: " if rank else ""
    print(f"{who}error: {error.render()}", file=sys.stderr)
    sys.exit(error.exit_code)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)

"""``logitcache tools``: commands that derive settings from a cache or a network."""

from __future__ import annotations

from typing import Annotated

import typer

from logitcache.cli.commands import Commands
from logitcache.cli.echo import echo
from logitcache.cli.flags import Json

__all__ = ["tools_app"]

tools_app = Commands(no_args_is_help=True)


@tools_app.callback()  # typer would turn an app with a single command into that command
def _several() -> None:
    """Derive settings of a training run from a cache or a network."""


@tools_app.command("fit-weights")
def fit_weights(
    cache: Annotated[
        str, typer.Option(help="Folder or URL of a cache with teacher outputs and labels.")
    ],
    out: Annotated[str, typer.Option(help="YAML file to write the weights to.")] = "weights.yaml",
    teacher: Annotated[
        list[str] | None, typer.Option(help="Name of a teacher; all by default; repeatable.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(help="Maximum number of images to fit the weights on; 10000 by default."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of the sample of images and of the search.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit the weights of a teacher ensemble to the highest accuracy on labeled images."""
    from logitcache.cli.options import gather, print_json
    from logitcache.tools.fit_weights import FitWeightsConfig
    from logitcache.tools.fit_weights import fit_weights as fit

    flags = {"cache": cache, "out": out, "teachers": teacher, "rows": rows, "seed": seed}
    fitted = fit(FitWeightsConfig.parse(gather(None, flags, []), "tools fit-weights"))
    if as_json:
        print_json(fitted.to_json())
        return
    for name, weight in fitted.teachers.items():
        echo(f"{name}: weight {weight:.4f}, accuracy alone {fitted.single[name]:.1%}")
    echo(
        f"ensemble: accuracy {fitted.accuracy:.1%}, with equal weights {fitted.uniform:.1%}, on "
        f"{fitted.rows} images"
    )
    weights = ", ".join(f"{name}: {weight:.4f}" for name, weight in fitted.teachers.items())
    echo(f"written to {out}; to use them: objectives: [soft: {{teachers: {{{weights}}}}}]")


@tools_app.command("pick-hints")
def pick_hints(
    cache: Annotated[
        str, typer.Option(help="Folder or URL of a cache with features of the candidate layers.")
    ],
    out: Annotated[str, typer.Option(help="YAML file to write the hint points to.")] = "hints.yaml",
    teacher: Annotated[
        str | None, typer.Option(help="Name of the teacher, if the cache has several.")
    ] = None,
    tap: Annotated[
        list[str] | None,
        typer.Option(help="Name of a candidate layer; all by default; repeatable."),
    ] = None,
    count: Annotated[int | None, typer.Option(help="Number of hint points; 3 by default.")] = None,
    rows: Annotated[
        int | None, typer.Option(help="Maximum number of images to compare on; 10000 by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of the sample of images.")] = None,
    as_json: Json = False,
) -> None:
    """Choose the layers of a teacher that a student should imitate, by clustering all of them."""
    from logitcache.cli.options import gather, print_json
    from logitcache.tools.pick_hints import PickHintsConfig
    from logitcache.tools.pick_hints import pick_hints as pick

    flags = {"cache": cache, "out": out, "teacher": teacher, "taps": tap, "count": count}
    flags |= {"rows": rows, "seed": seed}
    found = pick(PickHintsConfig.parse(gather(None, flags, []), "tools pick-hints"))
    if as_json:
        print_json(found.to_json())
        return
    for center, members in found.groups.items():
        echo(f"{center}: center of {', '.join(members)}")
    echo(f"mean distance from the centers: {found.distance:.4f}, on {found.rows} images")
    features = " ".join(f"--feature {found.teacher}={tap}" for tap in found.taps)
    echo(f"written to {out}; to cache these layers: logitcache precompute … {features}")


@tools_app.command("class-means")
def class_means(
    cache: Annotated[
        str, typer.Option(help="Folder or URL of a cache with vectors of a teacher and labels.")
    ],
    feature: Annotated[
        str, typer.Option(help="Name of the cached vectors, for example TEACHER/pre_logits.")
    ],
    out: Annotated[
        str, typer.Option(help="File to write the table to, in the format of safetensors.")
    ] = "class-means.safetensors",
    as_json: Json = False,
) -> None:
    """Write a class table: the mean of the cached vectors of each class."""
    from logitcache.cli.options import gather, print_json
    from logitcache.tools.class_means import ClassMeansConfig
    from logitcache.tools.class_means import class_means as average

    flags = {"cache": cache, "feature": feature, "out": out}
    found = average(ClassMeansConfig.parse(gather(None, flags, []), "tools class-means"))
    if as_json:
        print_json(found.to_json())
        return
    echo(
        f"{len(found.classes)} classes, {found.channels} numbers each, from "
        f"{sum(found.classes.values())} images"
    )
    echo(f"written to {out}; to use it: student: {{surgery: {{adapter: {{table: {out}}}}}}}")


@tools_app.command("pick-bits")
def pick_bits(
    network: Annotated[
        str,
        typer.Option(help="Folder of an exported network, or MODEL@WEIGHTS or MODEL@pretrained."),
    ],
    out: Annotated[str, typer.Option(help="YAML file to write the bits to.")] = "bits.yaml",
    threshold: Annotated[
        float | None,
        typer.Option(help="Mean squared error of the weights of a layer; 1e-7 by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Choose the number of bits of the weights of each layer of a trained network."""
    from logitcache.cli.options import gather, network_or_folder, print_json
    from logitcache.tools.pick_bits import PickBitsConfig
    from logitcache.tools.pick_bits import pick_bits as pick

    flags = {"out": out, "threshold": threshold}
    values = gather({"network": network_or_folder(network)}, flags, [])
    found = pick(PickBitsConfig.parse(values, "tools pick-bits"))
    if as_json:
        print_json(found.to_json())
        return
    for name, bits in found.bits.items():
        echo(f"{name}: {bits} bits, mean squared error {found.errors[name]:.2g}")
    echo(f"{found.mean_bits:.2f} bits a weight, of {found.weights} weights")
    echo(f"written to {out}; to use them: student: {{surgery: {{fake_quant: {{bits: {out}}}}}}}")


@tools_app.command("synthesize")
def synthesize(
    data: Annotated[str, typer.Option(help="Images that they are made from.")],
    out: Annotated[str, typer.Option(help="New folder for the PNG files.")],
    count: Annotated[
        int | None, typer.Option(help="Number of images; by default one for each image.")
    ] = None,
    warp: Annotated[float | None, typer.Option(help="Strength of the warp, from 0 to 1.")] = None,
    mix: Annotated[
        float | None, typer.Option(help="Largest share of another image of the class, to 0.5.")
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="Standard deviation of noise, from 0 to 1.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    as_json: Json = False,
) -> None:
    """Write synthetic images: others warped, mixed within their class, with noise."""
    from logitcache.cli.options import gather, print_json
    from logitcache.tools.synthesize import SynthesizeConfig
    from logitcache.tools.synthesize import synthesize as make

    flags = {"data": data, "out": out, "count": count, "warp": warp, "mix": mix}
    flags |= {"noise": noise, "seed": seed}
    found = make(SynthesizeConfig.parse(gather(None, flags, []), "tools synthesize"))
    if as_json:
        print_json(found.to_json())
        return
    echo(f"{found.images} images, made from {found.made_from} of {found.data}")
    echo(f"written to {out}; with others: data: {{parts: {{real: {data}, synthetic: {out}}}}}")


@tools_app.command("learn-prototypes")
def learn_prototypes(
    cache: Annotated[
        str, typer.Option(help="Folder or URL of a cache with whole maps or tokens of a layer.")
    ],
    out: Annotated[
        str, typer.Option(help="File to write the prototypes to, in the format of safetensors.")
    ] = "prototypes.safetensors",
    teacher: Annotated[
        str | None, typer.Option(help="Name of the teacher, if the cache has several.")
    ] = None,
    tap: Annotated[
        str | None, typer.Option(help="Name of the layer, if the cache has several.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="Number of prototypes; 64 by default.")] = None,
    passes: Annotated[
        int | None, typer.Option(help="Number of passes over the tokens; 10 by default.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(help="Maximum number of images to learn from; 10000 by default.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of the sample of images and of the start.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Learn prototypes of the local features of a teacher, by soft clustering of cached tokens."""
    from logitcache.cli.interrupt import StopRequest
    from logitcache.cli.options import gather, print_json
    from logitcache.cli.progress import ProgressLine
    from logitcache.tools.learn_prototypes import LearnPrototypesConfig
    from logitcache.tools.learn_prototypes import learn_prototypes as learn

    flags = {"cache": cache, "out": out, "teacher": teacher, "tap": tap, "count": count}
    flags |= {"passes": passes, "rows": rows, "seed": seed}
    config = LearnPrototypesConfig.parse(gather(None, flags, []), "tools learn-prototypes")
    with StopRequest() as stop, ProgressLine("learn-prototypes") as line:
        found = learn(config, on_progress=line.count, should_stop=stop)
    if as_json:
        print_json(found.to_json())
        return
    echo(
        f"{found.count} prototypes of {found.teacher}/{found.tap}, {found.channels} channels each, "
        f"explain {found.explained:.1%} of the variance of {found.tokens} tokens"
    )
    use = f"attend: {{file: {out}, student: LAYER}}"
    echo(f"written to {out}; to use them: objectives: [label, {use}]")

"""Commands that repeat what a report shows."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from logitcache.errors import redacted
from logitcache.pipeline.run import PIPELINE
from logitcache.report.page.blocks import Commands, Section

if TYPE_CHECKING:
    from logitcache.report.page.blocks import Block
    from logitcache.report.page.contents import Contents

__all__ = ["repeat"]


def repeat(contents: Contents) -> Section:
    """Return the commands of the report, of its pipelines, runs and caches."""
    blocks: list[Block] = [Commands("This report:", [_command("report", *contents.paths)])]
    parents = {str(Path(run.origin.path).parent) for run in contents.runs}
    pipelines = sorted(parent for parent in parents if (Path(parent) / PIPELINE).is_file())
    if pipelines:
        lines = [
            _command("run", f"{parent}/{PIPELINE}", "--out", f"{parent}-again")
            for parent in pipelines
        ]
        blocks.append(Commands("The pipelines, into new folders:", lines))
    alone = [
        run.origin.path
        for run in contents.runs
        if str(Path(run.origin.path).parent) not in pipelines
        and (Path(run.origin.path) / "config.yaml").is_file()
    ]
    if alone:
        lines = [
            _command("train", "--config", f"{path}/config.yaml", "--out", f"{path}-again")
            for path in alone
        ]
        blocks.append(Commands("The training runs, into new folders:", lines))
    if contents.caches:
        lines = [_command("verify", cache.origin.path) for cache in contents.first_caches]
        blocks.append(Commands("A check of every byte of the caches:", lines))
    return Section("Commands", blocks)


def _command(*words: str) -> str:
    return " ".join(["logitcache", *(shlex.quote(redacted(word)) for word in words)])

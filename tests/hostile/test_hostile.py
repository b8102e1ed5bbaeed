"""Whoever opens a stranger's cache gets an error that names what is wrong, soon and in little room.

The table of inputs and messages is in docs/SECURITY.md; ``python -m tests.hostile`` writes it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.hostile.forge import Forgery
from tests.hostile.inputs import CANARY, INPUTS, Hostile, intact, payload
from tests.hostile.visit import FAR, Outcome, visit
from tests.remote.buckets import upload
from tests.remote.servers import FaultyServer, from_folder

SECONDS, MEGABYTES = 2.0, 300.0
DOCUMENT = Path(__file__).parents[2] / "docs/SECURITY.md"
# that may be printed: text, line breaks
UNPRINTABLE = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "cache"
    intact(path)
    return path


def check(outcomes: dict[str, Outcome] | int, hostile: Hostile, *, far: bool = False) -> None:
    """Check what came of a visit; on a server nothing can be listed, so there is no older root."""
    assert isinstance(outcomes, dict), f"the process ended with {outcomes}"
    for action, outcome in outcomes.items():
        assert not outcome.crash, f"{action}: {outcome.crash}"
        assert "Traceback" not in outcome.output, f"{action}: {outcome.output}"
        assert outcome.seconds < SECONDS, f"{action} took {outcome.seconds:.1f} s"
        assert outcome.megabytes < MEGABYTES, f"{action} took {outcome.megabytes:.0f} MB"
        assert not UNPRINTABLE.search(outcome.output), f"{action}: {outcome.output!r}"
    verified = outcomes["verify"]
    says, codes = hostile.says, {hostile.code}
    if far and hostile.code == 4:
        says, codes = (
            f"{says}|manifest|not a logitcache cache|a sealed document has changed",
            {1, 4},
        )
    assert re.search(says, verified.output), verified.output
    assert verified.code in codes, verified.output


@pytest.mark.requirement(
    "F1.1", "F10.2", "F10.3", "F11.20", "F11.31", "F11.32", "F11.33", "F11.34", "F11.35", "F11.37"
)
@pytest.mark.parametrize("hostile", INPUTS, ids=lambda hostile: hostile.name[:60])
def test_a_hostile_cache_is_refused(hostile: Hostile, base: Path, tmp_path: Path) -> None:
    """In a folder, and over HTTP where a server would send it."""
    canary, cache = tmp_path / "canary", tmp_path / "cache"
    shutil.copytree(base, cache)
    hostile.build(Forgery(cache))
    if hostile.files:  # before anything writes to it
        with FaultyServer(from_folder(cache)) as server:
            check(visit(server.url, FAR, {CANARY: str(canary)}), hostile, far=True)
    check(visit(str(cache), environment={CANARY: str(canary)}), hostile)
    assert not canary.exists(), "code of the cache was run"


# the last of every kind that can be on a server
ON_S3 = list({hostile.kind: hostile for hostile in INPUTS if hostile.files}.values())


@pytest.mark.parametrize("hostile", ON_S3, ids=lambda hostile: hostile.name[:60])
def test_so_is_one_on_s3(
    hostile: Hostile, base: Path, tmp_path: Path, s3_server: tuple[str, int]
) -> None:
    """``python -m tests.hostile --s3`` visits all of them."""
    shutil.copytree(base, tmp_path / "cache")
    hostile.build(Forgery(tmp_path / "cache"))
    url, environment = upload(tmp_path / "cache", s3_server)
    check(visit(url, FAR, environment), hostile, far=True)


def test_the_canary_would_be_found(tmp_path: Path) -> None:
    """The payload of the inputs does what it is made for."""
    canary = tmp_path / "canary"
    code = f"import pickle; pickle.loads({payload()!r})"
    subprocess.run([sys.executable, "-c", code], env={CANARY: str(canary)}, check=True)
    assert canary.exists()


def test_the_intact_cache_is_not_refused(base: Path) -> None:
    outcomes = visit(str(base))
    assert isinstance(outcomes, dict)
    for action, outcome in outcomes.items():
        assert (outcome.code, outcome.crash) == (0, ""), (action, outcome)


def test_sealing_again_changes_nothing(base: Path, tmp_path: Path) -> None:
    """The forger computes the digests that the package computes."""
    shutil.copytree(base, tmp_path / "cache")
    Forgery(tmp_path / "cache").seal()
    outcomes = visit(str(tmp_path / "cache"))
    assert isinstance(outcomes, dict)
    assert {outcome.code for outcome in outcomes.values()} == {0}, outcomes


def test_there_are_inputs_of_every_kind() -> None:
    kinds = Counter(hostile.kind for hostile in INPUTS)
    assert len(INPUTS) >= 100
    assert min(kinds.values()) >= 8, kinds
    assert len({hostile.name for hostile in INPUTS}) == len(INPUTS)

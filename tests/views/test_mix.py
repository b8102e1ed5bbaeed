from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, kstest

from logitcache.views.algorithm import mix_shares, parameters, view_floats
from logitcache.views.mix import match_partners, mix_squares
from logitcache.views.parameters import Mix
from logitcache.views.spec import View, ViewsConfig

HASHES = np.random.default_rng(0).integers(0, 2**64, 3000, dtype=np.uint64)
OWN = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8, generator=torch.manual_seed(0))
OTHER = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8, generator=torch.manual_seed(1))


def mixes(view: View) -> list[Mix | None]:
    rows = [array.tolist() for array in view_floats(view, HASHES)]
    return [parameters(view, list(row), 32, 32).mix for row in zip(*rows, strict=True)]


@pytest.mark.requirement("F5.7", "V4.20")
@given(st.integers(0, 60), st.integers(0, 5), st.integers(0, 3))
def test_partners_are_a_matching_drawn_by_seed_and_draw(size: int, seed: int, draw: int) -> None:
    partners = match_partners(seed, draw, HASHES[:size])
    assert (partners[partners] == np.arange(size)).all()
    assert int((partners == np.arange(size)).sum()) == size % 2


def test_other_draws_have_other_partners() -> None:
    first, second = (match_partners(0, draw, HASHES[:1000]) for draw in (1, 2))
    assert (first != second).mean() > 0.99
    moved = np.random.default_rng(1).permutation(1000)
    again = match_partners(0, 1, HASHES[:1000][moved])
    assert (moved[again] == first[moved]).all(), "the order of rows does not matter"


@pytest.mark.requirement("V4.6")
@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 2.0, 8.0])
def test_shares_are_beta_distributed(alpha: float) -> None:
    view = ViewsConfig(mixup_alpha=alpha).random_view(1)
    shares = [mix.lam for mix in mixes(view) if mix]
    assert len(shares) == len(HASHES)
    assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 1e-3
    assert shares == mix_shares(view, HASHES)


def test_switch_and_probability() -> None:
    config = ViewsConfig(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.3, mix_prob=0.6)
    found = mixes(config.random_view(1))
    mixed = [mix for mix in found if mix is not None]
    assert np.mean([mix is not None for mix in found]) == pytest.approx(0.6, abs=0.03)
    assert np.mean([mix.box is not None for mix in mixed]) == pytest.approx(0.3, abs=0.03)


@pytest.mark.requirement("V4.18", "V7.15")
def test_cutmix_shares_are_what_the_box_leaves() -> None:
    view = ViewsConfig(cutmix_alpha=1.0).random_view(1)
    for mix in mixes(view)[:200]:
        assert mix is not None
        assert mix.box is not None
        top, left, bottom, right = mix.box
        assert 0 <= top <= bottom <= 1
        assert 0 <= left <= right <= 1
        assert mix.lam == pytest.approx(1 - (bottom - top) * (right - left))
        for size in (40, 20):
            own, other = OWN[:, :size, :size], OTHER[:, :size, :size]
            kept = (mix_squares(own, other, mix) == own).all(0).float().mean()
            assert kept == pytest.approx(mix.lam, abs=3 / size)


def test_minmax_boxes_keep_to_their_range() -> None:
    for mix in mixes(ViewsConfig(cutmix_minmax=(0.2, 0.6)).random_view(1))[:300]:
        assert mix is not None
        assert mix.box is not None
        top, left, bottom, right = mix.box
        assert 0.2 <= bottom - top <= 0.6
        assert 0.2 <= right - left <= 0.6
        assert max(bottom, right) <= 1 + 1e-12


@pytest.mark.parametrize("lam", [0.0, 0.25, 0.5, 40000 / 65536, 1.0])
def test_blending_rounds_to_the_nearest_level(lam: float) -> None:
    exact = lam * OWN.double() + (1 - lam) * OTHER.double()
    assert (mix_squares(OWN, OTHER, Mix(lam)) - exact).abs().max() <= 0.5

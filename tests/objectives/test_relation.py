from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from logitcache.errors import UsageError
from logitcache.objectives import similarity as relations
from logitcache.objectives.relational import Relation, RelationConfig
from tests.memory import peak_bytes
from tests.objectives import feature_reference as reference
from tests.objectives.features import maps, noise, outputs_of, targets_of, tokens, vector

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import Features

LOOPS: dict[str, Any] = {
    "gram": lambda s, t: reference.gram(s, t, "mean"),
    "distance": reference.rkd_distance,
    "angle": reference.rkd_angle,
    "cka": reference.cka,
}
FORMS = list(LOOPS)


def relation(**config: Any) -> Relation:
    values = {"teacher": "t", "tap": "x", **config}
    if "pairs" in config:
        values = config
    return Relation(RelationConfig.parse(values, "relation"))


def loss_of(loss: Relation, student: Features, teacher: Features) -> Tensor:
    return loss(outputs_of(x=student), targets_of(x=teacher))


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_a_batch(form: str) -> None:
    """Student and teacher have different widths."""
    s, t = noise(5, 3, seed=0).requires_grad_(), noise(5, 4, seed=1)
    loss = loss_of(relation(form=form), vector(s), vector(t))

    def loop(s: Tensor) -> float:
        value: float = LOOPS[form](s.tolist(), t.tolist())
        return value

    assert loss.item() == pytest.approx(loop(s.detach()), rel=1e-9)
    (got,) = torch.autograd.grad(loss, s)
    torch.testing.assert_close(got, reference.gradient(loop, s.detach()), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("over", ["tokens", "channels"])
def test_tokens_or_channels_of_each_row(form: str, over: str) -> None:
    s, t = noise(2, 4, 3, seed=2).requires_grad_(), noise(2, 4, 3, seed=3)
    loss = loss_of(relation(form=form, over=over), tokens(s), tokens(t))

    def loop(s: Tensor) -> float:
        things = (s, t) if over == "tokens" else (s.transpose(1, 2), t.transpose(1, 2))
        rows = zip(*(v.tolist() for v in things), strict=True)
        total: float = sum(LOOPS[form](*row) for row in rows)
        return total / 2

    assert loss.item() == pytest.approx(loop(s.detach()), rel=1e-9)
    (got,) = torch.autograd.grad(loss, s)
    torch.testing.assert_close(got, reference.gradient(loop, s.detach()), rtol=1e-6, atol=1e-8)


def test_vectors_of_several_taps() -> None:
    """The Gram matrix of modalities: unit vectors, all pairs summed, one matrix a row."""
    s = [noise(2, 5, 3, seed=4), noise(2, 3, seed=5)]
    t = [noise(2, 4, seed=6), noise(2, 4, seed=7)]
    pairs = [{"teacher": "t", "tap": "a"}, {"teacher": "t", "tap": "b", "student": "c"}]
    loss = relation(pairs=pairs, form="gram", over="taps", normalize="l2", reduction="sum")
    assert loss.config.needs.features == ("t/a", "t/b")
    assert loss.config.needs.taps == ("a", "c")
    got = loss(
        outputs_of(a=tokens(s[0], prefix=1), c=vector(s[1])),
        targets_of(a=vector(t[0]), b=vector(t[1])),
    )
    means = s[0][:, 1:].mean(1), s[1]
    expected = sum(
        reference.gram(
            reference.unit([v[i].tolist() for v in means]),
            reference.unit([v[i].tolist() for v in t]),
            "sum",
        )
        for i in range(2)
    )
    assert got.item() == pytest.approx(expected / 2, rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_zero_for_the_teacher_itself_and_rotated(form: str) -> None:
    t = noise(6, 4, seed=8)
    rotation = torch.linalg.qr(noise(4, 4, seed=9)).Q
    for student in (t, t @ rotation):
        loss = loss_of(relation(form=form), vector(student), vector(t))
        assert loss.item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("form", ["distance", "angle", "cka"])
def test_it_does_not_change_with_scale_or_place(form: str) -> None:
    s, t = noise(6, 4, seed=10), noise(6, 4, seed=11)
    moved = 3.0 * s + noise(1, 4, seed=12)
    loss = relation(form=form)
    torch.testing.assert_close(
        loss_of(loss, vector(moved), vector(t)), loss_of(loss, vector(s), vector(t))
    )


def test_a_gram_of_unit_things_does_not_change_with_their_lengths() -> None:
    s, t = noise(4, 3, seed=13), noise(4, 3, seed=14)
    loss = relation(form="gram", normalize="l2")
    longer = s * torch.tensor([[2.0], [0.1], [5.0], [1.0]])
    torch.testing.assert_close(
        loss_of(loss, vector(longer), vector(t)), loss_of(loss, vector(s), vector(t))
    )


def test_a_gram_by_width_is_that_of_scaled_products() -> None:
    """V V^T / sqrt(D), whatever the D of each."""
    s, t = noise(2, 4, 3, seed=15), noise(2, 4, 7, seed=16)
    loss = loss_of(relation(form="gram", over="tokens", normalize="width"), tokens(s), tokens(t))
    products = [v @ v.transpose(1, 2) / v.shape[2] ** 0.5 for v in (s, t)]
    torch.testing.assert_close(loss, F.mse_loss(*products))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalized", [{"teacher": "l2"}, {"student": "l2"}, "l2"])
def test_one_side_alone_may_be_scaled_to_unit_length(form: str, normalized: Any) -> None:
    """The code of RKD scales the embeddings of its teacher, not those of its student."""
    s, t = noise(5, 3, seed=26).requires_grad_(), noise(5, 4, seed=27)
    loss = loss_of(relation(form=form, normalize=normalized), vector(s), vector(t))
    sides = ["student", "teacher"] if normalized == "l2" else list(normalized)

    def loop(s: Tensor) -> float:
        things = {"student": s.tolist(), "teacher": t.tolist()}
        scaled = [reference.unit(v) if k in sides else v for k, v in things.items()]
        value: float = LOOPS[form](*scaled)
        return value

    assert loss.item() == pytest.approx(loop(s.detach()), rel=1e-9)
    (got,) = torch.autograd.grad(loss, s)
    torch.testing.assert_close(got, reference.gradient(loop, s.detach()), rtol=1e-6, atol=1e-8)


def test_one_name_for_both_sides_is_saved_as_a_name() -> None:
    values = {"teacher": "t", "tap": "x", "form": "gram"}
    for normalize in ("none", "l2", {"student": "none", "teacher": "l2"}):
        config = RelationConfig.parse({**values, "normalize": normalize}, "relation")
        saved = config.model_dump(mode="json")
        assert saved["normalize"] == normalize
        assert RelationConfig.parse(saved, "relation") == config


def test_means_are_taken_as_the_code_of_rkd_takes_them() -> None:
    """Zeros of the diagonal count; a coincident pair is 1e-6 apart, in the mean, and not pulled."""
    s = torch.tensor([[0.0], [0.0], [3.0]], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    loss = loss_of(relation(form="distance"), vector(s), vector(t))
    apart = torch.stack([torch.tensor(1e-6, dtype=s.dtype), s[2, 0] - s[0, 0], s[2, 0] - s[1, 0]])
    wanted = torch.tensor([1.0, 3.0, 2.0], dtype=s.dtype)
    expected = 2 * (apart / apart.mean() - wanted / wanted.mean()).square().sum() / 2 / 9
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, s)[0] for x in (loss, expected)))


@pytest.mark.parametrize("form", FORMS)
def test_coincident_things_have_a_finite_gradient(form: str) -> None:
    s = torch.zeros(4, 3, dtype=torch.float64)
    s[3] = 1.0
    s.requires_grad_()
    loss = loss_of(relation(form=form), vector(s), vector(noise(4, 3, seed=17)))
    (grad,) = torch.autograd.grad(loss, s)
    assert torch.isfinite(grad).all()
    assert grad.abs().max() < 10


@pytest.mark.parametrize("form", FORMS)
def test_one_thing_relates_to_nothing(form: str) -> None:
    s, t = noise(1, 3, seed=18).requires_grad_(), noise(1, 3, seed=19)
    loss = loss_of(relation(form=form), vector(s), vector(t))
    (grad,) = torch.autograd.grad(loss, s)
    assert torch.isfinite(grad).all()
    if form in {"distance", "angle"}:
        assert loss.item() == 0


def test_chunks_of_anchors_are_all_anchors(monkeypatch: pytest.MonkeyPatch) -> None:
    s, t = noise(1, 7, 3, seed=20).requires_grad_(), noise(1, 7, 4, seed=21)
    values = []
    for numbers in (1, 100, 2**22):
        monkeypatch.setattr(relations, "_NUMBERS_AT_ONCE", numbers)
        loss = relations.angle(s, t)
        values.append((loss.detach(), *torch.autograd.grad(loss, s)))
    for loss, grad in values[:2]:
        torch.testing.assert_close(loss, values[2][0])
        torch.testing.assert_close(grad, values[2][1])


def test_angles_of_a_batch_take_no_cubic_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relations, "_NUMBERS_AT_ONCE", 2**16)
    s, t = torch.randn(96, 16, requires_grad=True), torch.randn(96, 16)
    cube = 96**3 * 4
    assert peak_bytes(lambda: relations.angle(s[None], t[None]), s) < cube


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form: str) -> None:
    s, t = noise(4, 3, seed=22).requires_grad_(), noise(4, 3, seed=23)
    loss = relation(form=form)
    assert gradcheck(lambda s: loss_of(loss, vector(s), vector(t)), (s,))


def test_maps_of_a_batch_are_long_vectors_and_a_mean_asks_for_a_mean() -> None:
    s, t = noise(4, 3, 2, 2, seed=24), noise(4, 5, 3, 3, seed=25)
    loss = relation(form="distance")
    torch.testing.assert_close(
        loss_of(loss, maps(s), maps(t)), loss_of(loss, vector(s.flatten(1)), vector(t.flatten(1)))
    )
    mean = replace(vector(t.mean((2, 3))), reduction="mean")
    torch.testing.assert_close(
        loss_of(loss, maps(s), mean), loss_of(loss, vector(s.mean((2, 3))), mean)
    )


@pytest.mark.parametrize(
    ("student", "teacher", "options", "message"),
    [
        (tokens(noise(2, 4, 3, seed=0)), vector(noise(2, 3, seed=0)), {"over": "tokens"}, "vector"),
        (tokens(noise(2, 4, 3, seed=0)), tokens(noise(2, 4, 5, seed=0)), {"over": "channels"},
         r"tokens \(L, D\) of \(4, 5\)"),
        (tokens(noise(2, 4, 3, seed=0)),
         tokens(noise(2, 2, 3, seed=0), grid=2, positions=torch.tensor([[0, 1], [2, 3]])), {},
         "without the option tokens"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    student: Features, teacher: Features, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        relation(form="gram", **options).fit(outputs_of(x=student), targets_of(x=teacher))


def test_vectors_of_taps_are_of_one_width() -> None:
    pairs = [{"teacher": "t", "tap": "a"}, {"teacher": "t", "tap": "b"}]
    loss = relation(pairs=pairs, form="gram", over="taps")
    a, b = vector(noise(1, 3, seed=0)), vector(noise(1, 4, seed=0))
    with pytest.raises(UsageError, match="3, 4"):
        loss.fit(outputs_of(a=a, b=a), targets_of(a=a, b=b))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher": "t", "tap": "x", "form": "gram", "over": "taps"}, "several pairs"),
        ({"pairs": [{"teacher": "t", "tap": "x"}] * 2, "form": "gram"}, "several pairs"),
        ({"form": "gram"}, "'pairs' is missing"),
        ({"teacher": "t", "tap": "x", "form": "gramm"}, "'gram', 'distance'"),
    ],
)
def test_a_configuration_that_is_none_is_explained(values: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RelationConfig.parse(values, "relation")

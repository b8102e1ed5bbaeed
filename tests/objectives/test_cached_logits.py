"""Terms on logits whose teacher logits are a cached layer instead of the teacher's output."""

from __future__ import annotations

import math

import pytest
import torch

from logitcache.batch import DenseLogits, Features, Outputs, TargetBatch
from logitcache.errors import UsageError
from logitcache.objectives.combine import ObjectiveConfig, build_objective
from logitcache.objectives.soft import Soft, SoftConfig
from logitcache.objectives.split import Split, SplitConfig
from logitcache.objectives.term import Needs
from tests.objectives import reference

HEAD, TEMPERATURE = "branches.layer1", 3.0
GENERATOR = torch.Generator().manual_seed(0)
STUDENT = torch.randn(4, 12, dtype=torch.float64, generator=GENERATOR)
CACHED = 3 * torch.randn(4, 12, dtype=torch.float64, generator=GENERATOR)
OUTPUT = DenseLogits(torch.randn(4, 12, dtype=torch.float64, generator=GENERATOR).log_softmax(1))


def outputs(logits: torch.Tensor) -> Outputs:
    return Outputs(torch.zeros(4, 3), {HEAD: Features(logits, "vector")})


def targets(values: torch.Tensor = CACHED, layout: str = "vector") -> TargetBatch:
    features = Features(values, layout)  # type: ignore[arg-type]  # one of the layouts
    teachers = {"t": OUTPUT, "u": OUTPUT}
    return TargetBatch(
        torch.arange(4), torch.tensor([0, 5, 1, 2]), teachers, features={f"t/{HEAD}": features}
    )


def test_soft_compares_with_the_cached_vector() -> None:
    """Value and gradient of T^2 KL over all outputs of the layer, in plain loops."""
    z = STUDENT.clone().requires_grad_()
    config = SoftConfig(head=HEAD, logits={"t": HEAD}, temperature=TEMPERATURE)
    loss = Soft(config)(outputs(z), targets())
    rows = zip(STUDENT.tolist(), CACHED.tolist(), strict=True)
    expected = [reference.dense(z, t, TEMPERATURE) for z, t in rows]
    assert float(loss.detach()) == pytest.approx(sum(expected) / 4, rel=1e-6)
    torch.autograd.backward(loss)
    assert z.grad is not None
    for row in range(4):
        s, q = (
            [math.exp(v) for v in reference.log_softmax([v / TEMPERATURE for v in x[row].tolist()])]
            for x in (STUDENT, CACHED)
        )
        wanted = [TEMPERATURE * (a - b) / 4 for a, b in zip(s, q, strict=True)]
        assert z.grad[row].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-8)


def test_a_shift_of_the_cached_vector_changes_nothing() -> None:
    loss = Soft(SoftConfig(head=HEAD, logits={"t": HEAD}))
    shifted = CACHED + torch.tensor([[5.0], [-2.0], [0.0], [90.0]], dtype=torch.float64)
    torch.testing.assert_close(
        loss(outputs(STUDENT), targets()), loss(outputs(STUDENT), targets(shifted))
    )


def test_split_has_the_same_value_as_with_an_output() -> None:
    """A cached vector is a dense output under another name."""
    as_output = TargetBatch(
        torch.arange(4), targets().labels, {"t": DenseLogits(CACHED.log_softmax(1))}
    )
    ours = Split(SplitConfig(head=HEAD, logits={"t": HEAD}))(outputs(STUDENT), targets())
    theirs = Split(SplitConfig(head=HEAD))(outputs(STUDENT), as_output)
    torch.testing.assert_close(ours, theirs)


def test_layers_and_outputs_may_be_mixed_in_a_term() -> None:
    term = {"teachers": {"t": 0.25, "u": 0.75}, "logits": {"t": HEAD}, "head": HEAD}
    config = SoftConfig.model_validate(term)
    assert config.needs == Needs(teachers=("u",), features=(f"t/{HEAD}",), taps=(HEAD,))
    of_layer, of_output = (
        Soft(SoftConfig(head=HEAD, **one))(outputs(STUDENT), targets())
        for one in ({"logits": {"t": HEAD}}, {"teachers": {"u": 1.0}})
    )
    whole = Soft(config)(outputs(STUDENT), targets())
    torch.testing.assert_close(whole, 0.25 * of_layer + 0.75 * of_output)


def test_layers_alone_need_no_output() -> None:
    terms = [{"soft": {"head": HEAD, "logits": {"t": HEAD}}}, {"label": {}}]
    needs = build_objective([ObjectiveConfig.parse(term, "") for term in terms]).needs
    assert needs == Needs(teachers=(), features=(f"t/{HEAD}",), taps=(HEAD,), student_logits=True)


@pytest.mark.parametrize(
    ("values", "layout", "message"),
    [
        (torch.zeros(4, 12, 2, 2), "NCHW", "not a vector of logits"),
        (torch.zeros(4, 11), "vector", "different numbers of classes"),
    ],
)
def test_layers_that_are_no_logits_are_refused(
    values: torch.Tensor, layout: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Soft(SoftConfig(head=HEAD, logits={"t": HEAD}))(outputs(STUDENT), targets(values, layout))


def test_an_error_of_a_term_names_the_term_and_its_head() -> None:
    terms = [{"soft": {"head": HEAD}}, {"soft": {"head": HEAD, "logits": {"t": HEAD}}}]
    objective = build_objective([ObjectiveConfig.parse(term, "") for term in terms])
    with pytest.raises(UsageError, match="different numbers of classes") as caught:
        objective(outputs(STUDENT), targets(torch.zeros(4, 11), "vector"))
    assert caught.value.where == f"objectives.soft_2, head {HEAD}"


def test_logits_of_a_teacher_that_has_no_weight_are_refused() -> None:
    with pytest.raises(UsageError, match="logits of 'u', which is not among the teachers"):
        SoftConfig(teachers={"t": 1.0}, logits={"u": HEAD})

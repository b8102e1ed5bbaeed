"""Terms on logits, and views that drop patches, are checked before the first step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from logitcache.batch import DenseLogits, Features, SigmoidLogits
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sigmoid import SigmoidEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import UsageError
from logitcache.objectives.combine import ObjectiveConfig, build_objective
from logitcache.targets.decoding.batch_parts import example_logits
from logitcache.training.optimization.target_form import TargetForm
from logitcache.training.optimization.trainable_student import TrainableStudent
from logitcache.views.spec import ViewsConfig

CLASSES = 3
FEATURES = {
    "t/branch": Features(torch.zeros(1, 2 * CLASSES), "vector"),
    "t/tokens": Features(torch.zeros(1, 5, 16), "NLC", grid=2, prefix_tokens=1),
}
SPARSE = example_logits(SparseEncoding(CLASSES, 2))
FORM = TargetForm(
    ("base", "rot90(1)"),
    labels=CLASSES,
    teachers={"t": example_logits(DenseEncoding(CLASSES))},
    features=FEATURES,
)


def vit(**arguments: Any) -> nn.Module:
    sizes: dict[str, Any] = {
        "img_size": 8,
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
    }
    network: nn.Module = timm.create_model("deit_tiny_distilled_patch16_224", **sizes, **arguments)
    return network


def check(form: TargetForm, *terms: object, network: nn.Module | None = None) -> None:
    built = build_objective([ObjectiveConfig.parse(term, "objectives") for term in terms])
    network = network or vit(num_classes=CLASSES)
    student = TrainableStudent(network, built, size=8, features=form.features)
    student.check_targets(form, CLASSES, 8)


@pytest.mark.parametrize(
    ("term", "changes", "message"),
    [
        ({"soft": {"head": "blocks.0"}}, {}, "'blocks.0' is not a classifier head"),
        ({"soft": {"logits": {"t": "branch"}}}, {}, "different numbers of classes"),
        ({"soft": {"logits": {"t": "tokens"}}}, {}, "not a vector of logits"),
        ("soft", {"teachers": {"t": example_logits(DenseEncoding(7))}}, "expected: 7 logits"),
        ({"split": {"form": "dkd"}}, {"teachers": {"t": SPARSE}}, "temperature 1 only"),
        ("split", {"teachers": {"t": SigmoidLogits(torch.zeros(1, 3))}}, "a sigmoid"),
        ("split", {"mixed": True}, "mixed images have two"),
        ("split", {"label_sets": True}, "one label per image"),
        ({"label": {"binary": False}}, {"label_sets": True}, "one label per image"),
        ({"label": {"head": "head_dist"}}, {"labels": CLASSES + 1}, "no output of this head"),
        ({"label": {"head": "head_dist", "joint": True}}, {}, "2 outputs for each class"),
        ({"label": {"pseudo": "u"}}, {}, "no teacher 'u'"),
        ({"episode": {"student": "norm"}}, {"mixed": True}, "one label each"),
    ],
)
def test_logits_that_do_not_fit_are_refused(
    term: object, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check(replace(FORM, **changes), term)
    assert message in str(caught.value)
    assert caught.value.where


def test_logits_that_fit_are_accepted() -> None:
    """Every kind of target, terms on some of the views, and on parts of an image set."""
    some = {"soft": {"views": ["base"], "head": "head_dist"}}
    check(FORM, "label", "soft", {"split": {"form": "dkd"}}, some)
    check(FORM, {"gap": {"parts": ["a", "b"]}}, {"label": {"parts": ["b"], "pseudo": "t"}})
    check(replace(FORM, mixed=True, teachers={"t": SPARSE}), {"split": {"mixed": "likelier"}})
    check(replace(FORM, label_sets=True), "label", "soft")
    one_of_each = {"t": SPARSE, "u": DenseLogits(torch.zeros(1, 3))}
    check(replace(FORM, teachers=one_of_each), "soft")


@pytest.mark.parametrize(
    "encoding",
    [
        DenseEncoding(5, "uint8"),
        SparseEncoding(5, 2),
        SparseEncoding(5, 3, "float16"),
        SigmoidEncoding(5, "float16"),
    ],
)
def test_examples_have_equal_probabilities_in_the_form_of_their_encoding(encoding: Any) -> None:
    example = example_logits(encoding)
    probs = example.log_probs.exp()
    assert example.num_classes == 5
    torch.testing.assert_close(probs, probs[:, :1].expand_as(probs))
    assert type(example) is type(example_logits(encoding))
    assert float(probs.sum()) == pytest.approx(2.5 if encoding.head == "sigmoid" else 1, abs=0.7)


def test_a_student_that_cannot_drop_patches_is_refused() -> None:
    drops = ViewsConfig.parse({"count": 1, "patch_drop_rate": 0.5, "patch_drop_grid": 2}, "views")
    form = FORM.with_views(drops.views())
    assert form.grids == (2,)
    check(form, "label")
    cnn = timm.create_model("resnet10t", num_classes=CLASSES, channels=[8, 8, 8, 8], stem_width=8)
    with pytest.raises(UsageError, match="cannot be run on some of the patches"):
        check(form, "label", network=cnn)
    with pytest.raises(UsageError, match="patches of another grid"):
        check(replace(form, grids=(4,)), "label")


@pytest.mark.parametrize(
    ("term", "where"),
    [
        ("label", "student"),
        ({"match": {"teacher": "t", "tap": "tokens", "student": "layer1"}}, "objectives"),
    ],
)
def test_a_network_that_cannot_be_run_is_refused(term: object, where: str) -> None:
    # timm builds it: that layers do not fit is found when it is run
    network = timm.create_model("resnet10t", num_classes=CLASSES)
    network.conv1 = nn.Conv2d(3, 5, 1)
    with pytest.raises(UsageError, match="cannot be run on an image") as caught:
        check(FORM, term, network=network)
    assert str(caught.value.where).startswith(where)
    assert network.training, "its mode is restored"

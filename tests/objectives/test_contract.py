"""Every shipped objective on logits passes the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from logitcache.objectives.combine import TERMS, ObjectiveConfig
from logitcache.testing import ObjectiveContract

if TYPE_CHECKING:
    from logitcache.objectives.combine import Objective

EXAMPLES: list[dict[str, Any]] = [
    {"label": {}},
    {"label": {"smoothing": 0.1}},
    {"soft": {}},
    {"soft": {"temperature": 4.0}},
    {"split": {"form": "nkd"}},
    {"split": {"form": "dkd"}},
]


class TestObjectives(ObjectiveContract):
    @pytest.fixture(params=EXAMPLES, ids=str)
    def objective(self, request: pytest.FixtureRequest) -> Objective:
        config = ObjectiveConfig.parse(request.param, "")
        return TERMS[config.name](config.term)

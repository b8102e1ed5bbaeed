from __future__ import annotations

import json

import pytest

from logitcache.errors import CacheError
from logitcache.views.spec import ViewsConfig, parse_view


@pytest.mark.parametrize("view", ViewsConfig(count=2, eval=True, hflip=0.0).views())
def test_a_recipe_survives_json(view: object) -> None:
    values = json.loads(json.dumps(view.to_json()))  # type: ignore[attr-defined]
    assert parse_view(values, "here") == view


def test_another_algorithm_is_refused_by_name() -> None:
    values = {**ViewsConfig().random_view(1).to_json(), "algorithm": 2}
    with pytest.raises(CacheError, match="another version of the view algorithm"):
        parse_view(values, "here")


@pytest.mark.parametrize(
    "damage", [{"operations": [{"op": "twist"}]}, {"operations": [{}]}, {"size": {}}]
)
def test_a_malformed_recipe_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(CacheError, match="malformed view"):
        parse_view({**ViewsConfig().random_view(1).to_json(), **damage}, "here")

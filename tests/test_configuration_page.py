"""The page of settings says what the code takes, and all of it."""

from __future__ import annotations

import re

import yaml

from logitcache.precompute.config import PrecomputeConfig
from logitcache.training.config import TrainConfig
from tests.configuration_page import PAGE, attributes, page, sections


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.configuration_page"


def test_every_setting_is_explained() -> None:
    for path, config in sections():
        missing = set(config.model_fields) - set(attributes(config))
        assert not missing, f"{path} does not explain {missing}"


def test_the_examples_are_taken() -> None:
    train, precompute = re.findall(r"```yaml\n(.*?)```", page(), re.DOTALL)
    assert TrainConfig.parse(yaml.safe_load(train), "train").epochs == 48
    assert PrecomputeConfig.parse(yaml.safe_load(precompute), "precompute").views.count == 16

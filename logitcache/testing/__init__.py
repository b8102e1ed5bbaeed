"""Contract test suites for own sources, readers, encodings, locations and objectives.

Each suite is a class of pytest tests. Inherit from it in a test file and define the fixture that
its docstring names::

    from logitcache.testing import SourceContract

    class TestMySource(SourceContract):
        @pytest.fixture
        def source(self):
            return MySource("photos")
"""

from logitcache.testing.encoding import EncodingContract
from logitcache.testing.location import LocationContract
from logitcache.testing.objective import ObjectiveContract, example_batch
from logitcache.testing.reader import ReaderContract
from logitcache.testing.source import SourceContract

__all__ = [
    "EncodingContract",
    "LocationContract",
    "ObjectiveContract",
    "ReaderContract",
    "SourceContract",
    "example_batch",
]

from __future__ import annotations

import numpy as np
import pytest

from logitcache.cache.format.names import (
    canonical_json,
    check_name,
    check_new_name,
    content_sha256,
    default_unit_rows,
    group_unit_rows,
    sha256,
)
from logitcache.errors import UsageError


@pytest.mark.requirement("F3.7")
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (1, 1024),
        (1347, 1024),
        (16 * 2048 - 1, 1024),
        (16 * 2048, 2048),
        (1_281_167, 65536),
        (10**9, 65536),
    ],
)
def test_a_unit_is_about_a_sixteenth(rows: int, expected: int) -> None:
    assert default_unit_rows(rows) == expected


@pytest.mark.requirement("F3.7")
@pytest.mark.parametrize("requested", [0, 8, 48, 131072, -16])
def test_unusable_units_are_refused(requested: int) -> None:
    with pytest.raises(UsageError, match="number of rows in a unit"):
        default_unit_rows(1000, requested)


@pytest.mark.requirement("F3.8")
def test_large_rows_make_small_units() -> None:
    assert group_unit_rows(65536, 154) == 65536
    assert group_unit_rows(65536, 2 * 21841) == 4096
    assert group_unit_rows(64, 10**9) == 1


@pytest.mark.requirement("F11.9")
def test_canonical_json_is_one_byte_string_per_value() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "ü"}) == '{"a":"ü","b":[1,2.5]}'.encode()
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))


@pytest.mark.requirement("F11.12")
def test_content_is_digested_as_little_endian_bytes() -> None:
    values = np.arange(6, dtype=">u2").reshape(2, 3)
    assert content_sha256(values) == sha256(values.astype("<u2").tobytes())
    assert content_sha256(values[:, ::2]) == sha256(values[:, ::2].astype("<u2").tobytes())
    assert content_sha256(np.array(["a", "ü"], dtype=object)) == sha256("a\0ü".encode())


@pytest.mark.requirement("F5.3")
@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "a" * 65, "ü", "a b"])
def test_names_that_are_no_path_segment(name: str) -> None:
    with pytest.raises(UsageError, match="unusable name"):
        check_name(name, "teacher")


@pytest.mark.requirement("F5.4")
@pytest.mark.parametrize("name", ["con", "NUL.tap", "com1", "Lpt9.x", "cnn."])
def test_names_that_windows_reserves_are_not_added(name: str) -> None:
    check_name(name, "teacher")  # a cache that has it can be read
    with pytest.raises(UsageError, match="unusable name"):
        check_new_name(name, "teacher", [])


@pytest.mark.requirement("F5.4")
def test_names_that_differ_by_case_are_not_added() -> None:
    assert check_new_name("cnn", "teacher", ["cnn", "red", "CNN2"]) == "cnn"
    assert check_new_name("console", "teacher", []) == "console"
    with pytest.raises(UsageError, match="upper and lower case") as caught:
        check_new_name("cnn", "teacher", ["red", "CNN"])
    assert caught.value.got == "'CNN' and 'cnn'"

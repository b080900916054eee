"""Amounts, hashes and ids keep their value through text and bytes."""

import time

import pytest

from neolayer.core.errors import InvalidRequest
from neolayer.core.ids import uuid7
from neolayer.core.types import Hash160, Hash256, gas_parse, gas_text


@pytest.mark.parametrize(
    ("datoshi", "text"),
    [(0, "0"), (1, "0.00000001"), (150_000_000, "1.5"), (10**16, "100000000"), (-5, "-0.00000005")],
)
def test_gas_is_written_without_trailing_zeros(datoshi: int, text: str) -> None:
    assert gas_text(datoshi) == text
    if datoshi >= 0:
        assert gas_parse(text) == datoshi


@pytest.mark.parametrize("text", ["", "x", "-1", "0.000000001", "NaN", "Infinity", "1e30"])
def test_what_is_no_amount_of_gas_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        gas_parse(text)


def test_what_is_no_amount_of_gas_is_named_with_its_place() -> None:
    with pytest.raises(InvalidRequest, match=r"^max_fee: '0\.123456789' .* at most 8 places$"):
        gas_parse("0.123456789", "max_fee")


def test_hashes_are_big_endian_as_text_and_little_endian_as_bytes() -> None:
    gas = "0xd2a4cff31913016155e38e474a2c06d08be276cf"
    assert Hash160.parse(gas).data[-1] == 0xD2
    assert str(Hash160.parse(gas)) == gas
    assert str(Hash256.parse("ab" * 32)) == "0x" + "ab" * 32


@pytest.mark.parametrize("text", ["0x", "0x12", "zz" * 20, "0x" + "a" * 41])
def test_what_is_no_hash_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"hex|fromhex"):
        Hash160.parse(text)


def test_ids_carry_their_time_and_are_version_7() -> None:
    before = time.time_ns() // 1_000_000
    id = uuid7()
    assert id.version == 7
    assert before <= id.int >> 80 <= time.time_ns() // 1_000_000
    assert len({uuid7() for _ in range(1000)}) == 1000

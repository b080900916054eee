"""Picking versions by weight, and forgetting what changed."""

from collections import Counter
from typing import Any
from uuid import UUID, uuid4

from neolayer.enclave import Limits
from neolayer.functions.cache import BundleCache, Choice
from neolayer.functions.model import Bundle

TENANT = uuid4()


def bundle(version: int) -> Bundle:
    values: dict[str, Any] = {"secrets": [], "egress": [], "isolation": "version", "max_attempts": 3}
    return Bundle(f"b{version}", str(TENANT), UUID(int=1), "f", version, "", Limits(), **values)


def test_any_round_of_picks_holds_each_version_by_its_weight() -> None:
    choice = Choice([(bundle(1), 85), (bundle(2), 10), (bundle(3), 5)])
    picks = [choice.pick().version for _ in range(20 * 7)]
    for start in range(len(picks) - 20):
        assert Counter(picks[start : start + 20]) == {1: 17, 2: 2, 3: 1}


def test_first_picks_of_new_choices_follow_the_weights_too() -> None:
    """An alias that is called once per look-up gets its shares: 2,000 first picks of 1 in 10, within 5 sigma."""
    firsts = sum(Choice([(bundle(1), 9), (bundle(2), 1)]).pick().version == 2 for _ in range(2000))
    assert abs(firsts - 200) < 5 * (2000 * 0.1 * 0.9) ** 0.5


def test_a_lookup_that_began_before_a_change_is_not_remembered() -> None:
    cache = BundleCache()
    before = cache.generation
    cache.drop(str(TENANT))
    cache.put(TENANT, "f", Choice([(bundle(1), 1)]), before)
    assert cache.get(TENANT, "f") is None
    cache.put(TENANT, "f", Choice([(bundle(2), 1)]), cache.generation)
    cache.put(TENANT, "f@1", Choice([(bundle(1), 1)]), cache.generation)
    found = [cache.get(TENANT, target) for target in ("f", "f@1", "f@2")]
    assert [one and one.version for one in found] == [2, 1, None]
    cache.drop(str(TENANT))
    assert cache.get(TENANT, "f") is None

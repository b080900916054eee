"""Every code of the tree of errors is in docs/errors.md, as it is."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import neolayer
from neolayer.core.errors import ServiceError

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
#: Codes that are not of the class but come with each error, or are a defect.
WITHOUT_A_LINE = {"internal_error"}


def below(error: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for one in error.__subclasses__():
        yield one
        yield from below(one)


def test_the_page_of_error_codes_is_complete_and_true() -> None:
    for module in pkgutil.walk_packages(neolayer.__path__, "neolayer."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    text = PAGE.read_text()
    api = {
        (code, int(status), retryable == "yes")
        for code, status, retryable in re.findall(r"^\| `(\w+)` \| (\d+) \| (yes|no) \|", text, re.MULTILINE)
    }
    local = set(re.findall(r"^\| `(\w+)` \| [^0-9]", text, re.MULTILINE))
    tree = {(one.code, one.status, one.retryable) for one in below(ServiceError)}
    tree = {one for one in tree if one[0] not in WITHOUT_A_LINE}
    assert len(tree) > 60
    assert {one for one in tree if one[0] not in local} - api == set()
    of_the_framework = {"method_not_allowed", "unsupported_media_type"}
    assert {code for code, _, _ in api} | local == {code for code, _, _ in tree} | of_the_framework

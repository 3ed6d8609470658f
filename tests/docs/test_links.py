"""Links between the pages lead somewhere, and code that a page links to by name is there."""

import re

import pytest

from tests.docs.pages import FENCE, LINK, PAGES, ROOT

NAME = re.compile(r"^`(?:\w+\.)*(\w+)`$")  # a link whose text is `Class.method` promises that name in the file


def links():
    for page in PAGES:
        for text, target in LINK.findall(FENCE.sub("", page.read_text())):
            if "://" not in target:
                yield page, text, target


def anchors(page):
    """Headings as the anchors a browser would know."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "text", "target"), list(links()), ids=lambda value: str(getattr(value, "name", value)))
def test_link(page, text, target):
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.is_relative_to(ROOT) and file.exists(), f"{page.relative_to(ROOT)} links to {target}, which is not there"
    if anchor:
        assert anchor in anchors(file), f"{target} has no such heading"
    if file.suffix == ".py" and (name := NAME.match(text)):
        assert re.search(rf"^\s*(?:async )?(?:def|class) {name[1]}\b", file.read_text(), re.MULTILINE), (
            f"{target} defines no {name[1]}"
        )


def test_there_are_links_to_check():
    assert len(list(links())) > 20

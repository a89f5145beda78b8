"""The pages in themes, widths and languages, and the owner's page, in a real browser."""

import httpx
import numpy as np
import pytest
from voting_browser import (
    CHROMIUM,
    answer,
    check_accessible,
    fits,
    four,
    opened,
    shoot,
    vote,
    watch,
)
from voting_world import TOKEN, RaterClient

from experiments.voting.database import reading
from experiments.voting.export import read_survey, results_page
from experiments.voting.public import public_rows
from experiments.voting.survey import find_survey

pytest_plugins = ("voting_browser",)  # fixtures
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium (apt-get install chromium)"),
]


VIEWS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark", "reduced_motion": "reduce"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
    "phone_dark": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "color_scheme": "dark"},
    "chinese": {"locale": "zh-CN"},
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_pair_in_themes_widths_and_languages(browser, world, name):
    with opened(browser, world.links(1)[0], **VIEWS[name]) as page:
        watch(page)
        answer(page, four(0)[:2])
        page.wait_for_timeout(300)
        shoot(page, f"rate_{name}")
        assert fits(page)
        expected = "哪个片段更好？" if name == "chinese" else "Which clip is better?"
        assert page.inner_text("h1") == expected
        if name == "phone":
            page.tap("fieldset:last-of-type .choices label:nth-child(2)")
            assert page.locator("input[value=tie]:checked").count() >= 1
        check_accessible(page)


@pytest.fixture(scope="module")
def voted(pages):
    """The world after four raters have voted by chance."""
    rng = np.random.default_rng(5)
    with httpx.Client(timeout=60) as client:
        for link in pages.links(4):
            RaterClient(link, client).vote_all(rng, pages)
    return pages


@pytest.mark.slow
@pytest.mark.parametrize("name", VIEWS)
def test_results_and_links_in_themes_and_widths(browser, voted, name):
    with opened(browser, f"{voted.url}/owner#{TOKEN}", **VIEWS[name]) as page:
        page.wait_for_selector("#intervals svg")
        assert fits(page)
        shoot(page, f"owner_{name}", full_page=True)
        check_accessible(page)
        page.fill("#count", "2")
        page.click("#make button")
        page.wait_for_selector("#made:not([hidden])")
        shoot(page.locator("section:has(#make)"), f"links_{name}")
        assert fits(page)
        check_accessible(page)
        link = page.input_value("#links").splitlines()[0].split("\t")[1]
    with opened(browser, link, **VIEWS[name]) as page:
        page.goto(f"{voted.url}/r/nobody-was-given-this-link")
        page.wait_for_selector("h1")
        shoot(page, f"unknown_{name}")
        check_accessible(page)


@pytest.mark.parametrize(
    ("locale", "heading"), [("en-GB", "Ranking (Davidson)"), ("zh-CN", "排名（Davidson）")]
)
def test_the_page_of_results_stands_alone_in_both_languages(browser, voted, tmp_path, locale, heading):
    _, found = read_survey(str(voted.site.engine.url.database), None)
    (tmp_path / "votes.html").write_text(results_page(found), encoding="utf-8")
    with opened(browser, (tmp_path / "votes.html").as_uri(), locale=locale) as page:
        page.wait_for_selector("#intervals svg")
        assert page.locator("h2", has_text=heading).count() == 1
        assert page.locator("svg").count() == 8 and not page.is_visible("#make")
        assert fits(page)


def test_the_owner_makes_closes_and_exports(browser, world, tmp_path):
    with opened(browser, f"{world.url}/owner") as page:
        page.fill("#token", "wrong-token-of-somebody")
        page.press("#token", "Enter")
        page.wait_for_selector("text=missing or wrong")
        page.fill("#token", TOKEN)
        page.press("#token", "Enter")
        page.wait_for_selector("#numbers strong")
        page.fill("#count", "2")
        page.click("text=Make")
        page.wait_for_selector("#made:not([hidden])")
        made = [line.split("\t") for line in page.input_value("#links").splitlines()]
        names, links = [name for name, _ in made], [link for _, link in made]
        shoot(page, "links")
        assert len(links) == 2
    with opened(browser, links[0]) as page:
        page.wait_for_selector("#work:not([hidden])")
        page.fill("#comment", "<b>bold</b><img src=x onerror=alert(1)>")
        page.locator("#comment").blur()
        vote(page, four(0))
    with opened(browser, f"{world.url}/owner#{TOKEN}") as page:
        page.wait_for_selector("#comments li:has-text('<b>bold</b>')")
        assert page.locator("#comments img, #comments b").count() == 0
        assert TOKEN not in page.url
        with page.expect_download() as download:
            page.click("text=votes.jsonl")
        download.value.save_as(tmp_path / "votes.jsonl")
        page.click(f"[aria-label='Close the link of {names[0]}']")
        page.wait_for_selector(f"[aria-label='Open the link of {names[0]}']")
    with reading(world.site.engine) as connection:
        assert len((tmp_path / "votes.jsonl").read_text().splitlines()) == len(
            public_rows(connection, find_survey(connection))
        )
    with opened(browser, links[0]) as page:
        page.wait_for_selector("text=This link is closed")
        shoot(page, "closed")

import dataclasses
import html.parser
import importlib.resources
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from undula.errors import InputError
from undula.types import Mesh
from undula.viz.page import Page, write_page

HOSTILE = "</script><script>document.title='stolen'</script><img src=x onerror=\"alert(1)\">'&amp;"
TIMES = [0.0, 20.0, 40.0, 60.0]


def scaled(mesh: Mesh, factors: tuple[float, float, float]) -> Mesh:
    middle = mesh.vertices.mean(dim=0)
    return dataclasses.replace(
        mesh, vertices=(mesh.vertices - middle) * torch.tensor(factors) + middle
    )


@pytest.fixture
def page(sphere, nothing) -> Page:
    still = dataclasses.replace(sphere, scalars={"displacement": torch.zeros(len(sphere.vertices))})
    spread = sphere.scalars | {"spread": sphere.scalars["displacement"] / 2}
    forecast = [
        dataclasses.replace(scaled(sphere, (1 + 0.2 * k, 1.0, 1.0)), scalars=spread)
        for k in range(3)
    ]
    return Page(
        title="A ball",
        times_ps=TIMES,
        truth=[still, *(scaled(sphere, (1.0, 1 + 0.2 * k, 1.0)) for k in range(1, 4))],
        forecast=[*forecast, nothing],
        further_scalars={"spread": "spread of 4 samples, Å"},
        scores=[("model", {"IoU": "0.71"}), ("copied frame", {"IoU": "0.70", "Chamfer, Å": "1.1"})],
        score_series={"model": [1.0, 0.9, 0.8, math.nan], "copied frame": [1.0, 0.8, 0.7, 0.6]},
        notes=["It does not beat the copied first frame."],
    )


@pytest.fixture
def written(tmp_path, page) -> str:
    write_page(tmp_path / "index.html", page)
    return (tmp_path / "index.html").read_text()


def test_writes_the_same_bytes_twice(tmp_path, page):
    assert write_page(tmp_path / "a.html", page) == write_page(tmp_path / "b.html", page)


def test_names_no_other_file_and_no_address(written):
    own = re.sub(r'<script type="text/plain".*?</script>', "", written, flags=re.DOTALL)
    assert not re.findall(r"<(?:link|img|script|iframe)[^>]*(?:src|href)=\"(?!data:)", own)
    assert set(re.findall(r"https?://[\w./-]+", own)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xhtml",
    }


def test_allows_only_its_own_scripts(written):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', written).group(1)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "connect-src" not in policy
    assert policy.count("'sha256-") == 3


def test_hostile_text_adds_no_element(tmp_path, page):
    class Elements(html.parser.HTMLParser):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.found: list[str] = []
            self.feed(text)

        def handle_starttag(self, tag: str, attrs: list) -> None:
            self.found.append(tag)

    hostile = dataclasses.replace(
        page,
        title=HOSTILE,
        scalar_label=HOSTILE,
        further_scalars={"spread": HOSTILE},
        scores=[("row", {"IoU": HOSTILE}), (HOSTILE, {"IoU": "1", "Chamfer": HOSTILE})],
        score_series={HOSTILE: [1.0] * 4},
        score_label=HOSTILE,
        notes=[HOSTILE],
        truth_label=HOSTILE,
        forecast_label=HOSTILE,
    )
    plain = dataclasses.replace(hostile, scores=[("a", {"b": "c"}), ("d", {"b": "1", "e": "f"})])
    write_page(tmp_path / "hostile.html", hostile)
    write_page(tmp_path / "plain.html", dataclasses.replace(plain, title="t", notes=["n"]))
    hostile_html = (tmp_path / "hostile.html").read_text()
    assert Elements(hostile_html).found == Elements((tmp_path / "plain.html").read_text()).found
    assert "stolen'</script>" not in hostile_html
    content = re.search(r'id="page">(.*?)</script>', hostile_html).group(1)
    assert json.loads(content)["title"] == HOSTILE


def test_scripts_of_ours_cannot_end_early():
    for name in ("page.js", "three.bundle.js"):
        text = (importlib.resources.files("undula.viz") / "assets" / name).read_text()
        assert not re.search(r"</script|<!--", text, re.IGNORECASE)


def test_keeps_the_licence_of_three_beside_it():
    licence = importlib.resources.files("undula.viz") / "assets" / "three.LICENSE.txt"
    assert "three.js authors" in licence.read_text()


def test_stays_under_six_megabytes_for_fifty_meshes_of_five_thousand_vertices(tmp_path, sphere):
    n = 71
    u, v = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    corner = (u * n + v)[:-1, :-1].reshape(-1)
    faces = torch.stack([corner, corner + 1, corner + n, corner + 1, corner + n + 1, corner + n])
    generator = torch.Generator().manual_seed(0)
    meshes = []
    for _ in range(25):
        height = 3 * torch.rand(n, n, generator=generator)
        meshes.append(
            Mesh(
                vertices=torch.stack([u, v, height], dim=-1).reshape(-1, 3).float(),
                faces=faces.reshape(2, 3, -1).permute(0, 2, 1).reshape(-1, 3),
                scalars={"displacement": torch.rand(n * n, generator=generator)},
            )
        )
    times = [float(time) for time in range(25)]
    write_page(tmp_path / "a.html", Page(title="25", times_ps=times, forecast=meshes, truth=meshes))
    assert (tmp_path / "a.html").stat().st_size < 6e6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"times_ps": []}, "finite and increase"),
        ({"times_ps": [0.0, 1.0, 1.0, 2.0]}, "finite and increase"),
        ({"times_ps": [0.0, 1.0, 2.0, math.inf]}, "finite and increase"),
        ({"times_ps": [math.nan]}, "finite and increase"),
        ({"times_ps": [0.0, 1.0]}, "2 times but 4 of forecast"),
        ({"truth": []}, "4 times but 0 of truth"),
        ({"others": {"sample 1": []}}, "4 times but 0 of sample 1"),
        ({"score_series": {"model": [1.0]}}, "4 times but 1 of model"),
        ({"scalar": "charge"}, "forecast mesh 1 has no scalar 'charge'"),
    ],
)
def test_refuses_a_page_that_does_not_fit_together(page, change, reason):
    with pytest.raises(InputError, match=reason):
        dataclasses.replace(page, **change)


def test_refuses_numbers_that_are_not_finite(tmp_path, sphere):
    bad = dataclasses.replace(sphere, scalars={"displacement": sphere.vertices[:, 0] * math.inf})
    with pytest.raises(InputError, match="not finite"):
        write_page(tmp_path / "a.html", Page(title="t", times_ps=[0.0], forecast=[bad]))
    assert not (tmp_path / "a.html").exists()


# ---- In a browser --------------------------------------------------------------------------


@pytest.fixture
def opened(browser, tmp_path) -> Iterator:
    """Open a page; at the end nothing was asked of any network and nothing went wrong."""
    requests: list[str] = []
    troubles: list[str] = []
    address = (tmp_path / "index.html").as_uri()
    tabs = []

    def open_page(page: Page, *, width: int = 900, scheme: str = "light", motion: str = "reduce"):
        write_page(tmp_path / "index.html", page)
        tab = browser.new_page(
            viewport={"width": width, "height": 700}, color_scheme=scheme, reduced_motion=motion
        )
        tabs.append(tab)
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: troubles.append(message.text))
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
        tab.goto(address)
        until(tab, "window.undula.ready && window.undula.draws > 0")
        return tab

    yield open_page
    for tab in tabs:
        tab.close()
    assert set(requests) == {address}
    assert troubles == []


def until(tab, condition: str) -> None:
    """Wait for a condition from outside: the page forbids the evaluation that Playwright uses."""
    for _ in range(200):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(50)
    pytest.fail(f"the page did not reach: {condition}")


def picture(tab, path: Path) -> np.ndarray:
    tab.wait_for_timeout(150)
    tab.screenshot(path=str(path))
    return matplotlib.image.imread(path)[..., :3]


def colourful(pixels: np.ndarray) -> float:
    """The share of pixels with a colour that neither the paper nor the ink has."""
    return float((pixels.max(axis=-1) - pixels.min(axis=-1) > 0.12).mean())


def inside(tab, selector: str, pixels: np.ndarray) -> np.ndarray:
    box = {key: int(value) for key, value in tab.locator(selector).bounding_box().items()}
    return pixels[box["y"] : box["y"] + box["height"], box["x"] : box["x"] + box["width"]]


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(900, "light"), (900, "dark"), (390, "light")])
def test_shows_truth_and_forecast_side_by_side(opened, page, tmp_path, width, scheme):
    tab = opened(page, width=width, scheme=scheme)
    assert tab.evaluate("undula.views") == 2
    assert tab.locator(".view-name").all_text_contents() == ["simulation", "forecast"]
    tab.evaluate("undula.seek(2)")
    pixels = picture(tab, tmp_path / "page.png")
    for view in (".view:first-child", ".view:last-child"):
        assert colourful(inside(tab, view, pixels)) > 0.1
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_shows_a_single_view_without_a_truth(opened, page):
    tab = opened(dataclasses.replace(page, truth=None))
    assert tab.evaluate("undula.views") == 1
    assert tab.locator(".view").count() == 1
    assert not tab.locator("#overlay").is_visible()


@pytest.mark.browser
def test_the_slider_the_keys_and_the_chart_set_the_time(opened, page, tmp_path):
    tab = opened(page)
    assert tab.locator("#time").text_content() == "0 ps"
    before = picture(tab, tmp_path / "before.png")
    tab.locator("#slider").fill("2")
    assert tab.evaluate("undula.time_ps") == 40
    assert tab.locator("#time").text_content() == "40 ps"
    assert tab.locator("#slider").get_attribute("aria-valuetext") == "40 ps"
    assert (picture(tab, tmp_path / "after.png") != before).any()
    assert tab.locator("#chart-rows b").all_text_contents() == ["0.8", "0.7"]
    tab.evaluate("document.activeElement.blur()")
    for key, index in [("ArrowRight", 3), ("ArrowRight", 3), ("ArrowLeft", 2), ("Home", 0)]:
        tab.keyboard.press(key)
        assert tab.evaluate("undula.index") == index
    box = tab.locator("#chart").bounding_box()
    tab.locator("#chart").click(position={"x": box["width"] - 12, "y": 60})
    assert tab.evaluate("undula.index") == 3
    assert tab.locator("#chart-rows b").all_text_contents() == ["–", "0.6"]


@pytest.mark.browser
def test_play_moves_the_time_and_pause_stops_it(opened, page):
    tab = opened(page)
    assert not tab.evaluate("undula.playing")
    tab.get_by_role("button", name="Play").click()
    until(tab, "undula.index > 0")
    tab.get_by_role("button", name="Pause").click()
    index = tab.evaluate("undula.index")
    tab.wait_for_timeout(600)
    assert tab.evaluate("undula.index") == index
    tab.evaluate("document.activeElement.blur()")
    tab.keyboard.press("Space")
    assert tab.evaluate("undula.playing")


@pytest.mark.browser
def test_plays_by_itself_unless_the_reader_wants_no_motion(opened, page):
    assert opened(page, motion="no-preference").evaluate("undula.playing")


@pytest.mark.browser
def test_says_where_there_is_no_surface(opened, page, tmp_path):
    tab = opened(page)
    labels = tab.locator(".no-surface")
    assert [labels.nth(i).is_visible() for i in range(2)] == [False, False]
    tab.evaluate("undula.seek(3)")
    assert [labels.nth(i).is_visible() for i in range(2)] == [False, True]
    assert colourful(inside(tab, ".view:last-child", picture(tab, tmp_path / "a.png"))) == 0


@pytest.mark.browser
def test_dragging_turns_both_views_and_reset_turns_them_back(opened, page, tmp_path):
    tab = opened(page)
    tab.evaluate("undula.seek(2)")
    start, first = tab.evaluate("undula.camera"), picture(tab, tmp_path / "first.png")
    tab.mouse.move(300, 300)
    tab.mouse.down()
    tab.mouse.move(420, 340)
    tab.mouse.up()
    tab.wait_for_timeout(400)
    turned = picture(tab, tmp_path / "turned.png")
    assert math.dist(tab.evaluate("undula.camera"), start) > 5
    for view in (".view:first-child", ".view:last-child"):
        assert (inside(tab, view, turned) != inside(tab, view, first)).any()
    tab.get_by_role("button", name="Reset view").click()
    tab.wait_for_timeout(800)
    assert math.dist(tab.evaluate("undula.camera"), start) < 0.5


@pytest.mark.browser
def test_the_truth_can_be_laid_over_the_forecast(opened, page, tmp_path):
    tab = opened(page)
    tab.evaluate("undula.seek(2)")
    before = picture(tab, tmp_path / "before.png")
    tab.get_by_label("Lay simulation over forecast").check()
    after = picture(tab, tmp_path / "after.png")
    right, left = ".view:last-child", ".view:first-child"
    assert (inside(tab, right, after) != inside(tab, right, before)).any()
    np.testing.assert_array_equal(inside(tab, left, after), inside(tab, left, before))


@pytest.mark.browser
def test_another_number_can_colour_the_surface(opened, page, tmp_path):
    tab = opened(page)
    tab.evaluate("undula.seek(2)")
    assert tab.locator("#legend-ticks").text_content() == "01.9≥ 3.8"
    tab.get_by_label("Colour by").select_option("spread of 4 samples, Å")
    assert tab.locator("#legend-ticks").text_content() == "01≥ 2"
    left = inside(tab, ".view:first-child", picture(tab, tmp_path / "a.png"))
    assert colourful(left) == 0
    assert "not known here" in tab.locator(".view-name").first.text_content()


@pytest.mark.browser
def test_a_sample_can_take_the_place_of_the_typical_surface(opened, page, sphere, tmp_path):
    wide = [scaled(sphere, (1.0, 1.0, 1.6))] * 4
    assert not opened(page).locator("#form-choice").is_visible()
    tab = opened(dataclasses.replace(page, others={"sample 1 of 4": wide, HOSTILE: wide}))
    tab.evaluate("undula.seek(2)")
    remark = tab.locator(".view:last-child .view-name small")
    assert remark.text_content() == "typical surface"
    before = picture(tab, tmp_path / "before.png")
    choice = tab.get_by_label("Show")
    assert choice.locator("option").all_text_contents() == [
        "typical surface",
        "sample 1 of 4",
        HOSTILE,
    ]
    choice.select_option("sample 1 of 4")
    after = picture(tab, tmp_path / "after.png")
    assert remark.text_content() == "sample 1 of 4"
    right, left = ".view:last-child", ".view:first-child"
    assert (inside(tab, right, after) != inside(tab, right, before)).mean() > 0.02
    np.testing.assert_array_equal(inside(tab, left, after), inside(tab, left, before))
    tab.evaluate("undula.seek(3)")
    assert not tab.locator(".no-surface").last.is_visible()
    choice.select_option("typical surface")
    assert tab.locator(".no-surface").last.is_visible()


@pytest.mark.browser
def test_hostile_names_are_shown_and_never_run(opened, page):
    hostile = dataclasses.replace(
        page,
        title=HOSTILE,
        scalar_label=HOSTILE,
        scores=[(HOSTILE, {HOSTILE: HOSTILE})],
        score_series={HOSTILE: [1.0] * 4},
        score_label=HOSTILE,
        notes=[HOSTILE],
        truth_label=HOSTILE,
        forecast_label=HOSTILE,
    )
    tab = opened(hostile)
    assert tab.title() == HOSTILE
    assert tab.locator("h1").text_content() == HOSTILE
    assert tab.locator("#notes li").text_content() == HOSTILE
    assert tab.locator("img").count() == 0


@pytest.mark.browser
def test_a_single_time_needs_no_player(opened, sphere):
    tab = opened(Page(title="one", times_ps=[1500.0], forecast=[sphere]))
    assert tab.locator("#span").text_content() == "1.5 ns"
    assert tab.locator("#play").is_disabled()


@pytest.mark.browser
def test_shows_a_mesh_of_more_vertices_than_two_bytes_can_count(opened, tmp_path):
    n = 260
    u, v = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    corner = (u * n + v)[:-1, :-1].reshape(-1)
    faces = torch.cat(
        [
            torch.stack([corner, corner + 1, corner + n], dim=1),
            torch.stack([corner + 1, corner + n + 1, corner + n], dim=1),
        ]
    )
    vertices = torch.stack([u, v, 20 * torch.sin(u / 40)], dim=-1).reshape(-1, 3) / 10
    both_sides = torch.cat([faces, faces.flip(1)])
    mesh = Mesh(
        vertices=vertices, faces=both_sides, scalars={"displacement": torch.ones(n * n) * 2}
    )
    tab = opened(Page(title="large", times_ps=[0.0], forecast=[mesh]))
    pixels = inside(tab, ".view", picture(tab, tmp_path / "large.png"))
    middle = pixels[100:-100, pixels.shape[1] // 2 - 60 : pixels.shape[1] // 2 + 60]
    assert colourful(middle) > 0.95

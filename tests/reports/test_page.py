"""A page is whole in one file, its texts are texts, and it can be read by everyone; controls: what a page lacks is found."""

from base64 import b64decode
from hashlib import sha256
from io import BytesIO

import pytest
from html_pages import contrast, data_of, elements, lacks, of, rows_of
from PIL import Image

from raffm_ray.reports import page as page_module
from raffm_ray.reports.drawing import begins_at, panels_of, plt, save, share_heights
from raffm_ray.reports.page import Cell, Page, Picture, Section, Table, csv_text, render

EVIL = "<script>alert(1)</script>\"'&`<b>`"


def picture(width: int = 3, height: int = 2) -> bytes:
    sink = BytesIO()
    Image.new("RGB", (width, height)).save(sink, "PNG")
    return sink.getvalue()


def whole(text: str = "words", **changes) -> str:
    """A page with everything that a page may have, all of it with a text."""
    table = Table(text, [text, "b"], [[Cell(text), Cell("1.5 kB", 1500.0)]], [[Cell(text), Cell("")]], chosen=frozenset({0}))
    shown = Picture(text, picture(), text * 30, text, csv_text([text], [[text]]), **changes)
    section = Section(
        text, paragraphs=[text], facts=[(text, text)], tables=[table], pictures=[shown], notes=[text], folded=[(text, text)]
    )
    return render(Page(text, text, [text], [section, Section("last")], [text]))


def test_a_page_lacks_nothing() -> None:
    assert lacks(whole()) == []
    assert rows_of(whole()) == [["words", "b"], ["words", "1.5 kB"], ["words", ""]]
    assert data_of(whole()) == {"words.csv": ["words", "words"]}
    (image,) = of(whole(), "img")
    assert (image.attributes["width"], image.attributes["height"]) == ("3", "2")
    assert b64decode(image.attributes["src"].split(",")[1]) == picture()


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("<main", "<div", None),
        (' scope="col"', "", "heading of what?"),
        ("<caption>words</caption>", "", "1 <table>, 0 <caption>"),
        ('alt="' + "words" * 30, 'alt="', "a picture without a description"),
        ('src="data:', 'src="https://example.org/', "loads https://example.org"),
        ('href="#s2"', 'href="#s3"', "leads nowhere"),
        (' role="region" tabindex="0"', "", "a table that does not scroll"),
        ("@media print", "@media paper", "no style for paper"),
        ('name="viewport"', 'name="view"', "no viewport"),
        (' lang="en"', "", "no language"),
    ],
)
def test_control_what_a_page_lacks_is_found(old, new, what) -> None:
    page = whole()
    assert old in page
    if what is None:
        with pytest.raises(AssertionError, match="</main> closes <div>"):
            lacks(page.replace(old, new))
    else:
        assert any(what in one for one in lacks(page.replace(old, new, 1)))


def test_all_texts_are_texts() -> None:
    page = whole(EVIL)
    plain, evil = ([one.name for one in elements(text)] for text in (whole(), page))
    assert [name for name in evil if name != "code"] == plain
    assert {one.words for one in of(page, "h1")} == {EVIL}
    assert of(page, "script")[0].words == " ".join(page_module.SCRIPT.split())
    broken = page.replace("&lt;", "<")
    with pytest.raises(AssertionError):
        assert [one.name for one in elements(broken) if one.name != "code"] == plain


def test_no_script_but_its_own_may_run() -> None:
    page = whole()
    (policy,) = [one.attributes["content"] for one in of(page, "meta") if "http-equiv" in one.attributes]
    script = page.split("<script>")[1].split("</script>")[0]
    assert "default-src 'none'" in policy
    allowed = policy.split("sha256-")[1].split("'")[0]
    assert b64decode(allowed) == sha256(script.encode()).digest()
    assert b64decode(allowed) != sha256(f"{script} ".encode()).digest()


def test_data_that_are_too_many_are_named() -> None:
    page = whole("words" * 50_000, source="rounds/")
    assert data_of(page) == {}
    assert "Data: rounds/ in the folder of this page." in page
    assert "Data: rounds/" not in whole(source="rounds/")


def test_sentences_have_code() -> None:
    page = render(Page("a", "b", ["run `x --y` now"], []))
    assert "<p>run <code>x --y</code> now</p>" in page


@pytest.mark.parametrize("colors", [page_module.LIGHT, page_module.DARK], ids=["light", "dark"])
def test_texts_stand_out(colors) -> None:
    for name in ("ink", "faint", "link"):
        for ground in ("paper", "panel"):
            assert contrast(colors[name], colors[ground]) >= 4.5, (name, ground)


def test_control_colours_that_are_alike_do_not_stand_out() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#999999", "#ffffff") < 4.5


@pytest.fixture
def figure():
    figure, panels = plt.subplot_mosaic([["a", "b", "c"]], figsize=(9, 3), layout="constrained")
    panels["a"].plot([0, 1], [5, 6], color="red", linewidth=9)
    panels["b"].plot([0, 1], [7, 9], color="lime", linewidth=9)
    panels["b"].set_ylabel("two\nlines\nof text")
    panels["c"].plot([0, 1], [-1, 1], color="blue", linewidth=9)
    yield figure, panels
    plt.close(figure)


def has(image: Image.Image, color: tuple[int, int, int]) -> bool:
    return color in {value for _, value in image.getcolors(1 << 24)}


def test_a_panel_is_cut_out_alone_and_panels_of_a_group_are_alike(figure, tmp_path) -> None:
    save(figure[0], tmp_path / "all.png")
    cut = {
        name: Image.open(BytesIO(one))
        for name, one in panels_of(figure[0], tmp_path / "all.png", [("a", "b"), ("x", "c")]).items()
    }
    assert list(cut) == ["a", "b", "c"]
    assert cut["a"].size == cut["b"].size
    assert cut["c"].size[0] < cut["a"].size[0], "it has no label at its side"
    colors = {"a": (255, 0, 0), "b": (0, 255, 0), "c": (0, 0, 255)}
    assert all(has(image, color) == (name == other) for name, image in cut.items() for other, color in colors.items())
    assert all(has(Image.open(tmp_path / "all.png").convert("RGB"), color) for color in colors.values())
    edges = cut["c"].crop((0, 0, cut["c"].width, 1)), cut["c"].crop((0, cut["c"].height - 1, *cut["c"].size))
    assert all(edge.getcolors() == [(cut["c"].width, (255, 255, 255))] for edge in edges)


def test_axes_say_where_they_begin_and_share_their_range(figure) -> None:
    _, panels = figure
    share_heights([panels["a"], panels["b"]])
    assert panels["a"].get_ylim() == panels["b"].get_ylim()
    for axes in panels.values():
        axes.set_ylabel("metric")
        begins_at(axes)
    assert panels["a"].get_ylabel() == "metric (axis does not begin at 0)"
    assert panels["c"].get_ylabel() == "metric", "it holds zero"
    panels["c"].set_xlim(-3, -2)
    begins_at(panels["c"], "x")
    assert panels["c"].get_xlabel() == "(axis does not end at 0)"

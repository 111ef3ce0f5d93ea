"""The static site: its pages as files, and its pages in a real browser."""

import base64
import io
import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from _browser import Browser, absence, program
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from replication import _site_notebooks, _site_pictures, claims, cli, paths, scorecard, site
from replication._files import mark

V4 = nbformat.v4
ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PAGES = ("index.html", "scorecard.html", "api.html", *(f"notebooks/{n}.html" for n in NOTEBOOKS))
VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}

each_page = pytest.mark.parametrize("name", PAGES)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the folder of the site of this checkout."""
    return site.build(tmp_path_factory.mktemp("of") / "site").parent


class Page(HTMLParser):
    """The tags of a page, its text outside code, and how many formulas it has."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.wrong, self.text = [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.wrong.append((tag, self.getpos()))

    def handle_data(self, data):
        if not {"pre", "code", "script", "math"} & set(self.open):
            self.text += data

    def all(self, tag, attribute):
        return [found[attribute] for name, found in self.tags if name == tag and attribute in found]

    def ids(self):
        return [found["id"] for _, found in self.tags if "id" in found]


@each_page
def test_a_page_is_whole(built, name):
    page = Page(built / name)
    assert (page.wrong, page.open) == ([], [])
    assert len(page.ids()) == len(set(page.ids()))
    assert page.all("html", "lang") == ["en"]
    assert "width=device-width, initial-scale=1" in page.all("meta", "content")
    assert "h1" in [tag for tag, _ in page.tags]


@each_page
def test_a_page_asks_for_nothing_outside(built, name):
    page = Page(built / name)
    asked = [
        a for t, k in (("script", "src"), ("link", "href"), ("img", "src")) for a in page.all(t, k)
    ]
    assert asked
    assert [address for address in asked if ":" in address and address != "data:,"] == []
    assert page.all("script", "src") == [("../" if "/" in name else "") + "site.js"]
    assert [tag for tag, _ in page.tags].count("script") == 1  # RequireJS, MathJax and so on
    assert not {"style", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}


def test_the_style_sheet_and_the_script_name_no_address(built):
    for name in site.STATIC:
        assert not re.search(r"https?:|//\w+\.|@import|url\(", (built / name).read_text())


@each_page
def test_every_picture_has_a_text(built, name):
    texts = [found.get("alt") or "" for tag, found in Page(built / name).tags if tag == "img"]
    assert all(re.search(r"\w{3}", text) for text in texts)
    assert len(texts) == len(set(texts))


@each_page
def test_links_within_the_site_lead_somewhere(built, name):
    page = Page(built / name)
    anchors = {built / name: set(page.ids())}
    followed = 0
    for address in [*page.all("a", "href"), *page.all("img", "src"), *page.all("link", "href")]:
        if re.match(r"https?:|mailto:|data:", address):
            continue
        path, _, anchor = address.partition("#")
        file = ((built / name).parent / path.partition("?")[0]) if path else built / name
        assert file.is_file(), address
        if anchor:
            if file not in anchors:
                anchors[file] = set(Page(file).ids())
            assert anchor in anchors[file], address
        followed += 1
    assert followed > 3


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_a_notebook_is_there_with_its_formulas_and_pictures(built, stem):
    page = Page(built / "notebooks" / f"{stem}.html")
    notebook = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)
    prose = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", prose, flags=re.DOTALL)
    formulas = re.findall(r"\$\$.+?\$\$|(?<![\\$])\$[^$]+\$", prose, re.DOTALL)
    in_contents = sum("$" in line for line in re.findall(r"^##+ .*\$.*", prose, re.MULTILINE))
    assert [tag for tag, _ in page.tags].count("math") == len(formulas) + in_contents
    assert "$" not in re.sub(r"\\\$", "", page.text) and r"\frac" not in page.text
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    pictures = [o for o in outputs if any(k in o.get("data", {}) for k in _site_notebooks.ENDINGS)]
    assert len(page.all("img", "src")) == len(pictures)
    assert f"notebooks/{stem}.html" in Page(built / "index.html").all("a", "href")
    assert (built / "notebooks" / stem / "thumbnail.png").is_file() == bool(pictures)


def test_every_claim_is_on_the_scorecard(built):
    rows = scorecard.select(scorecard.collect())
    page = Page(built / "scorecard.html")
    shown = [found for tag, found in page.tags if tag == "tr" and "data-verdict" in found]
    settled = [
        (f"{first['notebook']}-{first['id']}", "|".join(row["verdict"] for row in runs.values()))
        for runs in scorecard.by_claim(rows)
        for first in [next(iter(runs.values()))]
    ]
    assert [(row["id"], row["data-verdict"]) for row in shown] == settled
    text = " ".join(page.text.split())
    assert all(" ".join(row["statement"].split()) in text for row in rows)
    counted = sum(count for tally in site.tallies(rows, "paper") for _, _, count in tally.verdicts)
    assert counted == len(rows)


def test_the_interface_is_on_its_page(built):
    ids = set(Page(built / "api.html").ids())
    for name in ("similarity.cca", "claims.settle", "data.load", "sensitivity.trajectories"):
        assert name in ids
    assert {"similarity.CCAResult.mean", "claims.Settled.as_dict", "sweeps.SweepError"} <= ids
    assert not [name for name in ids if "._" in name]


# A small collection


def png(width, height, colour):
    stream = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Return a collection of one notebook and no claims."""
    monkeypatch.setenv("REPLICATION_ROOT", str(tmp_path / "a b"))
    frame = '<style scoped>a {}</style><table border="1"><tr><td>1 &lt; 2</td></tr></table>'
    notebook = V4.new_notebook()
    notebook.cells = [
        V4.new_markdown_cell("# One <b>title</b> $x^2$\n\n**Question.** Why *this*?"),
        V4.new_markdown_cell("## Part\n\n## Part\n\n[next](02_two.ipynb), [code](../a.py)"),
        V4.new_code_cell(
            "plot()",
            outputs=[
                V4.new_output("display_data", data={"image/png": png(20, 10, "red")}),
                V4.new_output("display_data", data={"image/png": png(20, 10, "red")}),
                V4.new_output("execute_result", data={"text/html": frame, "text/plain": "x"}),
                V4.new_output("display_data", data={"application/javascript": "alert(1)"}),
                V4.new_output("stream", text="a <b> c\n"),
            ],
        ),
        V4.new_code_cell(
            'fig.suptitle("The picture for the card")',
            metadata={"tags": ["thumbnail"]},
            outputs=[V4.new_output("display_data", data={"image/png": png(900, 300, "blue")})],
        ),
    ]
    path = paths.notebooks() / "01_one.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(notebook, path)
    return tmp_path / "a b"


def test_a_small_collection(root, capsys):
    assert cli.main(["site"]) == 0
    assert str(root / "site" / "index.html") in capsys.readouterr().out
    text = (root / "site" / "notebooks" / "01_one.html").read_text(encoding="utf-8")
    page = Page(root / "site" / "notebooks" / "01_one.html")
    assert page.all("img", "alt") == ["Part", "Part (2)", "Part. The picture for the card"]
    assert {"part", "part-2"} <= set(page.ids())
    assert 'href="02_two.html"' in text and "a.py" not in text and "code</p>" in text
    assert "scoped" not in text and "border=" not in text and "alert" not in text
    assert "a &lt;b&gt; c" in text and "1 &lt; 2" in text
    with Image.open(root / "site" / "notebooks" / "01_one" / "thumbnail.png") as image:
        assert image.size == (_site_pictures.WIDTH, 213) and image.getpixel((9, 9)) == (0, 0, 255)
    index = (root / "site" / "index.html").read_text(encoding="utf-8")
    assert "One title" in index and "no claims settled" in index
    assert "No claim has been settled yet" in (root / "site" / "scorecard.html").read_text()


def test_a_site_is_replaced_only_by_a_whole_one(root, capsys):
    front = site.build(root / "site")
    (front.parent / "old").touch()
    assert site.build(root / "site") == front and not (front.parent / "old").exists()
    path = paths.notebooks() / "01_one.ipynb"
    path.write_text(path.read_text().replace("$x^2$", r"$\\nosuchcommand$"))
    before = front.read_bytes()
    assert cli.main(["site"]) == 2
    told = capsys.readouterr().err
    assert "01_one.ipynb" in told and "nosuchcommand" in told
    assert front.read_bytes() == before
    assert sorted(entry.name for entry in root.iterdir()) == ["notebooks", "site"]


def test_what_a_killed_build_left_is_removed(root):
    ended = subprocess.Popen(["true"])
    ended.wait()
    own = mark()
    dead = own.replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    stale = root / f".site.{dead}"
    others = [root / f".site.{own}", root / f".website.{dead}", root / ".site.mine"]
    for folder in (stale, *others):
        (folder / "notebooks").mkdir(parents=True)
    site.build(root / "site")
    assert not stale.exists() and all(folder.is_dir() for folder in others)


def test_the_front_page_gives_the_card_its_picture(root):
    folder = paths.figures() / _site_pictures.THUMBNAILS
    folder.mkdir(parents=True)
    about = PngInfo()
    about.add_text("Description", "What is < drawn")
    Image.new("RGB", (44, 33), "green").save(folder / "01.png", pnginfo=about)
    built = site.build(root / "site").parent
    card = built / "notebooks" / "01_one" / "thumbnail.png"
    assert card.read_bytes() == (folder / "01.png").read_bytes()
    assert Page(built / "index.html").all("img", "alt") == ["What is < drawn"]


def test_a_folder_that_is_no_site_stays(root):
    (root / "mine").mkdir()
    (root / "mine" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="something other than a site"):
        site.build(root / "mine")
    with pytest.raises(ValueError, match="is a file"):
        site.build(root / "mine" / "thesis.txt")
    assert [entry.name for entry in (root / "mine").iterdir()] == ["thesis.txt"]


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if program() is None:
        pytest.skip(absence())
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@each_page
def test_a_page_loads_without_complaint_or_request(browser, built, name):
    for width, dark in ((1200, False), (390, True)):
        browser.open((built / name).as_uri(), width, dark)
        assert browser.complaints() == []
        assert [u for u in browser.requests() if not u.startswith(("file:///", "data:"))] == []
        # wide tables scroll in their own box, the page does not
        assert browser.run("document.documentElement.scrollWidth") <= width
        broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).length"
        assert browser.run(broken) == 0
        grey = browser.run("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", grey))) < 60) == dark


def test_the_switch_between_light_and_dark_is_remembered(browser, built):
    colour = "getComputedStyle(document.body).backgroundColor"
    browser.open((built / "index.html").as_uri())
    assert browser.run("document.querySelector('button.theme').textContent") == "Dark"
    assert browser.run(colour) == "rgb(255, 255, 255)"
    browser.run("document.querySelector('button.theme').click()")
    dark = browser.run(colour)
    assert dark != "rgb(255, 255, 255)"
    browser.open((built / "scorecard.html").as_uri())
    assert browser.run(colour) == dark
    browser.run("localStorage.clear()")


COLUMN = "[...document.querySelectorAll('.claims tbody tr')].map(r => r.cells[{}].textContent)"
VISIBLE = "[...document.querySelectorAll('.claims tbody tr')].filter(r => r.offsetHeight)"


def click(column):
    return f"document.querySelectorAll('.claims thead button')[{column}].click()"


def test_the_scorecard_sorts(browser, built):
    rows = scorecard.select(scorecard.collect())
    profile = rows[0]["profile"]
    place = 3 + 2 * sum(run for _, run in scorecard.columns(rows))
    browser.open((built / "scorecard.html").as_uri())
    original = browser.run(COLUMN.format(0))
    browser.run(click(place))
    sorting = COLUMN.replace("textContent", "dataset.sort").format(place)
    seeds = [int(text) for text in browser.run(sorting)]
    assert seeds == sorted(seeds)
    browser.run(click(place))
    assert [int(text) for text in browser.run(sorting)] == sorted(seeds, reverse=True)
    head = "document.querySelector('.claims [aria-sort]')"
    assert browser.run(f"[{head}.textContent, {head}.ariaSort]") == ["Seeds", "descending"]
    browser.run(click(3))  # numbers by their value, not their digits
    values = [row["value"] for row in rows if row["profile"] == profile]
    known = sorted(value for value in values if value is not None)
    script = "[...document.querySelectorAll('.claims tbody td:nth-child(4)')]"
    found = browser.run(f"{script}.map(cell => cell.dataset.sort).filter(Boolean).map(Number)")
    assert found == known
    browser.run(click(0))
    assert browser.run(COLUMN.format(0)) == original


def test_the_scorecard_filters(browser, built):
    rows = scorecard.by_claim(scorecard.select(scorecard.collect()))
    browser.open((built / "scorecard.html").as_uri())
    assert browser.run(f"{VISIBLE}.length") == len(rows)
    form = "document.querySelector('form.filters')"

    def choose(field, value):
        script = f"{form}.elements.{field}.value = {value!r}"
        browser.run(f"{script}; {form}.dispatchEvent(new Event('input'))")

    for verdict in claims.VERDICTS:
        choose("verdict", verdict)
        wanted = sum(verdict in [row["verdict"] for row in runs.values()] for runs in rows)
        assert browser.run(f"{VISIBLE}.length") == wanted
        shown = browser.run("document.querySelector('form.filters output').textContent")
        assert shown == f"{wanted} of {len(rows)} claims"
    firsts = [next(iter(runs.values())) for runs in rows]
    paper = firsts[0]["paper"]
    choose("verdict", "")
    choose("paper", paper)
    assert browser.run(f"{VISIBLE}.length") == sum(row["paper"] == paper for row in firsts)
    choose("text", "no such words")
    assert browser.run(f"{VISIBLE}.length") == 0
    browser.run(f"{form}.reset()")
    browser.run("new Promise(done => setTimeout(done))")  # the page shows them in a task of its own
    assert browser.run(f"{VISIBLE}.length") == len(rows)
    notebook = firsts[-1]["notebook"]
    browser.open((built / "scorecard.html").as_uri() + f"?notebook={notebook}")
    wanted = sum(row["notebook"] == notebook for row in firsts)
    assert browser.run(f"{VISIBLE}.length") == wanted


def test_results_of_two_profiles_stand_side_by_side(browser, root):
    paper = "Zhang et al. 2017"
    claim = claims.Claim("Z1", paper, "it fits", claims.Rule("fit", ">", 0.0), "Fig. 1", "0")
    other = claims.Claim("Z2", paper, "it fails", claims.Rule("fit", "<", 0.0), "Fig. 1", "1")
    values = {"full": [1.0, -1.0, 0.2], "paper": [1.0, 1.1, 0.9]}
    for profile, these in {"full": [claim, other], "paper": [claim]}.items():
        where = {"dataset": "MNIST", "profile": profile, "notebook": "01_one"}
        settled = [claims.settle(one, values[profile], **where) for one in these]
        claims.save(settled, paths.figures() / profile / "01_one")
    site.build(root / "site")
    index = " ".join(Page(root / "site" / "index.html").text.split())
    assert "2 claims." in index and "Profile full" in index and "Profile paper" in index
    browser.open((root / "site" / "scorecard.html").as_uri())
    cells = "[...document.querySelectorAll('.claims tbody tr')].map(r => [4, 6].map(c => {}))"
    found = browser.run(cells.format("r.cells[c].textContent.trim()"))
    assert found == [["○ inconclusive", "✔ reproduced"], ["○ inconclusive", "not run"]]
    for asked, ids in {
        "profile=paper": ["Z1"],
        "verdict=reproduced": ["Z1"],
        "profile=full&verdict=reproduced": [],  # it is at paper
        "profile=full&verdict=inconclusive": ["Z1", "Z2"],
    }.items():
        browser.open((root / "site" / "scorecard.html").as_uri() + "?" + asked)
        assert browser.run(f"{VISIBLE}.map(r => r.id)") == [f"01_one-{i}" for i in ids]


def test_code_can_be_hidden(browser, built):
    browser.open((built / PAGES[3]).as_uri())
    shown = "[...document.querySelectorAll('.source')].filter(s => s.open).length"
    assert browser.run(shown) > 3
    browser.run("document.querySelector('button.code').click()")
    assert browser.run(shown) == 0
    assert browser.run("document.querySelector('button.code').textContent") == "Show code"


def test_without_the_script_all_is_readable(browser, built):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open((built / "scorecard.html").as_uri())
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    count = len(scorecard.by_claim(scorecard.select(scorecard.collect())))
    assert browser.run(f"{VISIBLE}.length") == count
    assert browser.run("document.querySelector('form.filters').offsetHeight") == 0

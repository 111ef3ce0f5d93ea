"""An executed notebook as the body of a page: its HTML, its headings and its pictures."""

import ast
import base64
import io
import re
from collections import Counter
from dataclasses import dataclass, field
from html import escape, unescape
from pathlib import Path
from typing import Any

from replication._site_maths import mathml

FILES = Path(__file__).resolve().parent / "site_files"
THUMBNAIL = "thumbnail"  # the tag of the cell whose picture stands for the notebook
ENDINGS = {
    "image/svg+xml": ".svg",
    "image/png": ".png",
    "image/gif": ".gif",
    "image/jpeg": ".jpg",
}


@dataclass(frozen=True)
class Picture:
    """A picture of an output: its file, its bytes, what stands in for it, and its size."""

    name: str
    content: bytes
    alt: str
    size: tuple[int, int] | None
    chosen: bool


@dataclass(frozen=True)
class Heading:
    """A heading: its level, the name of its anchor, and its text as HTML."""

    level: int
    anchor: str
    html: str


@dataclass
class Body:
    """What a page shows of a notebook.

    `title` is the first heading as plain text, `lead` the paragraph below it as HTML.
    """

    stem: str
    title: str = ""
    lead: str = ""
    html: str = ""
    headings: list[Heading] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    @property
    def thumbnail(self) -> Picture | None:
        """The picture of the cell tagged ``thumbnail``, else the first one that has a size."""
        sized = [picture for picture in self.pictures if picture.size]
        return next((picture for picture in sized if picture.chosen), (sized or [None])[0])


def read(path: Path) -> Body:
    """Convert a notebook as it lies there, outputs included.

    Raises
    ------
    ValueError
        If it is no notebook or a formula in it cannot be converted; it names the file.
    """
    import nbformat
    from jinja2 import pass_context
    from nbconvert import HTMLExporter

    body = Body(path.stem)
    try:
        notebook = nbformat.read(path, as_version=4)
        _take_pictures(notebook, body)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                _tidy(output)

        @pass_context
        def markdown(context: Any, source: str) -> str:
            cell = context.get("cell") or {}
            return _markdown(source, body, path.parent, cell.get("attachments", {}))

        exporter = HTMLExporter(
            template_name="nbconvert", extra_template_basedirs=[str(FILES)], enable_async=False
        )
        exporter.register_filter("markdown2html", markdown)
        body.html, _ = exporter.from_notebook_node(notebook)
    except (ValueError, nbformat.ValidationError) as error:
        raise ValueError(f"{path}: {error}") from error
    first = next((heading.html for heading in body.headings), "")
    body.title = plain(first) or path.stem
    paragraph = re.search(r"</h1>\s*<p>(.*?)</p>", body.html, re.DOTALL)
    body.lead = re.sub(r"^<strong>\w+\.</strong>\s*", "", paragraph[1]) if paragraph else ""
    return body


def plain(html: str) -> str:
    """Return the text of some HTML, without its tags."""
    return " ".join(unescape(re.sub(r"<[^>]+>", "", html)).split())


def _tidy(output: Any) -> None:
    """Take out of a table what pandas adds for Jupyter's own page, and let it scroll."""
    html = output.get("data", {}).get("text/html")
    if html and "<table" in html:
        html = re.sub(r"<style scoped>.*?</style>", "", html, flags=re.DOTALL)
        html = re.sub(r' border="1"| style="text-align: \w+;"', "", html)
        output.data["text/html"] = f'<div class="scroll" tabindex="0">{html}</div>'


def _take_pictures(notebook: Any, body: Body) -> None:
    """Move the pictures of all outputs into `body`; an ``<img>`` is left in place of each."""
    section, seen = "", Counter()
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for line in re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE):
                section = line.replace("$", "").strip()
            continue
        for output in cell.get("outputs", []):
            kind = next((kind for kind in ENDINGS if kind in output.get("data", {})), None)
            if kind is None:
                continue
            data = "".join(output.data[kind])
            svg = kind == "image/svg+xml"
            content = data.encode() if svg else base64.b64decode(data)
            title = drawn_title(cell.source)
            stop = "" if not section or section[-1] in ".?!" else "."
            alt = f"{section}{stop} {title}".strip() if title else section or body.stem
            seen[alt] += 1
            if seen[alt] > 1:
                alt = f"{alt} ({seen[alt]})"
            name = f"{len(body.pictures) + 1:02d}{ENDINGS[kind]}"
            chosen = THUMBNAIL in cell.metadata.get("tags", [])
            picture = Picture(name, content, alt, None if svg else _size(content), chosen)
            body.pictures.append(picture)
            output.data.clear()
            output.data["text/html"] = _img(picture, body.stem)


def _size(content: bytes) -> tuple[int, int]:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return image.size


def _img(picture: Picture, folder: str) -> str:
    size = 'width="{}" height="{}" '.format(*picture.size) if picture.size else ""
    source = escape(f"{folder}/{picture.name}")
    alt = escape(picture.alt)
    return f'<img class="figure" src="{source}" alt="{alt}" {size}loading="lazy">'


def drawn_title(source: str) -> str:
    """Return the title that a cell's code gives its figure, "…" for what it computes; or "".

    The figure's title is the last ``suptitle``; without one, the last ``set_title`` or ``title``.
    One of fewer than three words says nothing without what is computed, and is left out.
    """
    try:
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    except SyntaxError:  # a magic
        return ""
    found = {"suptitle": "", "set_title": "", "title": ""}
    for call in calls:
        name = getattr(call.func, "attr", "")
        if name not in found or not call.args:
            continue
        text, pieces = call.args[0], []
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            pieces = [text.value]
        elif isinstance(text, ast.JoinedStr):
            pieces = [getattr(value, "value", None) for value in text.values]
            pieces = [piece if isinstance(piece, str) else "…" for piece in pieces]
        title = " ".join("".join(pieces).replace("$", "").split())
        if len(re.findall(r"[^\W\d]+", title)) >= 3:
            found[name] = title
    return found["suptitle"] or found["set_title"] or found["title"]


def _markdown(source: str, body: Body, folder: Path, attachments: Any) -> str:
    """Render a Markdown cell; formulas become MathML, headings are noted in `body`."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, text: str) -> str:
            return f'<span class="maths" tabindex="0">{mathml(text, display=True)}</span>'

        def latex_environment(self, name: str, text: str) -> str:
            return self.block_math(f"\\begin{{{name}}}{text}\\end{{{name}}}")

        def inline_math(self, text: str) -> str:
            return mathml(text)

        def heading(self, text: str, level: int, **_: Any) -> str:
            slug = re.sub(r"\W+", "-", plain(text).lower()).strip("-") or "section"
            taken = {heading.anchor for heading in body.headings}
            anchor, count = slug, 1
            while anchor in taken:
                count += 1
                anchor = f"{slug}-{count}"
            body.headings.append(Heading(level, anchor, text))
            mark = f'<a class="anchor" href="#{anchor}" aria-label="link to this section">#</a>'
            return f'<h{level} id="{anchor}">{text} {mark}</h{level}>\n'

        def link(self, text: str, url: str, title: str | None = None) -> str:
            target = page_of(url)
            return super().link(text, target, title) if target else text

        def image(self, text: str, url: str, title: str | None = None) -> str:
            file = folder / url
            if ":" not in url and file.is_file():
                kind = {ending: kind for kind, ending in ENDINGS.items()}[file.suffix.lower()]
                url = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
            return super().image(text, url, title)

    renderer = Renderer(escape=False, attachments=attachments)
    return MarkdownWithMath(renderer=renderer).render(source)


def page_of(url: str) -> str:
    """Return where a notebook's link leads on the site; "" if the site has no such page."""
    if ":" in url.partition("/")[0] or url.startswith("#"):
        return url
    path, mark, anchor = url.partition("#")
    name = path.rpartition("/")[2]
    if name.endswith(".ipynb") and path.count("/") == 0:
        return f"{name.removesuffix('.ipynb')}.html{mark}{anchor}"
    return "../scorecard.html" if name == "SCORECARD.md" else ""

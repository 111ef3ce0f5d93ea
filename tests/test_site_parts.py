"""The parts of the site: formulas, titles of pictures, links, docstrings and signatures."""

import re
from pathlib import Path

import numpy as np
import pytest

from replication import _site_api, _site_maths, _site_notebooks, claims
from replication._site_maths import mathml


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        (r"\mathbb R^d", "<mi>ℝ</mi>"),
        (r"\mathcal N(0, 1)", "<mi>𝒩</mi>"),
        (r"\mathcal L", "<mi>ℒ</mi>"),
        (r"\mathfrak C", "<mi>ℭ</mi>"),
        (r"\frac{a}{b}", "<mfrac>"),
        (r"\sum_{i=1}^n x_i", "<munderover>"),
        (r"x < y \;\&\; z", "&#x0003C;"),
        (r"\text{99\% of } x", "99%"),
    ],
)
def test_mathml(latex, expected):
    text = mathml(latex, display=True)
    assert expected in text and 'display="block"' in text
    assert not re.search(r"&(?![#\w]+;)", text)


@pytest.mark.parametrize("name", _site_maths.ENVIRONMENTS)
def test_mathml_draws_environments(name):
    if name.startswith("equation"):
        assert "<mtable" not in mathml(rf"\begin{{{name}}} a = b \end{{{name}}}")
        return
    columns = "{rl}" if name == "array" else ""
    text = mathml(rf"\begin{{{name}}}{columns} a &= b \\ c &= d \end{{{name}}}")
    assert (text.count("<mtr"), text.count("<mtd")) == (2, 4)
    assert "&amp;" not in text  # what is left of a column that was not seen
    assert "linebreak" not in text and "(1)" not in text and "begin" not in text


def test_mathml_names_an_environment_it_does_not_know():
    with pytest.raises(ValueError, match=r"unknown environment 'multline'.*aligned"):
        mathml(r"\begin{multline} a \\ b \end{multline}")


@pytest.mark.parametrize("latex", [r"\nosuchcommand x", r"\left( x"])
def test_mathml_refuses_what_it_cannot_draw(latex):
    with pytest.raises(ValueError, match="formula"):
        mathml(latex)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            'ax.set_title("one of the panels")\nfig.suptitle("The whole $x$ figure")',
            "The whole x figure",
        ),
        ('ax.set_title(f"loss of {n} small networks")', "loss of … small networks"),
        ('ax.set_title(f"{name}, {n} seeds")', ""),
        (
            'fig.suptitle(title)\nax.set_title("accuracy over many epochs")',
            "accuracy over many epochs",
        ),
        ("%matplotlib inline", ""),
        ("plt.plot(x)", ""),
    ],
)
def test_drawn_title(source, expected):
    assert _site_notebooks.drawn_title(source) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("04_noise.ipynb#method", "04_noise.html#method"),
        ("../figures/SCORECARD.md", "../scorecard.html"),
        ("https://arxiv.org/a.ipynb", "https://arxiv.org/a.ipynb"),
        ("#method", "#method"),
        ("../replication/claims.py", ""),
        ("../examples/other.ipynb", ""),
    ],
)
def test_page_of(url, expected):
    assert _site_notebooks.page_of(url) == expected


DOC = """Return a * b * c, not emphasis, for x_i and x_j.

    y = <x>, indented

A list:

* one;
* two.

A sum that is broken
- here.

Parameters
----------
x : (N, d) tensor
    Of `float` kind.

    A second paragraph.
ridge
    >= 0.

Examples
--------
>>> f(1)
1
"""


def test_docstring():
    html = _site_api.docstring(DOC)
    assert "<em>" not in html and "a * b * c" in html and "blockquote" not in html
    assert "<pre><code>y = &lt;x&gt;, indented" in html
    assert html.count("<li>") == 2
    assert "broken\n- here." in html
    assert "<dt><code>x</code> (N, d) tensor</dt><dd><p>Of <code>float</code> kind.</p>" in html
    assert "<dt><code>ridge</code></dt><dd><p>&gt;= 0.</p></dd>" in html
    assert "&gt;&gt;&gt; f(1)\n1\n" in html
    assert re.findall(r'<p class="head">(\w+)</p>', html) == ["Parameters", "Examples"]
    assert _site_api.docstring(None) == ""


def test_signature():
    def f(x: np.ndarray, y: "Path | None" = None, *, call=len, _hidden=1):
        pass

    assert (
        _site_api.signature(f, "m.f") == "m.f(x: numpy.ndarray, y: Path | None = None, *, call=len)"
    )
    long = _site_api.signature(claims.settle, "claims.settle")
    assert long.startswith("claims.settle(\n    claim: Claim,\n") and long.endswith(",\n)")

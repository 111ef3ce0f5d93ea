"""LaTeX to MathML, which browsers draw without a script."""

import re
import unicodedata

STYLES = {
    "double-struck": ("DOUBLE-STRUCK",),
    "script": ("SCRIPT",),
    "fraktur": ("FRAKTUR", "BLACK-LETTER"),
}
# Environments: those the converter draws as they are, and as which one it draws others. Formulas
# are not numbered, as on Jupyter's own page.
ENVIRONMENTS = {
    "aligned": "split",
    "align": "align*",
    "gathered": "matrix",
    "gather": "matrix",
    "gather*": "matrix",
    "dcases": "cases",
} | {
    name: name
    for name in (
        *("array", "cases", "split", "align*", "equation", "equation*", "smallmatrix"),
        *(f"{kind}matrix" for kind in ("", "p", "b", "B", "v", "V")),
    )
}
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{(\w+\*?)\}")
_STYLED = re.compile(r'<mi mathvariant="(double-struck|script|fraktur)">([^<]*)</mi>')


def mathml(latex: str, display: bool = False) -> str:
    """Return a formula as a ``<math>`` element.

    Parameters
    ----------
    latex : str
        Without its dollar signs.
    display : bool
        On a line of its own, with limits above and below.

    Raises
    ------
    ValueError
        If the LaTeX cannot be converted, or has an environment that is none of `ENVIRONMENTS`.
    """
    from latex2mathml.converter import convert

    unknown = {name for _, name in _ENVIRONMENT.findall(latex)} - set(ENVIRONMENTS)
    if unknown:
        raise ValueError(
            f"formula: unknown environment {min(unknown)!r} in {latex.strip()!r}; expected one of "
            f"{', '.join(ENVIRONMENTS)}"
        )
    drawn = _ENVIRONMENT.sub(lambda m: f"\\{m[1]}{{{ENVIRONMENTS[m[2]]}}}", latex.strip())
    try:
        text = convert(drawn, display="block" if display else "inline")
    except Exception as error:  # it has a dozen error classes of its own, without a common base
        raise ValueError(f"formula: cannot be converted: {latex.strip()!r} ({error!r})") from error
    left = re.search(r"<m[io]>\\[A-Za-z]+</m[io]>", text)
    if left:
        raise ValueError(f"formula: unknown command {left[0][4:-5]} in {latex.strip()!r}")
    # MathML Core, what browsers implement, has no such styles: the letters themselves are styled.
    text = _STYLED.sub(lambda m: f"<mi>{''.join(_letter(m[1], c) for c in m[2])}</mi>", text)
    text = re.sub(r"\\([%#&_$])(?=[^<>]*</mtext>)", r"\1", text)  # escapes within \text
    return re.sub(r"&(?!#?\w+;)", "&amp;", text)


def _letter(style: str, character: str) -> str:
    """Return the mathematical letter of a style, e.g. ℝ; a character without one as it is."""
    if not (character.isascii() and character.isalpha()):
        return character
    size = "CAPITAL" if character.isupper() else "SMALL"
    for name in STYLES[style]:
        for prefix in ("MATHEMATICAL ", ""):
            try:
                return unicodedata.lookup(f"{prefix}{name} {size} {character.upper()}")
            except KeyError:
                continue
    return character

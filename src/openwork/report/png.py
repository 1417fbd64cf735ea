"""A chart as PNG, for slides and documents that take no SVG."""

from __future__ import annotations

import re
from typing import Any

from openwork.errors import RecipeError
from openwork.report.theme import CSS

LIGHT = dict(re.findall(r"--([a-z0-9]+):([^;}]+)", CSS[: CSS.index("@media")]))
"""The colours of the light theme by name."""
SANS = "'DejaVu Sans','Liberation Sans','Noto Sans','Open Sans',Roboto,Arial,Helvetica"
"""Programs that draw no text of an unknown family find one of these nearly everywhere."""


def plain_svg(svg: str) -> str:
    """The same picture in the light theme, for programs that know neither variables nor media queries of CSS."""
    head, _, rest = svg.partition("<style>")
    style, _, body = rest.partition("</style>")
    style = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", style)
    style = style.replace("font-family:inherit", "")
    head = head.replace("system-ui,sans-serif", f"system-ui,{SANS},sans-serif")
    whole = f"{head}<style>{style}</style>{body}" if rest else svg
    return re.sub(r"var\(--([a-z0-9]+)\)", lambda found: LIGHT.get(found[1], "#000"), whole)


def png(svg: str, zoom: int = 2) -> bytes:
    """The picture of an SVG document, ``zoom`` pixels for each of its units.

    Raises:
        RecipeError: resvg is not installed.
    """
    return bytes(resvg().svg_to_bytes(svg_string=plain_svg(svg), zoom=zoom))


def resvg() -> Any:
    """The library that draws.

    Raises:
        RecipeError: it is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise RecipeError("PNG files need resvg_py; install it: pip install 'openwork[png]'") from None
    return resvg_py

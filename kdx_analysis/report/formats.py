"""The report's HTML as Markdown and as PDF."""

from __future__ import annotations

from typing import Any

from bs4 import BeautifulSoup
from markdownify import MarkdownConverter

from kdx_analysis.errors import KdxError


def markdown(html: str) -> str:
    """A fragment of HTML as Markdown with tables, without scripts and style sheets."""
    soup = BeautifulSoup(html, "html.parser")
    for part in soup(["style", "script", "nav"]):
        part.decompose()
    for link in soup.select("a.defined"):  # Markdown keeps no list of formulas to jump to
        link.unwrap()
    for heading in soup.select("th.group"):  # Markdown has no row groups: a row like the others
        heading.name = "td"
        del heading["colspan"]
    converter = _Converter(
        heading_style="atx", bullets="-", sub_symbol="<sub>", sup_symbol="<sup>", escape_misc=True
    )
    return str(converter.convert_soup(soup)).strip() + "\n"


class _Converter(MarkdownConverter):
    """Keeps the line breaks of cells, and escapes no sign that means nothing inside a line."""

    def convert_br(self, el: Any, text: str, parent_tags: set[str]) -> str:
        if parent_tags & {"td", "th"}:
            return "<br>"
        return str(super().convert_br(el, text, parent_tags))  # type: ignore[misc]

    def escape(self, text: str, parent_tags: set[str]) -> str:
        escaped = str(super().escape(text, parent_tags))  # type: ignore[misc]
        return escaped.replace(r"\=", "=").replace(r"\+", "+")


def pdf(html: str) -> bytes:
    """A page of HTML that holds all it shows as PDF; nothing is fetched.

    Raises KdxError if WeasyPrint, or the system library Pango that it draws text with, is missing.
    """
    try:
        from weasyprint import HTML
        from weasyprint.urls import URLFetcher
    except ImportError:
        raise KdxError(
            "a PDF needs WeasyPrint: pip install 'kdx_analysis[pdf]', or print the HTML report "
            "from a browser"
        ) from None
    except OSError as error:
        raise KdxError(
            f"WeasyPrint does not find Pango ({error}): apt-get install libpangoft2-1.0-0, or brew "
            "install pango, or print the HTML report from a browser"
        ) from None
    offline = URLFetcher(allowed_protocols=["data"], fail_on_errors=True)
    written: bytes = HTML(string=html, url_fetcher=offline).write_pdf()
    return written

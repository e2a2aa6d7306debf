"""What all our pages have in common: a page that needs nothing else and forbids itself scripts."""

from __future__ import annotations

import base64
from html import escape

__all__ = ["document", "inlined"]

_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{main}
</main>
</body>
</html>
"""


def document(title: str, style: str, main: str) -> str:
    """A page.

    Args:
        title: as text; it is escaped here.
        style: CSS.
        main: HTML of everything that is seen.
    """
    return _DOCUMENT.format(title=escape(title), style=style, main=main)


def inlined(content: bytes, kind: str) -> str:
    """The data URL of a picture of a media type such as ``"image/jpeg"``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"

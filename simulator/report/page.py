"""The file: template, style and scripts beside this module, Vega from the extra `report`, all in one HTML page."""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from sglang_dspark.cost import write_atomically
from sglang_dspark.errors import InputError

_VEGA_LITE = "6.4"


def check_page(path: Path) -> None:
    """Refuse (InputError) a page that could not be written, before anything is simulated."""
    if path.suffix not in (".html", ".htm"):
        raise InputError(f"report {path} is refused, expected a name that ends in .html")
    _converter()


def write_page(path: Path, document: dict[str, Any]) -> None:
    """Write the page, whole or not at all. Errors: InputError."""
    write_atomically(path, page(document).encode())


def page(document: dict[str, Any]) -> str:
    """The page as text. No string of the document can leave its place: text is escaped, data are no markup, and the
    page's own policy lets no other script run and nothing be loaded."""
    scripts = {"library": _library(), "page": _asset("page.js"), "explorer": _asset("explorer.js")}
    scripts = {name: text.replace("</script", "<\\/script") for name, text in scripts.items()}
    hashes = " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in scripts.values())
    parts = {
        "title": escape(document["title"]),
        "about": escape(document["about"]),
        "answer": escape(document["answer"]),
        "allowed": hashes,
        "style": _asset("page.css"),
        "data": as_data(document),
        **scripts,
    }
    template = _asset("page.html")
    pieces = template.split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, _, rest in (each.partition("}}") for each in pieces[1:]))


def as_data(document: dict[str, Any]) -> str:
    """JSON that may stand in a script element: no character of it can end or begin markup."""
    text = msgspec.json.encode(document, enc_hook=lambda value: value.item()).decode()  # NumPy's numbers
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _asset(name: str) -> str:
    return files("simulator.report").joinpath("assets", name).read_text()


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script. Seconds of work."""
    text: str = _converter().javascript_bundle(vl_version=_VEGA_LITE)
    return text


def _converter() -> Any:
    try:
        import vl_convert
    except ImportError:
        raise InputError(
            'a report needs vl-convert-python, which is not installed: pip install "sglang-dspark[report]"'
        ) from None
    return vl_convert

"""The page's files joined into one, with a policy that allows its own script and style alone."""

import base64
import hashlib
import json
import re
from pathlib import Path
from string import Template
from typing import Any

FOLDER = Path(__file__).parent
# Each after those that it imports.
SCRIPTS = (
    *("image_ops.js", "prepare.js", "network.js"),
    *("elements.js", "drawing.js", "paper.js", "ladder.js", "picture.js", "layers.js", "page.js"),
)
_IMPORT = re.compile(r"^import\b[^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:function|class|const) (\w+))", re.MULTILINE)


def join_page(networks: list[dict[str, Any]], examples: dict[str, Any] | None) -> str:
    """Return the page as one HTML file.

    Args:
        networks: descriptions of the networks, JSON-serialisable.
        examples: result of `choose_examples`; None: the page offers none.
    """
    style, script = _read("style.css"), join_scripts()
    return Template(_read("page.html")).substitute(
        policy=_policy(script, style),
        icon=base64.b64encode(_read("icon.svg").encode()).decode(),
        style=style,
        networks=_to_json(networks),
        examples=_to_json(examples),
        script=script,
    )


def join_scripts() -> str:
    """Return the page's modules as one.

    Each becomes a function that is called at once and returns what the module exports, so that
    only exported names share a scope.
    """
    return "\n".join(_to_function(_read(name)) for name in SCRIPTS)


def _to_function(module: str) -> str:
    names = ", ".join(name for _, name in _EXPORT.findall(module))
    body = _EXPORT.sub(r"\1", _IMPORT.sub("", module))
    return f"const {{ {names} }} = (() => {{\n{body}return {{ {names} }};\n}})();\n"


def _policy(script: str, style: str) -> str:
    """Return the content security policy: no connection, and no code except the page's own."""
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _to_json(value: Any) -> str:
    """Return JSON that cannot end the element it is in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")

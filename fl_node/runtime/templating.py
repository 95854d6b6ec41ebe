"""The templates of this package, with their values filled in."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2

from fl_node.runtime import markdown
from fl_node.runtime.terminal import visible


def render(template: str, **values: Any) -> str:
    """Return a template of this package with its values filled in.

    In a page and in Markdown every value is escaped that does not say that it is markup.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=template.endswith((".html.j2", ".svg.j2")),  # the others are texts and configuration files
        finalize=markdown.escape if template.endswith(".md.j2") else None,
    )
    text = (resources.files("fl_node") / "templates" / template).read_text(encoding="utf-8")
    rendered = environment.from_string(text).render(**values)
    return visible(rendered)

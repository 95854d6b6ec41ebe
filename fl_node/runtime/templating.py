"""The templates of this package, with their values filled in."""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2

from fl_node.runtime import markdown
from fl_node.runtime.terminal import visible
from fl_node.wording import counted


def render(template: str, **values: Any) -> str:
    """Return a template of this package with its values filled in.

    In a page and in Markdown every value is escaped that does not say that it is markup.
    """
    return visible(_environment(template.endswith(".md.j2")).get_template(template).render(**values))


@cache
def _environment(is_markdown: bool) -> jinja2.Environment:
    """Return the environment of the templates in Markdown, or of the others; each compiles a template once."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fl_node"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=jinja2.select_autoescape(["html.j2"]),  # the others are texts and configuration files
        finalize=markdown.escape if is_markdown else None,
        auto_reload=False,
    )
    environment.globals["counted"] = counted
    return environment

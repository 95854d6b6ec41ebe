"""Writing a report: a page, a text and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from fl_node.audit.result import Audit
from fl_node.models.error_analysis import ErrorAnalysis
from fl_node.report import context as page
from fl_node.report.collect import Result, as_json
from fl_node.runtime import files
from fl_node.runtime.templating import render


def write(
    folder: Path,
    name: str,
    result: Result,
    audit: Audit,
    versions: Mapping[str, str],
    error_analysis: ErrorAnalysis | None = None,
    split: Mapping[int, list[int]] | None = None,
) -> Path:
    """Write ``report.html``, ``report.md`` and ``report.json`` and return the first's path.

    Parameters
    ----------
    folder
        Where they go.
    name, result, audit, versions
        The run, and what was found.
    error_analysis
        Of the newest global weights on the test images, if these are at hand.
    split
        How many images of each label each learner has, if the labels are at hand.
    """
    more = {
        "name": name,
        "versions": dict(versions),
        "audit": asdict(audit) | {"passed": audit.passed},
        "error_analysis": error_analysis.as_content() if error_analysis else None,
        "split": split,
    }
    files.write(folder / "report.json", as_json(result, **more) + "\n")
    context = page.context(name, result, audit, versions, error_analysis, split)
    files.write(folder / "report.md", render("report.md.j2", **context))
    path = folder / "report.html"
    files.write(path, render("report.html.j2", **context, **page.pictures(result, split)))
    return path

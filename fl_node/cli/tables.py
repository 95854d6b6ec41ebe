"""Tables that only the command line prints."""

from __future__ import annotations

from collections.abc import Sequence

from fl_node.experiments.sweep import Figure
from fl_node.report.collect import percent
from fl_node.runtime.terminal import Numbers


def sweep_table(figures: Sequence[Figure]) -> Numbers:
    """Return what rules reach under attacks for a console: last round's accuracy in percent, mean and deviation."""
    columns = list(dict.fromkeys((figure.attack, figure.share) for figure in figures))
    by_cell = {(figure.rule, figure.attack, figure.share): figure for figure in figures}
    rows = [["rule", *(f"{attack}, {share:.0%}" if share else "no attack" for attack, share in columns)]]
    for rule in dict.fromkeys(figure.rule for figure in figures):
        texts = []
        for attack, share in columns:
            figure = by_cell.get((rule, attack, share))
            backdoor = f" (backdoor {figure.backdoor:.0%})" if figure and figure.backdoor is not None else ""
            spread = f" ± {100 * figure.deviation:.2f}" if figure and len(figure.values) > 1 else ""
            texts.append(f"{percent(figure.mean)}{spread}{backdoor}" if figure else "–")
        rows.append([rule, *texts])
    return Numbers(rows, "accuracy after the last round, %")

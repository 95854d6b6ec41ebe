"""Tables that only the command line prints."""

from __future__ import annotations

from collections.abc import Sequence

from fl_node.experiments.sweep import Figure
from fl_node.report.collect import percent
from fl_node.runtime.terminal import Numbers


def sweep_table(figures: Sequence[Figure]) -> Numbers:
    """Return what rules reach under attacks for a console: last round's accuracy in percent, mean and deviation."""
    columns = list(dict.fromkeys((one.attack, one.share) for one in figures))
    found = {(one.rule, one.attack, one.share): one for one in figures}
    rows = [["rule", *(f"{attack}, {share:.0%}" if share else "no attack" for attack, share in columns)]]
    for rule in dict.fromkeys(one.rule for one in figures):
        texts = []
        for attack, share in columns:
            one = found.get((rule, attack, share))
            backdoor = f" (backdoor {one.backdoor:.0%})" if one and one.backdoor is not None else ""
            spread = f" ± {100 * one.deviation:.2f}" if one and len(one.values) > 1 else ""
            texts.append(f"{percent(one.mean)}{spread}{backdoor}" if one else "–")
        rows.append([rule, *texts])
    return Numbers(rows, "accuracy after the last round, %")

"""Score against answers: every method, every protocol, as SVG."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from pluralign.fewshot.comparison import Summary
from pluralign.storage import staged_file


def plot_comparison(summaries: Sequence[Summary], path: str | Path) -> None:
    """Draw alignment with its intervals; without matplotlib (extra `plots`) a warning says that there is no plot."""
    try:
        import matplotlib as mpl
    except ImportError:
        warnings.warn(f"{path} is not drawn: that takes `pip install 'pluralign[plots]'`", stacklevel=2)
        return
    from matplotlib.figure import Figure

    protocols = list(dict.fromkeys(one.protocol for one in summaries))
    # A method has its colour in every protocol, also where others are not there.
    colours = {method: f"C{number}" for number, method in enumerate(dict.fromkeys(one.method for one in summaries))}
    with mpl.rc_context({"svg.hashsalt": "fewshot", "svg.fonttype": "none", "font.size": 9}):
        drawn = {}
        figure = Figure(figsize=(4.0 * len(protocols) + 1.2, 3.4), layout="constrained")
        for axes, protocol in zip(figure.subplots(1, len(protocols), squeeze=False)[0], protocols, strict=True):
            own = [one for one in summaries if one.protocol == protocol]
            for method, colour in colours.items():
                line = [one for one in own if one.method == method]
                if not line:
                    continue
                margins = [one.margins.get("alignment", 0.0) for one in line]
                means = [one.means["alignment"] for one in line]
                drawn[method] = axes.errorbar([one.size for one in line], means, margins, color=colour, capsize=2)
            axes.set(title=protocol, xlabel="answers of the group", ylabel="alignment", xscale="log")
            sizes = sorted({one.size for one in own})
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
        figure.legend(list(drawn.values()), list(drawn), frameon=False, loc="outside right center")
        with staged_file(path) as staging:
            figure.savefig(staging, format="svg", metadata={"Date": None})

"""Other labels for what an online run has sampled: candidates are read, compared anew, and become a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pluralign.annotators import Annotator, annotator_of
from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.online_config import RelabelConfig
from pluralign.resolve import resolve
from pluralign.storage import check_place
from pluralign.training.online.files import VerdictLog, read_candidates, write_pairs
from pluralign.training.online.labelling import annotate, pairs_of_verdicts
from pluralign.training.runs import CONFIG_FILE, PHASES


@dataclass(frozen=True)
class Relabelled:
    """What became of a run's candidates.

    Attributes:
        path: the table.
        prompts: that were compared.
        pairs: in the table.
        without: reason -> prompts that gave no pair: `tie`, `abstained`.
    """

    path: Path
    prompts: int
    pairs: int
    without: Mapping[str, int]


def relabel(config: RelabelConfig, annotator: Annotator | None = None) -> Relabelled:
    """Ask an annotator about everything that a run has sampled, and write the pairs that its verdicts make.

    The table has the columns of a phase's pair file. Whatever the run compared with, `ref_chosen_logps` and
    `ref_rejected_logps` are those of the policy that sampled, so that `train` with `reference.compute: table` learns
    with the behavior policy as the reference. The run itself is not changed.

    Args:
        config: as of the command.
        annotator: in place of the one that the configuration names.

    Raises:
        InputError: the folder is that of no online run, it has sampled nothing yet, or the table is there.
        AnnotatorError: the annotator failed; what it said is kept, and the same call goes on.
    """
    run = Path(config.run)
    files = sorted((run / PHASES).glob("*/candidates-*.jsonl"))
    if not files or not (run / CONFIG_FILE).is_file():
        raise InputError(
            "there are no candidates", where=str(run), fix="Give the output folder of `pluralign online` as --run."
        )
    output = Path(config.output) if config.output else run / "relabelled.jsonl"
    if output.suffix != ".jsonl":
        raise InputError(f"output is {str(output)!r}", fix="It is a .jsonl file.")
    if output.exists():
        raise InputError("the table is there", where=str(output), fix="Take it away, or name another output.")
    check_place(output)
    trained = resolve(TrainConfig, run / CONFIG_FILE)
    who = annotator or annotator_of(config.annotator, trained)
    candidates = [one for path in files for one in read_candidates(path)]
    log = VerdictLog(output.with_suffix(".verdicts.jsonl"))
    verdicts = annotate(who, candidates, log, batch_size=config.annotator.batch_size)
    found = pairs_of_verdicts(candidates, verdicts, config.form)
    write_pairs(output, [replace(one, references=(one.chosen.logp, one.rejected.logp)) for one in found.pairs])
    return Relabelled(output, len(candidates), len(found.pairs), dict(found.without))

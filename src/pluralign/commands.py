"""What each command does and shows: one function a command. Torch is imported when one runs, and not before."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pluralign.chat_config import ChatConfig
from pluralign.compare_config import CompareConfig
from pluralign.config import (
    AnchorTableConfig,
    CheckConfig,
    DemoConfig,
    EvaluateConfig,
    FewshotAskConfig,
    FewshotEvaluateConfig,
    FewshotFitConfig,
    FewshotPredictConfig,
    GenerateConfig,
    MetaPairsConfig,
    PeopleListConfig,
    PeopleRemoveConfig,
    PeopleShowConfig,
    TrainConfig,
    WorldConfig,
)
from pluralign.online_config import OnlineConfig, RelabelConfig
from pluralign.report_config import ReportConfig
from pluralign.reward_config import RewardTrainConfig
from pluralign.winrate_config import WinRateConfig

if TYPE_CHECKING:
    from pluralign.training import TrainResult

DONE, PARTLY = 0, 1
_SHOWN = 3
"""Questions to ask next."""
LEGEND = """\
acc., margin: held-out pairs judged as the person did, and by how much   others: other people's pairs
kept: of what the base knows, what the adapter still knows (own: asked in the person's own manner)
KL: how far the adapter moved from the base   style, right, degen.: of the answers it writes
docs/evaluation.md explains every figure."""


def demo(config: DemoConfig) -> int:
    """The main job on the embedded default, offline, in a few minutes."""
    # More threads than one gain nothing on so small a model, and lose much where another program uses a core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from pluralign.demo import run_demo

    result, evaluation = run_demo(config)
    _show(evaluation.table())
    _say(LEGEND)
    return _close(result)


def data_check(config: CheckConfig) -> int:
    """Validate a table of preferences and say what one wants to know before training on it."""
    from pluralign.preferences import check_preferences, load_preferences
    from pluralign.storage import check_place, write_json

    if config.output:
        check_place(config.output)
    tokenizer = None
    if config.model is not None:
        from pluralign.models import load_tokenizer

        tokenizer = load_tokenizer(config.model)
    report = check_preferences(load_preferences(config.data), tokenizer)
    _show(report.table())
    if config.output:
        write_json(config.output, report.as_dict())
    return PARTLY if report.problems else DONE


def data_meta_pairs(config: MetaPairsConfig) -> int:
    """Make pairs whose label follows the priorities in the prompt, from responses with scores by several criteria."""
    from pluralign.preferences.meta_pairs import make_meta_pairs

    made = make_meta_pairs(config)
    _show(made.table())
    _say(f"pairs: {made.path}")
    return PARTLY if made.problems else DONE


def world_make(config: WorldConfig) -> int:
    """Write a small world with known truth as files: corpus, preferences, probes, facts."""
    from pluralign.world import make_world

    folder = make_world(
        config.seed,
        config.out,
        users=config.users,
        pairs_per_user=config.pairs_per_user,
        nano=config.model,
        overwrite=config.overwrite,
    )
    _say(f"world: {folder}")
    return DONE


def anchor(config: AnchorTableConfig) -> int:
    """Add the base's own responses and the reference log-probs to a table, once per distinct text."""
    from pluralign.models.anchoring import anchor as run

    _say(f"anchored table: {run(config)}")
    return DONE


def train(config: TrainConfig) -> int:
    """Train one adapter a person from a table of preferences, and measure what each cost."""
    if config.plan:
        return _plan(config)
    from pluralign.evaluation import read_evaluation
    from pluralign.training import train as run

    result = run(config)
    if os.environ.get("RANK", "0") != "0":
        # Of several processes the first one writes, and speaks.
        return PARTLY if result.skipped else DONE
    if (result.output_dir / "evaluation.json").is_file():
        _show(read_evaluation(result.output_dir / "evaluation.json").table())
    return _close(result)


def online(config: OnlineConfig) -> int:
    """Train one adapter a person from responses that the policies sample in phases and an annotator labels."""
    from pluralign.evaluation import read_evaluation
    from pluralign.training.online.run import online as run

    result = run(config)
    if (result.output_dir / "evaluation.json").is_file():
        _show(read_evaluation(result.output_dir / "evaluation.json").table())
    return _close(result)


def relabel(config: RelabelConfig) -> int:
    """Compare anew, by another annotator, what an online run has sampled: a table for `train`."""
    from pluralign.training.online.relabelling import relabel as run

    made = run(config)
    without = "".join(f", {count} without ({reason})" for reason, count in sorted(made.without.items()))
    _say(f"{made.prompts} prompts, {made.pairs} pairs{without}: {made.path}")
    return DONE


def reward_train(config: RewardTrainConfig) -> int:
    """Make a reward model, with a head for each person, from a table of pairs."""
    from pluralign.annotators.reward_training import train_reward

    made = train_reward(config)
    _show(made.table())
    _say(f"reward model: {made.output_dir}")
    return PARTLY if made.report["left_out"] else DONE


def evaluate(config: EvaluateConfig) -> int:
    """Measure what each person of a finished run won, and what it cost."""
    from pluralign.evaluation import evaluate as run

    evaluation = run(config)
    _show(evaluation.table())
    _say(f"evaluation: {evaluation.path}")
    return PARTLY if evaluation.skipped else DONE


def report(config: ReportConfig) -> int:
    """Show evaluated runs on one page: charts, people, answers, what was run."""
    from pluralign.reporting import write_report

    _say(f"report: {write_report(config)}")
    return DONE


def compare(config: CompareConfig) -> int:
    """Say what changed for people between two runs, whether it was chance, and whether a run holds a line."""
    from pluralign.evaluation.comparing import compare as run

    compared = run(config)
    _show(compared.table())
    if config.output:
        _say(f"comparison: {config.output}")
    return PARTLY if compared.failed else DONE


def winrate(config: WinRateConfig) -> int:
    """Let an annotator say how often each person's answers are better than the base's, or another run's."""
    from pluralign.evaluation.winning import winrate as run

    found = run(config)
    _show(found.table())
    _say(f"win rates: {found.path}")
    return PARTLY if found.skipped else DONE


def generate(config: GenerateConfig) -> int:
    """Let the base and people answer the same prompts, side by side."""
    from pluralign.answers import answer_prompts, answers_table

    for answered in answer_prompts(config):
        _show(answers_table(answered))
    return DONE


def chat(config: ChatConfig) -> int:
    """Talk to the base and a person side by side."""
    from pluralign.chat import chat as talk

    talk(config)
    return DONE


def fewshot_fit(config: FewshotFitConfig) -> int:
    """Learn from groups what a few answers of a new one say of all its others."""
    from pluralign.fewshot.running import fit_fewshot

    made = fit_fewshot(config)
    _say(f"{made.predictor.summary()}\npredictor: {made.path}")
    return DONE


def fewshot_predict(config: FewshotPredictConfig) -> int:
    """Predict what groups will answer from a few of their answers."""
    from pluralign.fewshot.running import predict_fewshot

    found = predict_fewshot(config)
    _say(f"predictions: {config.output} ({len(found)})")
    return DONE


def fewshot_ask(config: FewshotAskConfig) -> int:
    """Say which question to ask a group or person next."""
    from pluralign.fewshot.running import ask_fewshot

    for question, _ in ask_fewshot(config)[:_SHOWN]:
        options = "".join(f"\n  {option}" for option in question.options)
        _say(f"{question.text}{options}")
    return DONE


def fewshot_evaluate(config: FewshotEvaluateConfig) -> int:
    """Compare few-shot predictors and baselines on groups that taught nothing."""
    from pluralign.fewshot.comparison import tables
    from pluralign.fewshot.running import evaluate_fewshot

    for shown in tables(evaluate_fewshot(config)):
        _show(shown)
    _say(f"results: {config.output}")
    return DONE


def people_list(config: PeopleListConfig) -> int:
    """List everybody of a run: adapter or reason why none, steps, accuracy, size."""
    from pluralign.people.listing import as_json, list_people, people_table
    from pluralign.storage import check_place, write_json

    if config.output:
        check_place(config.output)
    entries = list_people(config.run)
    _show(people_table(entries))
    if config.output:
        write_json(config.output, as_json(entries))
    return DONE


def people_show(config: PeopleShowConfig) -> int:
    """Show everything about one person of a run: adapter, files, metrics, evaluation."""
    from pluralign.people.listing import person_table, show_person
    from pluralign.storage import check_place, write_json

    if config.output:
        check_place(config.output)
    person = show_person(config.run, config.user)
    _show(person_table(person))
    if config.output:
        write_json(config.output, {"schema_version": 1, **asdict(person)})
    return DONE


def people_remove(config: PeopleRemoveConfig) -> int:
    """Remove people from a run and from the cache, and prove that nothing is left."""
    from pluralign.people.removal import remove_people

    removal = remove_people(config)
    parts = {"removed": removal.removed, "read again": removal.checked, "note": removal.remarks}
    parts |= {"A TRACE REMAINS": removal.traces, "NOT PROVEN": removal.unproven}
    for name, lines in parts.items():
        for line in lines:
            _say(f"{name}: {line}")
    if removal.proven:
        _say("nothing is left of them")
    return DONE if removal.proven else PARTLY


def _plan(config: TrainConfig) -> int:
    """Say what a run will take."""
    if os.environ.get("RANK", "0") != "0":
        return DONE
    import psutil  # type: ignore[import-untyped]

    from pluralign.training.planning import plan

    # What this process has done so far, the run's does too.
    made = plan(config, before=time.time() - psutil.Process().create_time())
    _show(made.table())
    return DONE


def _close(result: TrainResult) -> int:
    from pluralign.preferences import shown

    for user, reason in result.skipped.items():
        _say(f"skipped {shown(user)!r}: {reason}")
    if result.changed:
        _say(f"rows have changed since of {_named(result.changed)}; --update trains whom it names again")
    if result.absent:
        _say(f"no row is in the table any more of {_named(result.absent)}; what is there stays")
    _say(f"results: {result.output_dir}")
    return PARTLY if result.skipped else DONE


def _named(users: Sequence[str], most: int = 10) -> str:
    from pluralign.preferences import shown

    more = f" and {len(users) - most} more" if len(users) > most else ""
    return f"{len(users)} people ({', '.join(map(shown, users[:most]))}{more})"


def _show(renderable: Any) -> None:
    from rich.console import Console

    Console().print(renderable)


def _say(text: str) -> None:
    print(text, flush=True)

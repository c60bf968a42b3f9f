"""The two sides of a contest answer their prompts: people in the same batches, the base once, nobody twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pluralign.errors import InputError
from pluralign.evaluation.contest import BASE, Asked, Contest, Side
from pluralign.evaluation.kept_answers import Answer, KeptAnswers
from pluralign.evaluation.policies import of_one_shape, opened_policies
from pluralign.evaluation.runs import model_of
from pluralign.models.adapters import adapter_digest
from pluralign.models.anchoring import encoder_of, warn_of_losses
from pluralign.models.base import Base, load_base
from pluralign.models.cache import Cache
from pluralign.models.generation import Generated, generate
from pluralign.models.matmul import quick_matmul
from pluralign.models.references import base_responses
from pluralign.preferences import Preferences
from pluralign.preferences.conditioning import original_of
from pluralign.preferences.keys import row_key
from pluralign.progress import progress_bar
from pluralign.storage import sha256_of_file, sha256_of_json
from pluralign.training.listeners import Listeners


@dataclass
class Answering:
    """Lets sides answer.

    Attributes:
        kept: what was said before; it grows.
        device: where bases are loaded.
        failed: person -> why there is no answer.
    """

    kept: KeptAnswers
    device: str
    failed: dict[str, str] = field(default_factory=dict)
    _bases: dict[str, Base] = field(default_factory=dict)

    def answers(self, contest: Contest) -> list[tuple[Asked, Answer, Answer]]:
        """Both sides' answers, the side's own first; without the people of whom one could not answer.

        Raises:
            InputError: a base cannot be loaded, or a prompt cannot be put to it.
        """
        sides = [_Answerer(self, side, contest.asked) for side in (contest.side, contest.against)]
        with quick_matmul():
            for one in sides:
                one.answer()
        return [
            (asked, *(one.said(asked) for one in sides))  # type: ignore[misc]
            for asked in contest.asked
            if asked.person not in self.failed
        ]

    def base(self, side: Side) -> Base:
        """The base of a side; of two sides with the same one, loaded once."""
        settings = replace(model_of(side.trained), device=self.device)
        # What is loaded does not depend on where values are cached, or on the seed of training.
        key = sha256_of_json({**asdict(settings), "cache_dir": None, "seed": 0})
        if key not in self._bases:
            self._bases[key] = load_base(settings)
        return self._bases[key]


class _Answerer:
    """One side, and the prompts that it answers."""

    def __init__(self, answering: Answering, side: Side, asked: Sequence[Asked]) -> None:
        self.answering, self.side, self.asked = answering, side, asked
        self.keys = self._keys()

    def said(self, asked: Asked) -> Answer:
        """The answer to a prompt, which has been given."""
        found = self.answering.kept.get(self.keys[asked.id])
        assert found is not None
        return found

    def answer(self) -> None:
        """Answer what was not answered before; nothing is loaded where everything was."""
        kept, failed = self.answering.kept, self.answering.failed
        missing = [one for one in self.asked if one.person not in failed and kept.get(self.keys[one.id]) is None]
        if not missing:
            return
        base = self.answering.base(self.side)
        prompts = self._prompts(base, missing)
        asked = [one for one in missing if one.id in prompts]
        if self.side.adapters is None:
            self._by_base(base, asked, prompts)
        else:
            self._by_policies(base, asked, prompts)

    def _keys(self) -> dict[str, str]:
        """Comparison -> what decides the answer; without the people whose policy cannot be read."""
        digests: dict[Path | None, str] = {None: BASE}
        facts, keys = self.side.facts, dict[str, str]()
        for one in self.asked:
            folder = self.side.folder(one.row)
            if folder not in digests:
                try:
                    digests[folder] = policy_digest(Path(str(folder)))
                except (InputError, OSError) as error:
                    self.answering.failed[one.person] = str(error)
                    continue
            keys[one.id] = sha256_of_json([facts, digests[folder], row_key(one.row)])[:32]
        return keys

    def _by_base(self, base: Base, asked: Sequence[Asked], prompts: Mapping[str, list[int]]) -> None:
        trained = self.side.trained
        made = base_responses(
            base,
            [prompts[one.id] for one in asked],
            trained.base_responses.greedy(),
            Cache(trained.cache_dir),
            seed=trained.seed,
        )
        self._keep(asked, made)

    def _by_policies(self, base: Base, asked: Sequence[Asked], prompts: Mapping[str, list[int]]) -> None:
        trained = self.side.trained
        by_folder: dict[Path, list[Asked]] = {}
        for one in asked:
            by_folder.setdefault(Path(str(self.side.folder(one.row))), []).append(one)
        with progress_bar() as bar:
            task = bar.add_task("answering", total=len(asked))
            for folders in of_one_shape(base, by_folder):
                with opened_policies(base, folders) as (policies, broken):
                    for number, reason in broken.items():
                        self.answering.failed |= {one.person: reason for one in by_folder[folders[number]]}
                    some = [
                        (number, one)
                        for number, folder in enumerate(folders)
                        for one in by_folder[folder]
                        if number not in broken
                    ]
                    owners = [number for number, _ in some]
                    made = generate(
                        policies.model,
                        base.tokenizer,
                        [prompts[one.id] for _, one in some],
                        trained.base_responses.greedy(),
                        seed=trained.seed,
                        description="answers",
                        around=lambda rows: policies.rows_of([owners[row] for row in rows]),  # noqa: B023
                    )
                    self._keep([one for _, one in some], made)
                bar.advance(task, sum(len(by_folder[folder]) for folder in folders))

    def _prompts(self, base: Base, asked: Sequence[Asked]) -> dict[str, list[int]]:
        """Comparison -> tokens of the prompt, with what this run puts into it of the person."""
        trained = self.side.trained
        encoder = encoder_of(base, trained.data)
        rows = Preferences([one.row for one in asked], name=self.side.table.name)
        conditioned = Listeners.of(trained.conditioning, encoder, self.side.table).condition(rows)
        by_row = {id(original_of(row)): row for row in conditioned}
        for one in asked:
            if id(one.row) not in by_row:
                reason = f"a prompt of theirs cannot be conditioned as {self.side.run} does"
                self.answering.failed.setdefault(one.person, reason)
        left = [one for one in asked if id(one.row) in by_row]
        encoded = encoder.encode_many([by_row[id(one.row)] for one in left], branches=())
        warn_of_losses([str(problem) for problem in conditioned.problems], [row.cut for row in encoded])
        return {one.id: row.prompt_ids for one, row in zip(left, encoded, strict=True)}

    def _keep(self, asked: Sequence[Asked], made: Sequence[Generated]) -> None:
        said = [Answer(answer.text, answer.finished) for answer in made]
        self.answering.kept.add([(one.id, self.keys[one.id], answer) for one, answer in zip(asked, said, strict=True)])


def policy_digest(folder: Path) -> str:
    """Hex digest of a policy: of an adapter, or of the weights of a whole model.

    Raises:
        InputError: it is neither.
    """
    if (folder / "adapter_config.json").is_file() or not (folder / "config.json").is_file():
        return adapter_digest(folder)
    return sha256_of_json({path.name: sha256_of_file(path) for path in sorted(folder.glob("*.safetensors"))})

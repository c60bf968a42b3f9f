"""The command line, a YAML file and a dictionary give the same configuration."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from pluralign.config import EvaluateConfig, FewshotFitConfig, TrainConfig
from pluralign.errors import InputError
from pluralign.online_config import OnlineConfig
from pluralign.resolve import PRESETS, as_yaml, parse, preset, resolve

PRESET_NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))


def kind_of(name):
    """The configuration that a preset is for."""
    values = preset(name)
    return FewshotFitConfig if "predictor" in values else OnlineConfig if "pairs" in values else TrainConfig


def test_three_ways_to_say_the_same(tmp_path):
    given = {"method": "dpop", "data": "pairs.jsonl", "loss": {"beta": 0.3}, "training": {"bf16": True}}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(given))
    from_dict, from_file = resolve(TrainConfig, given), resolve(TrainConfig, file)
    from_command = parse(
        TrainConfig,
        ["--method", "dpop", "--data", "pairs.jsonl", "--loss.beta=0.3", "--training.bf16"],
        prog="pluralign train",
    )
    from_config_flag = parse(TrainConfig, ["--config", str(file)], prog="pluralign train")
    assert from_dict == from_file == from_command == from_config_flag
    assert from_dict.data.path == "pairs.jsonl"


def test_preset_below_file_below_arguments(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("method: dpop\nloss: {beta: 0.3}\nseed: 5\n")
    config = parse(TrainConfig, ["--config", str(file), "--seed", "7"], prog="pluralign train")
    assert (config.anchor.chosen.weight, config.loss.beta, config.seed) == (5.0, 0.3, 7)


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_a_resolved_configuration_reads_back_as_itself(name, tmp_path):
    kind = kind_of(name)
    own = {} if kind is FewshotFitConfig else {"training": {"extra_arguments": {"optim": "sgd"}}}
    config = resolve(kind, {"method": name, **own})
    file = tmp_path / "config.yaml"
    file.write_text(as_yaml(config) + "made_with:\n  torch: '1'\n")
    assert resolve(kind, file) == config
    assert parse(kind, ["--config", str(file)], prog="pluralign") == config


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_every_key_of_a_preset_carries_a_comment(name):
    text = (PRESETS / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    leaves = [line for line in text.splitlines() if ":" in line and not line.strip().startswith("#")]
    groups = [line for line in leaves if line.rstrip().endswith(":")]
    commented = [line for line in leaves if "#" in line]
    defaults = asdict(kind_of(name)())
    assert set(preset(name)) <= set(defaults)
    assert commented and len(commented) >= (len(leaves) - len(groups)) / 2


def test_presets_are_the_methods():
    assert resolve(TrainConfig, {"method": "sft"}).loss.type == "nll"
    assert resolve(TrainConfig, {"method": "slic"}).loss.type == "hinge"
    assert resolve(TrainConfig, {"method": "ipo"}).loss.length_average
    assert resolve(TrainConfig, {"method": "bapo"}).anchor.base.weight > 0
    assert resolve(TrainConfig, {"method": "dpo"}).anchor == TrainConfig().anchor


def test_the_few_shot_module_as_published():
    given = {"method": "gpo", "data": "answers.jsonl", "module": {"steps": 40}}
    config = resolve(FewshotFitConfig, given)
    assert (config.predictor, config.embeddings.pooling, config.module.loss) == ("gpo", "all", "gaussian_nll")
    assert config.module.steps == 40 and config.data == "answers.jsonl"
    arguments = ["--method", "gpo", "--data", "answers.jsonl", "--module.steps", "40"]
    assert parse(FewshotFitConfig, arguments, prog="pluralign fewshot fit") == config
    assert resolve(FewshotFitConfig, {}).predictor == "taste"


@pytest.mark.parametrize(
    ("kind", "method", "named"), [(TrainConfig, "gpo", "`pluralign fewshot fit`"), (FewshotFitConfig, "dpo", "train`")]
)
def test_a_method_of_another_command_says_whose_it_is(kind, method, named):
    with pytest.raises(InputError, match=f"method {method}.*It is for .*{named}"):
        resolve(kind, {"method": method})


def test_the_page_of_bapo_writes_its_preset_out():
    page = (Path(__file__).parents[1] / "docs" / "methods" / "bapo.md").read_text(encoding="utf-8")
    (written,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert yaml.safe_load(written) == preset("bapo")


def test_a_method_of_the_users_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("loss: {type: hinge, beta: 0.7}\n")
    assert resolve(TrainConfig, {"method": str(file)}).loss.beta == 0.7
    file.write_text("loss: {typ: hinge}\n")
    with pytest.raises(InputError, match=r"'loss\.typ' is no key\. Did you mean 'loss\.type'"):
        resolve(TrainConfig, {"method": str(file)})


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"metod": "dpo"}, "Did you mean 'method'"),
        ({"loss": {"betta": 1}}, r"Did you mean 'loss\.beta'"),
        ({"seed": "abc"}, "seed"),
        ({"method": "dpoo"}, "Did you mean 'dpo'"),
        ({"method": "../presets/dpo"}, "method is"),
        ({"anchor": {"base": {"form": "round"}}}, r"anchor\.base\.form"),
    ],
)
def test_what_is_wrong_is_named(given, named):
    with pytest.raises(InputError, match=named):
        resolve(TrainConfig, given)


@pytest.mark.parametrize("word", ["no", "NO", "on", "yes", "2020-01-01"])
def test_words_of_yaml_that_are_words_of_people_too(word, tmp_path):
    """`no` is a strategy of the trainer and may be somebody's id; true and false have words of their own."""
    file = tmp_path / "run.yaml"
    text = f"update: [{word}, b]\ntraining: {{extra_arguments: {{logging_strategy: {word}, tf32: true}}}}\n"
    file.write_text(text)
    config = resolve(TrainConfig, file)
    assert config.update == [word, "b"]
    assert config.training.extra_arguments == {"logging_strategy": word, "tf32": True}
    extra = "--training.extra_arguments"
    for arguments in (
        ["--config", str(file)],
        ["--update", f"[{word}, b]", extra, f"{{logging_strategy: {word}, tf32: true}}"],
        ["--update", f"[{word}, b]", f"{extra}.logging_strategy={word}", f"{extra}.tf32=true"],
    ):
        assert parse(TrainConfig, arguments, prog="pluralign train") == config
    (tmp_path / "again.yaml").write_text(as_yaml(config))
    assert resolve(TrainConfig, tmp_path / "again.yaml") == config


def test_switches_and_numbers_of_yaml(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "overwrite: yes\ntraining: {bf16: no, save_strategy: no, learning_rate: 1e-4, warmup_steps: 1E+1}\n"
    )
    config = resolve(TrainConfig, file)
    assert (config.overwrite, config.training.bf16, config.training.save_strategy) == (True, False, "no")
    assert (config.training.learning_rate, config.training.warmup_steps) == (1e-4, 10.0)


def test_files_that_are_no_configuration(tmp_path):
    (tmp_path / "bad.yaml").write_text("metod: dpo\n")
    with pytest.raises(InputError, match=r"bad\.yaml.*Did you mean 'method'"):
        resolve(TrainConfig, tmp_path / "bad.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        resolve(TrainConfig, tmp_path)
    with pytest.raises(InputError, match="no such file"):
        resolve(TrainConfig, tmp_path / "absent.yaml")
    for text in ("- a\n- b\n", "a: [", "just text"):
        file = tmp_path / "bad.yaml"
        file.write_text(text)
        with pytest.raises(InputError, match=r"bad\.yaml"):
            resolve(TrainConfig, file)


def test_an_optional_group_can_be_given_by_its_short_form():
    assert resolve(EvaluateConfig, {"run": "r"}).data is None
    assert parse(EvaluateConfig, ["--data", "held.jsonl"], prog="pluralign evaluate").data.path == "held.jsonl"

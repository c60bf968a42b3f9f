"""The example of the data page works copied and pasted."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def block(language):
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[1]


def test_the_example_runs_and_finds_what_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = re.search(r"cat > (\S+) <<'END'\n(.*?)END\n", block("bash"), re.DOTALL)
    Path(table[1]).write_text(table[2])
    exec(compile(block("python"), "docs/data.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 rows; ['ann', 'ben']"
    assert lines[1].startswith("prefs.jsonl, row 4, column 'rejected': ")
    assert lines[2] == "1 pair judged differently by two users"


def test_the_weightings_of_the_page_are_those_of_the_code():
    from pluralign.preferences.sources import RATINGS, WEIGHTINGS

    for user, weights in WEIGHTINGS.items():
        cells = " | ".join(str(weights.get(rating, "")) for rating in RATINGS)
        assert re.sub(r"\|\s+(?=\|)", "| ", f"| `{user}` | {cells} |") in re.sub(r"\|\s+(?=\|)", "| ", PAGE)

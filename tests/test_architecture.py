"""The rooms stand as docs/architecture.md says: imports go downwards, with the exceptions named there."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "pluralign"
FROM_THE_TOP = [
    *(
        "__main__",
        "cli",
        "commands",
        "demo",
        "chat",
        "answers",
        "reporting",
        "people",
        "evaluation",
        "training",
        "annotators",
        "fewshot",
        "models",
        "objectives",
        "preferences",
        "world",
    ),
    *(
        "resolve",
        "online_config",
        "report_config",
        "compare_config",
        "winrate_config",
        "chat_config",
        "reward_config",
        "annotation",
        "config",
        "seats",
        "progress",
        "versions",
        "storage",
        "errors",
        "__init__",
    ),
]
UPWARDS = {("training/run.py", "evaluation")}
WITHOUT_TORCH = (
    "preferences",
    "resolve",
    "config",
    "seats",
    "storage",
    "errors",
    "cli",
    "commands",
    "online_config",
    "report_config",
    "compare_config",
    "winrate_config",
    "chat_config",
    "reward_config",
    "annotation",
)


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path):
    """Modules that a file imports, wherever in the file, with whether that is at its top."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in top


def test_every_file_stands_in_a_known_room():
    assert {room_of(path) for path in SOURCE.rglob("*.py")} == set(FROM_THE_TOP)


def test_imports_go_downwards():
    wrong = []
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        if name == "__init__.py":  # the package's face reaches everywhere, when it is called
            continue
        for module, _ in imported(path):
            parts = module.split(".")
            if parts[0] != "pluralign":
                continue
            target = parts[1] if len(parts) > 1 else "__init__"
            upwards = FROM_THE_TOP.index(target) < FROM_THE_TOP.index(room_of(path))
            if upwards and (name, target) not in UPWARDS:
                wrong.append(f"{name} imports {module}")
    assert not wrong


def test_rooms_that_must_be_light_import_no_torch():
    heavy = {"torch", "transformers", "peft", "accelerate", "datasets"}
    wrong = [
        f"{path.relative_to(SOURCE)} imports {module}"
        for path in SOURCE.rglob("*.py")
        if room_of(path) in WITHOUT_TORCH
        for module, at_top in imported(path)
        if at_top and module.split(".")[0] in heavy
    ]
    assert not wrong

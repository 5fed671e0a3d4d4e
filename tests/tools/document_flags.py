"""Write the generated documentation: docs/flags.md, the table of docs/datasets.md, and the script of each dataset.

    python -m tests.tools.document_flags
"""

import dataclasses
from pathlib import Path

from data.registry import DATASETS
from utils import config
from utils.config import CommonConfig, FlagParser, PretrainConfig, TrainConfig
from utils.output.tables import markdown
from utils.pipeline import CHOICES
from utils.program import run_main

ROOT = Path(__file__).parents[2]
PAGE, DATASETS_PAGE, SCRIPTS = ROOT / "docs/flags.md", ROOT / "docs/datasets.md", ROOT / "scripts"
CARD = "`--data_name`", "domain", "place", "unit", "interval", "nodes", "data"  # columns of the table of datasets
STAGES = {PretrainConfig: "stage 1", TrainConfig: "stage 2"}
SETTINGS = {PretrainConfig: ("mean_epochs", "mean_lr", "networks"),
            TrainConfig: ("diffusion_epochs", "diffusion_lr", "nsample", "sampler", "sample_steps")}
SCRIPT = """#!/usr/bin/env bash
# Both stages on {name} by the default recipe, with its presets; extra flags go to both.
{settings}
exec bash "$(dirname "${{BASH_SOURCE[0]}}")/run_dataset.sh" {name} "$@"
"""
INTRODUCTION = """# Flags

Written by `python -m tests.tools.document_flags` from `utils/config.py`; a test fails when the two differ.

What is given on the command line beats the [preset](#presets) of the dataset, that beats the [recipe](#recipes), and
that the default. Put `no-` before the name of a switch to turn it off, as in `--no-climatology`.
Each stage accepts the flags of the other one too, and says that they have no effect on it, so that one line of flags
serves both programs.
"""


def typed(value) -> str:
    """A value of a flag as one would type it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value in ("", None) else f"`{value}`"


def listed(flags) -> str:
    return ", ".join(f"`--{flag}`" for flag in flags)


def accepted(item: dataclasses.Field) -> str:
    """The values that a flag accepts, in words; nothing where all of its type are."""
    choices, metadata = item.metadata["choices"] or (), item.metadata
    bounds = {"at least": metadata["minimum"], "above": metadata["above"], "at most": metadata["maximum"]}
    limits = [f"{words} {bound}" for words, bound in bounds.items() if bound is not None]
    return ", ".join([*map(typed, CHOICES[choices] if isinstance(choices, str) else choices), *limits])


def flags_of(group: str) -> list[tuple[str, ...]]:
    """Rows (flag, default of stage 1, of stage 2, accepted, help) of a group."""
    defaults = {}
    for stage in STAGES:
        for item in dataclasses.fields(stage):
            if item.metadata["group"] == group:
                key = item.name, accepted(item), item.metadata["help"].replace("%%", "%")
                defaults.setdefault(key, {})[stage] = typed(item.default)
    return [(f"`--{name}`", *(found.get(stage, "") for stage in STAGES), values, text)
            for (name, values, text), found in defaults.items()]


def assigned(chosen: dict) -> str:
    """Values by the names of their flags, as one types them; the text may be none."""
    return ", ".join(f"`--{'' if value else 'no-'}{name}`" if isinstance(value, bool) else f"`--{name} {value}`"
                     for name, value in chosen.items())


def recipes() -> list[tuple[str, ...]]:
    """Rows (recipe, stage, flags) of what differs from the defaults."""
    return [(f"`{recipe}`", STAGES.get(stage, "both"), assigned(chosen) or "the defaults")
            for recipe, stages in config.RECIPES.items() for stage, chosen in (stages or {CommonConfig: {}}).items()]


def older_names() -> list[tuple[str, ...]]:
    """Rows (older name, flag of stage 1, of stage 2)."""
    rows = {}
    for stage in STAGES:
        for item in dataclasses.fields(stage):
            if name := item.metadata["alias"]:
                rows.setdefault(name, {})[stage] = f"`--{item.name}`"
    return [(f"`--{name}`", *(found.get(stage, "") for stage in STAGES)) for name, found in rows.items()]


def presets() -> list[tuple[str, ...]]:
    """Rows (recipes, dataset, stage, flags); recipes that share their presets share a row."""
    rows = {}
    for recipe, datasets in config.PRESETS.items():
        for name, stages in datasets.items():
            for stage, chosen in stages.items():
                rows.setdefault((name, STAGES.get(stage, "both"), assigned(chosen)), []).append(recipe)
    return [(", ".join(f"`{recipe}`" for recipe in found), *row) for row, found in rows.items()]


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for group in config.GROUPS:
        columns = "flag", *(f"default of {stage}" for stage in STAGES.values()), "accepted", "what it is"
        parts += [f"## {group.capitalize()}\n", markdown(columns, flags_of(group))]
    parts += ["## Recipes\n", markdown(("recipe", "stage", "flags"), recipes()),
              "## Presets\n", markdown(("recipes", "dataset", "stage", "flags"), presets()),
              "## Older names\n\nThey still work, each for its own stage; a note says the new name.\n",
              markdown(("older name", *STAGES.values()), older_names()),
              "## Flags without effect\n\nA note says so when one of them is given.\n",
              markdown(("with", "flags"), [(f"`--{kind} {name}`", listed(flags))
                                           for kind, unread in config.WITHOUT_EFFECT.items()
                                           for name, flags in unread.items()])]
    return "\n".join(parts)


def dataset_script(name: str) -> str:
    """The script of a dataset, with the settings of both stages as comments."""
    lines = []
    for stage, shown in SETTINGS.items():
        resolved = config.resolve(stage, {"data_name": name})
        preset = config.PRESETS[resolved.recipe].get(name, {})
        flags = dict.fromkeys(("recipe", "history_len", "predict_len", "batch_size", *shown,
                               *preset.get(CommonConfig, ()), *preset.get(stage, ())))
        typed_as = assigned({flag: getattr(resolved, flag) for flag in flags}).replace("`, `", " ").strip("`")
        lines.append(f"# {STAGES[stage]}: {typed_as}")
    return SCRIPT.format(name=name, settings="\n".join(lines))


def datasets_page() -> str:
    """The page of datasets: its text as it is, then a row for each card of the registry."""
    text = DATASETS_PAGE.read_text().split(markdown(CARD, []).splitlines()[0])[0]
    rows = []
    for name, spec in DATASETS.items():
        count, unit = spec.interval
        origin = "private" if spec.private else "generated" if spec.synthetic else "here" if spec.embedded else \
            ", ".join(f"`{file}`" for file in spec.files)
        rows.append((f"`{name}`", spec.domain, spec.place, spec.unit, f"{count} {unit}",
                     " x ".join(map(str, spec.grid or (spec.num_nodes,))), origin))
    return text + markdown(CARD, rows)


def main(arguments: list[str] | None = None) -> int:
    FlagParser(__doc__.splitlines()[0]).parse_args(arguments)
    PAGE.write_text(page())
    DATASETS_PAGE.write_text(datasets_page())
    for name in DATASETS:
        (SCRIPTS / f"{name}.sh").write_text(dataset_script(name))
    print(f"wrote {PAGE}, {DATASETS_PAGE} and the scripts of {len(DATASETS)} datasets")
    return 0


if __name__ == "__main__":
    run_main(main)

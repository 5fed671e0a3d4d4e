"""Settings: one frozen dataclass per stage, recipes, presets per dataset, and the command line parser.

A field of a dataclass is a flag. Order: command line > preset of the dataset > recipe > default.
"""

import argparse
import dataclasses
import difflib
import math
import numbers
import operator
import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from utils.program import one_line
from utils.training.checkpoint import check_writable
from utils.training.checkpoint import settings as settings_of
from utils.training.distributed import rank_from_environment

GROUPS = "recipe", "data", "network", "training", "diffusion", "sampling and scores", "run"
RECIPE, DATA, NETWORK, TRAINING, DIFFUSION, SAMPLING, RUN = GROUPS
LARGEST_NUMBER = 2**31 - 1  # maximum of an integer flag without one of its own


def flag(default, group: str, text: str, minimum=None, above=None, maximum=None, choices=None, alias=None):
    """A dataclass field that is a flag. choices: accepted values, or their key in `CHOICES`; alias: its older name."""
    return field(default=default, metadata=dict(group=group, help=text, minimum=minimum, above=above, maximum=maximum,
                                                choices=choices, alias=alias))


@dataclass(frozen=True)
class CommonConfig:
    """Flags of both stages."""

    recipe: str = flag("cost", RECIPE, "values of all flags of both stages that are not given: CoST with the "
                       "improvements of this project (cost), exactly as published (published), or a copula of "
                       "conditional quantiles (copula)", choices=("cost", "published", "copula"))
    data_name: str = flag("NYCFlights", DATA, "dataset of the registry; `python -m scripts.get_data` lists them")
    data_path: str = flag("", DATA, "a file of your own instead: .npy, .npz, .csv, .tsv, .txt, .data (also .gz), "
                          ".parquet, .nc or .zarr")
    freq: str = flag("", DATA, "interval of --data_path where it has no time stamps: 5min, 1h, 1d, 1w, 1M (months)")
    start: str = flag("", DATA, "time of its first step, ISO 8601, where it has no time stamps")
    variable: str = flag("", DATA, "variable of a NetCDF or Zarr file, or its place from 0 on the last axis of an "
                         "array (time, node, variable)")
    node_table: str = flag("", DATA, "places of its nodes: a .csv with the columns name, lat, lon")
    graph: str = flag("", DATA, "graph of its nodes: a matrix (.csv, .npy) or edges from, to, weight (.csv)")
    unit: str = flag("", DATA, "unit of its values")
    support: str = flag("auto", DATA, "values that can occur; auto: as the dataset's card says, for --data_path "
                        "nonnegative where the smallest training value is 0 and no later one is below; if half of a "
                        "node's training values or more equal its largest one, no forecast of it is above that",
                        choices=("auto", "any", "nonnegative"))
    highest: float = flag(None, DATA, "largest value that can occur, as 100 for percentages: no forecast is above it")
    scaling: str = flag("auto", DATA, "mean and spread that standardize values: those of the field, as published "
                        "(field), of each node (node), of its logarithm (log); auto: log where changes grow with the "
                        "level of positive values, node where a spread differs by more than 10 times or a level by "
                        "more than 10 spreads from the field's, else field; all but field leave outliers out",
                        choices=("auto", "log", "node", "field"))
    split: str = flag("", DATA, "shares of training, validation and test windows, 0.6,0.2,0.2 if not given, or the two "
                      "times at which validation and test begin, as 2013-09-01,2013-11-01")
    training_span: str = flag("targets", DATA, "steps that scaler and spectral scale are estimated from: up to the "
                              "last training target, or history, as published", choices=("targets", "histories"))
    data_dir: str = flag("", DATA, "folder of the arrays (else COST_DATA_DIR, else data/dataset)")
    history_len: int = flag(12, DATA, "past steps that a forecast sees", minimum=1)
    predict_len: int = flag(12, DATA, "future steps that it covers", minimum=1)
    missing: str = flag("error", DATA, "missing values (NaN): refuse them (error), or leave them out of every loss, "
                        "statistic and score, and show the networks where they are (mask)", choices=("error", "mask"))
    null_value: float = flag(None, DATA, "a number that stands for a missing value in the file; needs --missing mask")
    covariates: str = flag("", DATA, "a file of variables that are known at every step, also in the future (holidays, "
                           "weather forecasts): a column for each, or an array (time, node, covariate)")
    lags: str = flag("auto", DATA, "lags in steps, as 24,168: values that many steps before each step are inputs too; "
                     "24+48+72: their mean; auto: a day, a week, a year or another period, where the training part "
                     "repeats itself so, and the mean over three times the shortest; none: no lags")
    oracle_nodes: int = flag(32, DATA, "nodes of the synthetic field Oracle", minimum=1)
    oracle_steps: int = flag(4000, DATA, "time steps of the synthetic field Oracle", minimum=1)
    oracle_length_scale: float = flag(0.3, DATA, "range of the correlation of Oracle, in sides of its square", above=0)
    oracle_skew: float = flag(0.0, DATA, "skewness of Oracle; 0: Gaussian", minimum=0, maximum=2)
    batch_size: int = flag(8, TRAINING, "windows per training step", minimum=1)
    val_batch_size: int = flag(32, TRAINING, "windows per validation step", minimum=1)
    patience: int = flag(5, TRAINING, "stop after this many epochs without a better validation loss", minimum=1)
    lr_decay: float = flag(0.4, TRAINING, "factor on the learning rate after 40 %% of the epochs", above=0, maximum=1)
    weight_decay: float = flag(1e-5, TRAINING, "weight decay of Adam", minimum=0)
    amp: bool = flag(False, TRAINING, "train in bfloat16 where that is safe (autocast)")
    compile: bool = flag(False, TRAINING, "compile the network with torch.compile (slow start, faster steps)")
    device: str = flag("auto", RUN, "auto, cpu, or cuda:N")
    seed: int = flag(0, RUN, "seed of weights, order, noise and members", minimum=0, maximum=2**63 - 1)
    save_dir: str = flag("save", RUN, "folder of the run folders")
    run_name: str = flag("", RUN, "suffix of the run folder, to keep variants apart")
    overwrite: bool = flag(False, RUN, "run again although the run folder holds a finished run")
    resume: str = flag("auto", RUN, "resume an unfinished run of these settings (auto), or start over (never)",
                       choices=("auto", "never"))
    save_minutes: float = flag(10.0, RUN, "minutes between saved states, beside those after each epoch", above=0)
    keep_states: bool = flag(False, RUN, "keep the saved states of a finished run, to replace a damaged model.pt")
    dry_run: bool = flag(False, RUN, "print the resolved settings and the sizes, then stop")


DATA_FLAGS = tuple(name for name, item in CommonConfig.__dataclass_fields__.items() if item.metadata["group"] == DATA)
OF_OWN_FILE = ("freq", "start", "variable", "node_table", "graph", "unit")  # flags that only --data_path reads
PATHS = ("data_path", "node_table", "graph", "covariates")  # made absolute: a run finds them from any folder


def as_flags(values: dict) -> str:
    """Flags with their values, quoted for a shell."""
    return " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in values.items())


@dataclass(frozen=True)
class PretrainConfig(CommonConfig):
    """Flags of stage 1, the deterministic mean model."""

    mean_model: str = flag("stid", NETWORK, "backbone of the mean model", choices="mean_model")
    objective: str = flag("quantiles", TRAINING, "what the mean model minimises: squared error (mse), absolute error "
                          "(mae), or the pinball loss of 19 quantiles (quantiles)", choices="objective")
    select: str = flag("loss", TRAINING, "validation loss that chooses the epoch: that of training (loss), or the mean "
                       "absolute error (mae, as published)", choices=("loss", "mae"))
    climatology: bool = flag(True, NETWORK, "give the mean model the climatology at the steps of history and horizon")
    tokens: int = flag(8, NETWORK, "tokens through which stid mixes nodes; 0: every node on its own", minimum=0)
    mean_channels: int = flag(32, NETWORK, "width of each embedding of the mean model", minimum=1, alias="channels")
    mean_calendar_channels: int = flag(0, NETWORK, "width of its calendar embeddings; 0: as --mean_channels",
                                       minimum=0, alias="calendar_channels")
    mean_layers: int = flag(4, NETWORK, "blocks of the mean model", minimum=0, maximum=1000, alias="layers")
    mean_dropout: float = flag(0.15, NETWORK, "dropout of the mean model", minimum=0, maximum=0.9, alias="dropout")
    networks: int = flag(3, NETWORK, "networks whose outputs are averaged", minimum=1, maximum=100)
    linear_modes: int = flag(16, NETWORK, "modes common to all nodes whose linear forecast corrects that of the "
                             "networks, weighted by its skill on the validation part; 0: off", minimum=0)
    base: str = flag("auto", TRAINING, "after training, mix the networks with the best simple forecasters (last "
                     "value, recent level, lags, ridge), by their skill in validation", choices=("auto", "none"))
    recalibrate: bool = flag(True, TRAINING, "correct biases and widths of quantiles that the validation part shows")
    mean_epochs: int = flag(16, TRAINING, "epochs of stage 1, at most", minimum=1, alias="epochs")
    mean_lr: float = flag(3e-3, TRAINING, "learning rate of Adam in stage 1", above=0, alias="lr")
    mean_ema: float = flag(0.99, TRAINING, "decay of the averaged weights of stage 1, which are then scored and kept; "
                           "0: off", minimum=0, maximum=0.99999, alias="ema")


@dataclass(frozen=True)
class TrainConfig(CommonConfig):
    """Flags of stage 2, the diffusion model of the residual."""

    mean_run: str = flag("", DATA, "folder of the stage-1 run (else that of the same dataset, lengths, recipe and run "
                         "name, or without a run name)")
    margin: str = flag("auto", DIFFUSION, "what is diffused: the residual over the fluctuation scale (scaled), also "
                       "mapped to a normal distribution by the quantiles of stage 1 (shaped), the residual (residual), "
                       "normal scores under these quantiles (quantile), or among training values of about the same "
                       "forecast (empirical); auto: empirical where no value can be negative and 90 %% of the "
                       "training values are 0, or, but for counts, 40 %% of those at times of the day (or other "
                       "cycle) at which their node is not always 0; scaled for counts or without --scale quantiles, "
                       "else shaped",
                       choices="margin")
    noise: str = flag("covariance", DIFFUSION, "noise of the diffusion: with the covariance of residuals over nodes "
                      "and steps, by class of the fluctuation scale (covariance), or independent", choices="noise")
    modes: int = flag(1024, DIFFUSION, "modes over the nodes, at most, in --noise covariance", minimum=0)
    prediction: str = flag("v", DIFFUSION, "what the denoiser predicts", choices="prediction")
    scale: str = flag("quantiles", DIFFUSION, "fluctuation scale: spread of training residuals by node and time of the "
                      "calendar's first cycle (cycle), times the spread of the quantiles of stage 1 (quantiles); of "
                      "each node, from the spectrum of its training series, as published (spectrum); one for the "
                      "field (global)", choices="scale")
    scale_threshold: float = flag(0.1, DIFFUSION, "--scale spectrum: amplitude, as a share of a node's largest, below "
                                  "which a component is fluctuation", above=0)
    endpoint: str = flag("none", DIFFUSION, "endpoint of the diffusion: 0 (none), or the fluctuation scale with random "
                         "signs (signed), as published", choices=("none", "signed"))
    condition_mean: bool = flag(True, DIFFUSION, "give the denoiser the mean")
    condition_scale: bool = flag(True, DIFFUSION, "give the denoiser the logarithm of the fluctuation scale")
    center: bool = flag(True, DIFFUSION, "subtract their mean from the standardized residuals of an ensemble: its mean "
                         "then has no sampling error")
    denoiser: str = flag("mlp", NETWORK, "network: of the project (mlp), or that of the authors' release (stid)",
                         choices="denoiser", alias="eps_model")
    diffusion_channels: int = flag(32, NETWORK, "width of the input embedding", minimum=1, alias="channels")
    diffusion_layers: int = flag(2, NETWORK, "residual blocks of the denoiser", minimum=0, maximum=1000, alias="layers")
    diffusion_embedding: int = flag(32, NETWORK, "width of node and calendar parts", minimum=1, alias="embedding")
    diffusion_dropout: float = flag(0.15, NETWORK, "dropout of the denoiser", minimum=0, maximum=0.9, alias="dropout")
    diffusion_epochs: int = flag(20, TRAINING, "epochs of stage 2, at most", minimum=1, alias="epochs")
    diffusion_lr: float = flag(3e-3, TRAINING, "learning rate of Adam in stage 2", above=0, alias="lr")
    diffusion_ema: float = flag(0.99, TRAINING, "decay of the averaged weights of stage 2, which are then scored and "
                                "kept; 0: off", minimum=0, maximum=0.99999, alias="ema")
    val_windows: int = flag(0, TRAINING, "validation windows scored after each epoch, evenly spread; 0: all", minimum=0)
    diffusion_steps: int = flag(50, DIFFUSION, "steps N of the forward process", minimum=1)
    noise_schedule: str = flag("quadratic", DIFFUSION, "growth of beta over the steps", choices="noise_schedule")
    beta_first: float = flag(0.0, DIFFUSION, "first noise variance; 0: 0.0001", minimum=0, maximum=0.999)
    beta_last: float = flag(0.0, DIFFUSION, "last noise variance; 0: 0.5", minimum=0, maximum=0.999)
    nsample: int = flag(50, SAMPLING, "members of the ensemble", minimum=2)
    members: str = flag("random", SAMPLING, "kind of members: random draws, or quantiles at equidistant levels in the "
                        "rank order of draws", choices="members")
    sampler: str = flag("adams", SAMPLING, "sampler", choices="sampler")
    sample_steps: int = flag(10, SAMPLING, "network calls per member, 1 to --diffusion_steps", minimum=1)
    sample_batch: int = flag(0, SAMPLING, "members sampled at a time; 0: by the number of nodes", minimum=0)
    sample_precision: str = flag("float32", SAMPLING, "arithmetic of sampling", choices=("float32", "bfloat16"))
    test_windows: int = flag(0, SAMPLING, "test windows to score, evenly spread; 0: all", minimum=0)
    threshold: float = flag(None, SAMPLING, "also score the event of a value above this one, in the field's unit")
    cross_check: int = flag(0, SAMPLING, "test windows whose CRPS is recomputed with properscoring", minimum=0)


RECIPES = {
    "cost": {},
    "published": {
        CommonConfig: dict(support="any", scaling="field", training_span="histories", lags="none"),
        PretrainConfig: dict(objective="mse", select="mae", patience=50, climatology=False, tokens=0, networks=1,
                             linear_modes=0, base="none", recalibrate=False, mean_epochs=50, mean_lr=1e-3,
                             mean_ema=0.0),
        TrainConfig: dict(margin="residual", noise="independent", prediction="noise", scale="spectrum",
                          endpoint="signed", condition_mean=False, condition_scale=False, center=False, denoiser="stid",
                          diffusion_channels=128, diffusion_layers=8, diffusion_epochs=50, diffusion_lr=1e-3,
                          diffusion_ema=0.0, sampler="ancestral", sample_steps=50),
    },
    "copula": {TrainConfig: dict(margin="quantile", members="quantiles")},
}
"""Values of both stages that differ from the defaults, which are those of `cost`."""

_PROTOCOL = dict(lags="none", scaling="field")  # of the published tables
_OURS = {
    "SST": {CommonConfig: dict(batch_size=32, **_PROTOCOL), PretrainConfig: dict(mean_lr=1e-3)},
    "BikeDC": {CommonConfig: _PROTOCOL, PretrainConfig: dict(mean_epochs=30, networks=1)},
    "TaxiBJ": {CommonConfig: dict(batch_size=24, **_PROTOCOL)},
    "Los_Speed": {CommonConfig: dict(batch_size=24, **_PROTOCOL), PretrainConfig: dict(mean_lr=1e-3)},
    "NYCFlights": {CommonConfig: dict(batch_size=64, scaling="field"), PretrainConfig: dict(mean_epochs=24)},
    "Oracle": {CommonConfig: dict(batch_size=64, lags="none")},
    **{name: {CommonConfig: _PROTOCOL} for name in ("MobileNJ", "MobileSH", "CrowdBJ", "CrowdBM", "SolarPower")},
}
PRESETS = {
    "cost": _OURS,
    "copula": _OURS,
    "published": {
        "SST": {CommonConfig: dict(batch_size=32),
                PretrainConfig: dict(mean_channels=64, mean_calendar_channels=32, mean_layers=8)},
        **{name: {CommonConfig: dict(batch_size=24)} for name in ("BikeDC", "TaxiBJ", "Los_Speed")},
        **{name: {CommonConfig: dict(batch_size=64)} for name in ("NYCFlights", "Oracle")},
    },
}
"""Choices per recipe and dataset; those of `published` are of the authors' scripts, for the datasets that they have."""

WITHOUT_EFFECT = {
    "mean_model": {"itransformer": ("climatology", "tokens", "mean_calendar_channels"),
                   "dlinear": ("climatology", "tokens", "mean_calendar_channels", "mean_channels", "mean_layers",
                               "mean_dropout")},
    "margin": dict.fromkeys(("quantile", "empirical"), (
        "scale", "scale_threshold", "condition_mean", "condition_scale", "center")),
    "scale": {name: ("scale_threshold",) for name in ("quantiles", "cycle", "global")},
    "noise": {"independent": ("modes",)},
}
"""Flags that a choice does not read."""


def parse_config(config_class, choices: dict, arguments: list[str] | None = None):
    """The command line as a `config_class`; a mistake ends the program with one line and exit status 2.

    Flags of the other stage are accepted and named in a note, so that one line of flags serves both programs.
    choices: see `FlagParser.add_flags`.
    """
    parser, other_parser = FlagParser(config_class.__doc__), FlagParser("the other stage")
    other_stage = TrainConfig if config_class is PretrainConfig else PretrainConfig
    parser.add_flags(config_class, choices)
    other_parser.add_flags(other_stage, choices)
    arguments = sys.argv[1:] if arguments is None else arguments
    given, others = parser.parse_known_args(arguments)
    others, unknown = other_parser.parse_known_args(others)
    parser.refuse_unknown(unknown, *other_parser._option_string_actions)
    given, typed = with_own_data(vars(given)), {word.split("=")[0] for word in arguments}
    older = {item.metadata["alias"]: item.name for item in dataclasses.fields(config_class) if item.metadata["alias"]}
    unused = {"on this stage, read by the other one": [item.name for item in dataclasses.fields(other_stage)
                                                       if item.name in others]}
    config = resolve(config_class, given)
    for kind, unread in WITHOUT_EFFECT.items():
        chosen = getattr(config, kind, None)
        unused[f"with --{kind} {chosen}"] = [name for name in unread.get(chosen, ()) if name in given]
    notes = [", ".join(f"--{old} is now --{name}" for old, name in older.items() if f"--{old}" in typed)]
    notes += [f"--{', --'.join(names)}: no effect {where}" for where, names in unused.items() if names]
    for note in filter(None, notes):
        print(f"note: {note}", file=sys.stderr)
    check_config(config, parser)
    return config


def resolve(config_class, given: dict):
    """The configuration of a stage: what is given, else preset of the dataset, else recipe, else default."""
    recipe = given.get("recipe", CommonConfig.recipe)
    preset, values = PRESETS[recipe].get(given.get("data_name", CommonConfig.data_name), {}), {}
    for layer in (RECIPES[recipe], preset):
        values |= layer.get(CommonConfig, {}) | layer.get(config_class, {})
    return dataclasses.replace(config_class(), **values | given)


def with_own_data(given: dict) -> dict:
    """Flags with absolute paths, and with a `data_name` made of that of `--data_path` where none is given."""
    given = given | {name: str(Path(given[name]).expanduser().absolute()) for name in PATHS if given.get(name)}
    if not given.get("data_path"):
        return given
    return {"data_name": re.sub(r"[^\w-]+", "_", Path(given["data_path"]).name.split(".")[0]) or "data", **given}


def check_config(config, parser: argparse.ArgumentParser) -> None:
    """Refuse text and combinations of flags that cannot work."""
    for name in ("run_name", "data_name") if config.data_path else ("run_name",):
        text = getattr(config, name)
        if not re.fullmatch(r"[\w.-]*", text) or set(text) == {"."}:
            parser.error(f"--{name} {text!r}: choose letters, digits, '_', '-' and '.'")
    alone = [f"--{name}" for name in OF_OWN_FILE if getattr(config, name) and not config.data_path]
    if alone:
        parser.error(f"{', '.join(alone)}: describes a file of your own; give it by --data_path FILE")
    if not re.fullmatch(r"none|auto|\d+([,+]\d+)*", config.lags):
        parser.error(f"--lags {config.lags}: expected auto, none, or numbers of steps, as 24,168")
    if config.null_value is not None and config.missing != "mask":
        parser.error(f"--null_value {config.null_value:g} says what is missing: add --missing mask")
    if isinstance(config, TrainConfig) and config.sample_steps > config.diffusion_steps:
        parser.error(f"--sample_steps {config.sample_steps}: choose 1 to {config.diffusion_steps}, "
                     "the number of --diffusion_steps")


class FlagParser(argparse.ArgumentParser):
    """A parser of flags that are fields of a configuration; an error is one line."""

    def __init__(self, description: str):
        super().__init__(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # argparse does not know -1e20

    def error(self, message: str):
        self.exit(2, f"error: {one_line(message)} ({self.prog} --help lists all flags)\n")

    def parse_known_args(self, args=None, namespace=None):
        """Add `--overwrite` where a flag names a file to write (`output_path`), and refuse files that exist without it.

        The default path of a flag belongs to the script and may exist.
        """
        outputs = [action for action in self._actions if action.type is output_path]
        if outputs and "--overwrite" not in self._option_string_actions:
            self.add_argument("--overwrite", action="store_true", default=False,
                              help="replace files to write that exist")
        given, unknown = super().parse_known_args(args, namespace)
        seen = set()
        for action in outputs:
            path, name = getattr(given, action.dest, None), action.option_strings[0]
            if not path:
                continue
            if path != action.default:
                self.refuse_existing(name, path, given)
            if path.absolute() in seen:
                raise ValueError(f"{name} {path}: another flag writes there too; choose another name")
            seen.add(path.absolute())
        return given, unknown

    def parse_args(self, args=None, namespace=None):
        given, unknown = self.parse_known_args(args, namespace)
        self.refuse_unknown(unknown)
        return given

    def refuse_unknown(self, unknown: list[str], *others: str) -> None:
        """An error for the first unknown argument, with flags like it, of this parser or of `others`."""
        if unknown:
            known = dict.fromkeys([*self._option_string_actions, *others])
            near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=3)
            self.error(f"unknown argument {unknown[0]}" + (f"; did you mean {', '.join(near)}?" if near else ""))

    def refuse_existing(self, name: str, path: Path, given: argparse.Namespace) -> None:
        """Raises: ValueError where the file of the flag `name` exists, and `--overwrite` is not given."""
        another = rank_from_environment() > 0  # the first process may have written it
        if os.path.lexists(path) and not given.overwrite and not another:
            raise ValueError(f"{name} {path}: it exists; choose another name, or --overwrite to replace it")

    def add_paths(self) -> None:
        """Flags for files of a run that have moved since its training."""
        for name in PATHS:
            self.add_argument(f"--{name}", default="", help=f"file of the run's --{name}, if it has moved; its content "
                              "must be the same")

    def add_flags(self, config_class, choices: dict, names: tuple[str, ...] | None = None, default: str = "") -> None:
        """Add the fields of a configuration (or those of `names`); flags not given are not set.

        choices: accepted values of the flags whose names are open lists, e.g. {"sampler": SAMPLERS}.
        default: what a flag is where it is not given, in words, if not the default of the configuration.
        """
        groups = {}
        for item in dataclasses.fields(config_class):
            if names is not None and item.name not in names:
                continue
            name = item.metadata["group"]
            group = groups[name] = groups.get(name) or self.add_argument_group(name)
            value = default or ("none" if item.default in ("", None) else item.default)
            text = f"{item.metadata['help']} (default: {value})"
            if allowed := _allowed(item, choices):
                text = f"{text}; one of {', '.join(allowed)}"
            kind = dict(action=argparse.BooleanOptionalAction) if item.type is bool else dict(
                type=_reader(item, choices), metavar=item.type.__name__.upper())
            spellings = filter(None, (item.name, item.metadata["alias"]))
            group.add_argument(*(f"--{name}" for name in spellings), **kind, help=text)


def _allowed(item: dataclasses.Field, choices: dict) -> tuple[str, ...] | None:
    """The values that a flag accepts; None: all of its type and range."""
    allowed = item.metadata["choices"]
    return choices.get(allowed) and tuple(choices[allowed]) if isinstance(allowed, str) else allowed


def _reader(item: dataclasses.Field, choices: dict):
    """The function text of a flag -> its value. Raises: argparse.ArgumentTypeError with the accepted values."""
    allowed, metadata = _allowed(item, choices), item.metadata
    largest = LARGEST_NUMBER if metadata["maximum"] is None and item.type is int else metadata["maximum"]

    def read(text: str):
        try:
            value = item.type(text)
        except ValueError:
            kind = {int: "a whole number", float: "a number"}[item.type]
            raise argparse.ArgumentTypeError(f"{text!r} is not {kind}") from None
        if allowed:
            value = {name.lower(): name for name in allowed}.get(str(value).lower(), value)
        if allowed and value not in allowed:
            near = difflib.get_close_matches(text, allowed, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise argparse.ArgumentTypeError(f"{text!r} is unknown{hint} Choose one of {', '.join(allowed)}")
        if item.type is float and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        for words, holds, bound in (("at least", operator.ge, metadata["minimum"]),
                                    ("above", operator.gt, metadata["above"]), ("at most", operator.le, largest)):
            if bound is not None and not holds(value, bound):
                raise argparse.ArgumentTypeError(f"{text} is out of range; choose a value {words} {bound}")
        return value

    return read


KINDS = {int: numbers.Integral, float: numbers.Real, str: str, bool: bool}  # that values of a flag's type may have


def known_settings(settings: dict, config_class, choices: dict, source: Path) -> dict:
    """All settings of a stage in a checkpoint `source`, with the default of flags that are newer than it.

    Raises: ValueError that begins with `source` for a value that the flag does not accept.
    """
    settings = {**settings_of(config_class()), **settings}
    for item in dataclasses.fields(config_class):
        value = settings.get(item.name, item.default)
        if value is item.default:
            continue
        try:
            if not isinstance(value, KINDS[item.type]) or isinstance(value, bool) != (item.type is bool):
                raise argparse.ArgumentTypeError(f"{value!r} is not of type {item.type.__name__}")
            if item.type is not bool:
                settings[item.name] = _reader(item, choices)(str(value))
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{source}: its --{item.name} cannot be: {error}") from None
    return settings


def output_path(text: str) -> Path:
    """The path of a flag that names a file to write. `FlagParser` refuses one that exists.

    Raises: argparse.ArgumentTypeError where it could not be written, before the work.
    """
    try:
        check_writable(Path(text))
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)

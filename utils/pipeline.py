"""Joins data, models and training: what both programs and the scripts share, one function for each step."""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import models
from data.covariates import read_covariates
from data.fields import Field, OwnFile, load_field
from data.readers import READERS, ending_of
from data.registry import DATASETS, DEFAULT_DATA_DIR, data_dir_from
from data.scaling import BLOCK, add_at
from data.summary import FieldSummary
from data.synthetic import OracleSettings
from data.windows import Batch, WindowedField, WindowSettings
from models import Forecaster, MeanModel, OnlineCalibration
from models.base import FEW_WINDOWS, independent
from models.baselines import BASELINES, POOLED, SIMPLE, equidistant
from models.diffusion import NOISE_SCHEDULES, SAMPLERS
from models.layers import own_rows
from models.margins import OVERSAMPLED
from models.quantiles import smooth_members, to_support
from utils.config import DATA_FLAGS, PATHS, PretrainConfig, TrainConfig, as_flags, known_settings, resolve
from utils.scores.evaluation import evaluate_ensemble, mean_over_windows, rows_at_once
from utils.training import checkpoint
from utils.training.distributed import SINGLE_PROCESS, Processes, autocast
from utils.training.reproducibility import MemberNoise, key, keyed_normal

CHOICES = {
    "mean_model": models.MEAN_MODELS, "objective": models.OBJECTIVES, "margin": models.MARGINS, "noise": models.NOISES,
    "prediction": models.PREDICTIONS, "scale": models.SCALES, "denoiser": models.DENOISERS, "members": models.MEMBERS,
    "sampler": SAMPLERS, "noise_schedule": NOISE_SCHEDULES,
}
STATISTICS_WINDOWS, STATISTICS_VALUES = 1000, 40_000_000  # at most, that linear models are estimated from
PREPARED_BYTES = 1 << 29  # of stage-1 output about the windows of a split, at most, that is kept for all epochs
MANY_ZEROS = 0.4, 0.9  # shares of zeros from which on `--margin auto` is empirical, see `choose_margin`
GOLDEN_RATIO = (5**0.5 - 1) / 2
WINDOWS_AT_ONCE = 8  # of a baseline
TASK = "data_name", "history_len", "predict_len"  # flags that both stages must share


# --- data ----------------------------------------------------------------------------------------------------

def from_flags(kind, settings: dict, prefix: str = ""):
    """The dataclass `kind` with the values of those fields that are flags, named with a prefix."""
    return kind(**{item.name: settings[prefix + item.name] for item in dataclasses.fields(kind)
                   if prefix + item.name in settings})


def read_field(settings: dict, data_dir: str, missing: str, like: FieldSummary | None = None) -> Field:
    """The field of a configuration, see `data.fields.load_field`."""
    own = from_flags(OwnFile, settings) if settings["data_path"] else None
    return load_field(settings["data_name"], data_dir_from(data_dir), own, missing, settings["null_value"],
                      from_flags(OracleSettings, settings, "oracle_"), like)


def open_windows(settings: dict, data_dir: str, device: torch.device | str,
                 like: FieldSummary | None = None) -> WindowedField:
    """The dataset of a configuration, as windows on the device; like: see `data.fields.load_field`."""
    field = read_field(settings, data_dir, settings["missing"], like)
    covariates = None
    if path := settings["covariates"]:
        covariates = read_covariates(path, field.calendar, field.node_names)
        field = field.with_notes(*(f"--covariates {path}: {note}" for note in covariates.notes))
    data = WindowedField(field, settings["history_len"], settings["predict_len"], from_flags(WindowSettings, settings),
                         covariates, device)
    for note in data.field.notes:
        print(f"note: {data.field.name}: {note}", file=sys.stderr)
    return data


def located(settings: dict, **moved: str) -> dict:
    """Settings of a run with the new paths of files that have `moved`, by flag; "" where one has not."""
    for name, path in moved.items():
        if path and not settings[name]:
            raise ValueError(f"--{name} {path}: the run was trained " + (
                f"on the dataset {settings['data_name']}: give its folder by --data_dir" if name == "data_path" else
                "without one"))
    settings = settings | {name: path for name, path in moved.items() if path}
    for name in PATHS:
        if settings[name] and not Path(settings[name]).expanduser().exists():
            hint = "" if moved.get(name) else f"; if the run's file has moved, give it by --{name} FILE"
            raise FileNotFoundError(f"--{name} {settings[name]}: there is no such file{hint}")
    return settings


def refuse_input(flag: str, output: Path | None, config: dict, data_dir: str, *others: str) -> None:
    """Raises: ValueError where a file to write is one that a run of this configuration reads, or one of `others`."""
    files = [config[name] for name in PATHS] + [*others]
    if not config["data_path"]:
        spec = DATASETS.get(config["data_name"])
        files += [folder / file for file in (spec.files if spec else ())
                  for folder in (data_dir_from(data_dir), DEFAULT_DATA_DIR)]
    if output and any(file and output.resolve() == Path(file).expanduser().resolve() for file in files):
        raise ValueError(f"{flag} {output}: that is the file of the data; choose another name")


def open_run_data(content: dict, data_dir: str, device: torch.device | str, **moved: str) -> WindowedField:
    """The data that a checkpoint was trained on; moved: see `located`. Raises: ValueError with the differences."""
    like = FieldSummary.from_state(content["field"]) if "field" in content else None  # stage 1 keeps none
    data = open_windows(located(content["config"], **moved), data_dir, device, like)
    trained = content["data"] | content.get("fingerprint", {})
    differing = checkpoint.differences(data.metadata() | data.fingerprint, trained)
    if differing:
        raise ValueError(f"{data.field.name}: other data than the run was trained on: {', '.join(differing)}")
    return data


def open_run_field(content: dict, data_dir: str, data_path: str = "", variable: str = "",
                   start: str = "") -> tuple[Field, int]:
    """The field that a checkpoint forecasts, from its own file or a newer one, and where its last segment begins.

    That is a position in the series of the run. variable: of the newer file, else that of the run for one of several
    variables; start: of a newer file without times. Raises: ValueError for another field, with the differences.
    """
    field, config = FieldSummary.from_state(content["field"]), content["config"]
    config = config | {"node_table": "", "graph": "", "covariates": ""}  # the checkpoint holds what a forecast needs
    if data_path:  # it may be of another format
        newer, older = (READERS.get(ending_of(path)) for path in (data_path, config["data_path"]))
        variable = variable or config["variable"] * (newer is older)
        config = config | {"data_path": data_path, "start": start, "variable": variable}
    else:
        config = located(config)
    found = read_field(config, data_dir, "mask", field)
    for note in found.notes:
        print(f"note: {config['data_path']}: {note}", file=sys.stderr)
    return found, field.step_at(found.calendar.times[found.segments[-1][0]])


def training_batches(data: WindowedField, config, processes: Processes, generator: torch.Generator):
    """Shuffled training batches of `--batch_size` windows, shared by the processes."""
    return data.batches("train", config.batch_size, generator).share_batches(processes.rank, processes.count)


def statistics_batches(data: WindowedField, config, split: str = "train"):
    """Batches of training or calibration windows that linear models are estimated from; fewer of a larger field."""
    values = (data.history_len + data.predict_len) * data.num_nodes
    enough = min(STATISTICS_WINDOWS, max(1, STATISTICS_VALUES // values))
    if split == "calibration":
        return data.calibration(config.val_batch_size, enough)
    return data.batches(split, config.val_batch_size, limit=enough)


def check_shares(data: WindowedField, processes: Processes, **limits: int) -> None:
    """Refuse more processes than windows to score, of which there are at most `limits` of each split."""
    for split, limit in limits.items():
        data.batches(split, 1, limit=limit).share_windows(processes.rank, processes.count)


def note_few_windows(data: WindowedField) -> None:
    """Print a note where the validation part holds few independent windows."""
    starts = data.calibration(1).starts
    found = independent(starts, data.predict_len)
    if found < FEW_WINDOWS:
        print(f"note: {data.field.name}: {len(starts)} validation windows, whose futures overlap, are worth {found} "
              "independent ones: the network gets a share beside the simple forecasters only where it is clearly "
              "better", file=sys.stderr)


# --- stage 1 -------------------------------------------------------------------------------------------------

def mean_loss(model: MeanModel, batch: Batch, config, device: torch.device) -> torch.Tensor:
    with own_rows(batch.rows), autocast(device, config.amp):
        return model.loss(batch.future, batch.context)


def mean_validation_loss(model: MeanModel, data: WindowedField, config, processes: Processes) -> torch.Tensor:
    """The validation loss of stage 1: that of training, or the mean absolute error (`--select`)."""
    def loss(batch):
        if config.select == "loss":
            return model.loss(batch.future, batch.context)
        return ((model(batch.context) - batch.future).abs() * batch.counts).mean()

    return mean_over_windows(loss, data.batches("validation", config.val_batch_size), processes)


def load_mean_model(config: TrainConfig, data: WindowedField) -> tuple[MeanModel, dict, Path]:
    """The stage-1 model that a stage-2 run builds on, its settings and checkpoint; in a dry run perhaps untrained.

    Raises: ValueError with the command that trains it, where there is none or one that does not fit.
    """
    folder = _mean_folder(config)
    path, command = folder / checkpoint.CHECKPOINT, _pretrain_command(config)
    again = command + " --overwrite" * (folder == checkpoint.run_folder(config.save_dir, "mean", config))
    if config.dry_run and not path.exists():
        print(f"note: {path}: there is no stage-1 model yet")
        settings = checkpoint.settings(_mean_preset(config))
        return models.build_mean_model(settings, data.metadata()), settings, path
    if not path.exists():
        raise ValueError(f"{path}: there is no stage-1 model; run first: {command} (or give --mean_run FOLDER)")
    content = checkpoint.load_checkpoint(path)
    if content.get("stage") != "mean":
        raise ValueError(f"{folder}: not a stage-1 run; run first: {command}")
    if not (folder / checkpoint.METRICS).exists():
        raise ValueError(f"{folder}: stage 1 has not finished; the command that began it resumes it")
    with checkpoint.built_from(path):
        settings = known_settings(content["config"], PretrainConfig, {}, path)
        found = {**settings, **content["data"], **content["fingerprint"]}
        wanted = {**data.metadata(), **{name: getattr(config, name) for name in (*TASK, "highest")}, **data.fingerprint}
        differing = checkpoint.differences(found, wanted)
    if settings["recipe"] != config.recipe and not config.mean_run:
        raise ValueError(f"{path}: stage 1 was trained with --recipe {settings['recipe']}, this stage has --recipe "
                         f"{config.recipe}: give both the same; run: {again}")
    if differing:
        others = as_flags({name: settings[name] for name in DATA_FLAGS if name in settings and name not in TASK
                           and settings[name] not in (None, getattr(config, name))})
        raise ValueError(f"{path}: the stage-1 model does not fit: {', '.join(differing)}; "
                         + (f"it was trained with {others}: give this stage the same, or " if others else "")
                         + f"run: {again}")
    with checkpoint.built_from(path):
        model = models.build_mean_model(settings, data.metadata())
        model.load_state_dict(content["weights"])
    return model, settings, path


def _mean_folder(config: TrainConfig) -> Path:
    """The stage-1 run of a stage-2 run: `--mean_run`, else that of its name, else that without a name, with a note."""
    if config.mean_run:
        return Path(config.mean_run).expanduser()
    own, shared = (checkpoint.run_folder(config.save_dir, "mean", dataclasses.replace(config, run_name=name))
                   for name in (config.run_name, ""))
    if (own / checkpoint.CHECKPOINT).exists() or not (shared / checkpoint.METRICS).exists():
        return own
    print(f"note: {own} is not there: stage 1 is that of {shared}", file=sys.stderr)
    return shared


def _mean_preset(config: TrainConfig) -> PretrainConfig:
    """Settings of stage 1 for the task and recipe of a stage-2 run."""
    return resolve(PretrainConfig, {name: getattr(config, name) for name in (*TASK, "recipe")})


def _pretrain_command(config: TrainConfig) -> str:
    """The command that trains stage 1 for a stage-2 run."""
    chosen = {name: getattr(config, name) for name in (*DATA_FLAGS, "recipe", "save_dir", "run_name")}
    defaults = dataclasses.asdict(_mean_preset(config)) | {"recipe": PretrainConfig.recipe}
    chosen = {name: value for name, value in chosen.items() if name in TASK or value != defaults[name]}
    return f"python main_pretrain.py {as_flags(chosen)}"


# --- stage 2 -------------------------------------------------------------------------------------------------

def choose_margin(config: TrainConfig, data: WindowedField, objective: str) -> TrainConfig:
    """The configuration with the margin that `--margin auto` stands for, on a stage 1 of this objective.

    It is empirical where no value is negative, and of the training values, or but for counts of those at times of the
    calendar's first cycle at which their node is not always 0 (as sunshine at night is), the shares MANY_ZEROS are 0.
    """
    if config.margin != "auto":
        return config
    calendar, sometimes = data.field.calendar, MANY_ZEROS[0]
    zero, known = torch.zeros(2, calendar.sizes[0], data.num_nodes)
    for part, slots in zip(data.training.split(BLOCK), calendar.slots[:, 0].split(BLOCK), strict=False):
        for table, counted in ((zero, part == 0), (known, ~part.isnan())):
            add_at(table, slots[:len(part)], counted.float())
    zeros, varying = zero.sum() / known.sum(), zero < known
    counts = torch.as_tensor(data.support[1]).any()
    intermittent = not counts and zero[varying].sum() >= sometimes * known[varying].sum() > 0
    if data.field.spec.nonnegative and (intermittent or zeros >= MANY_ZEROS[1]):
        print(f"note: {zeros:.0%} of the training values are 0: --margin empirical", file=sys.stderr)
        return dataclasses.replace(config, margin="empirical")
    shaped = objective == "quantiles" == config.scale and not counts
    return dataclasses.replace(config, margin="shaped" if shaped else "scaled")


def prepare_windows(model: Forecaster, batches) -> Callable[[Batch], torch.Tensor | None]:
    """The function batch of some of these windows, in time order -> the stage-1 output about them, computed once.

    None where that is too much to be kept: then the loss computes it at every step.
    """
    starts = batches.starts.to(next(model.parameters()).device)

    @functools.cache
    def of_all() -> torch.Tensor | None:
        parts = []
        for batch in batches:
            parts.append(model.prepare(batch.future, batch.context))
            if parts[0][0].nbytes * len(starts) > PREPARED_BYTES:
                return None
        return torch.cat(parts)

    def prepared(batch: Batch) -> torch.Tensor | None:
        kept = of_all()
        return None if kept is None else kept[torch.searchsorted(starts, batch.start)]

    return prepared


def validation_batches(data: WindowedField, config):
    return data.batches("validation", config.val_batch_size, limit=config.val_windows)


def validation_steps(start: torch.Tensor, count: int) -> torch.Tensor:
    """A diffusion step below `count` for each window: by multiples of the golden ratio, so any stretch visits all."""
    return (start.double() * GOLDEN_RATIO % 1 * count).long()


def validation_loss(model: Forecaster, data: WindowedField, config, processes: Processes = SINGLE_PROCESS,
                    prepared=lambda batch: None) -> torch.Tensor:
    """Loss on validation windows, each with a step and noise of its own that never change."""
    def loss(batch):
        shape = 3, *batch.future.shape[1:]
        noise = keyed_normal(key(config.seed, batch.start), shape).transpose(0, 1)
        step = validation_steps(batch.start, len(model.alpha_bar))
        return model.loss(batch.future, batch.context, prepared=prepared(batch), step=step, noise=noise)

    return mean_over_windows(loss, validation_batches(data, config), processes)


def training_loss(model: Forecaster, batch: Batch, prepared: torch.Tensor | None, config,
                  device: torch.device) -> torch.Tensor:
    with own_rows(batch.rows):
        return model.loss(batch.future, batch.context, prepared=prepared, precision=autocast(device, config.amp))


def corrected_sampler(sample, data: WindowedField, online: OnlineCalibration):
    """The function batch -> members in physical units, each window corrected by those before it."""
    def corrected(batch: Batch) -> torch.Tensor:
        members, seen = data.scaler.physical(sample(batch)), data.history_len
        return torch.stack([online.correct(data.field.values[first:first + seen], window, first + seen)
                            for first, window in zip(batch.start.tolist(), members, strict=True)])

    return corrected


def score_ensemble(model: Forecaster, settings: dict, data: WindowedField, split: str, device: torch.device,
                   processes: Processes = SINGLE_PROCESS, watch=None, online: OnlineCalibration | None = None
                   ) -> tuple[dict, dict]:
    """Forecast the windows of a split and score them: the scores of `metrics.json`, and those of each window.

    watch: see `evaluate_ensemble`; online: see `corrected_sampler`.
    """
    start = time.perf_counter()
    windows_at_once = max(1, rows_at_once(data.num_nodes, device, settings["sample_batch"]) // settings["nsample"])
    sample, physical = models.ensemble_sampler(model, settings, device), data.scaler.physical
    if online:
        sample, physical = corrected_sampler(sample, data, online), torch.Tensor.double
    scores, windows = evaluate_ensemble(
        sample, data.batches(split, windows_at_once, limit=settings["test_windows"]), physical, settings["nsample"],
        "quantiles" if settings["margin"] == "empirical" else settings["members"], processes, watch,
        settings["threshold"],
    )
    return {
        **{name: settings[name] for name in (*TASK, "seed", "recipe")},
        "split": split, "method": settings["recipe"],
        **{name: settings[name] for name in ("sampler", "sample_steps", "sample_precision")},
        **scores, "seconds_sample": time.perf_counter() - start,
    }, windows


# --- simple forecasters --------------------------------------------------------------------------------------

def baseline_sampler(name: str, data, model, settings: dict, kind: str = "random"):
    """The function batch -> members of a baseline, all of them values that the field can take.

    kind: "random" members, or the "quantiles" of their distribution in their rank order, for pooled fields by more
    members.
    """
    members, shape = settings["nsample"], (settings["predict_len"], data.num_nodes)
    drawn = OVERSAMPLED * members if kind == "quantiles" and name in POOLED else members
    card = None if settings.get("data_path") else DATASETS.get(settings["data_name"])
    support = data.support_where(card.nonnegative if card else data.scaler.nonnegative)  # whatever a recipe restricts
    outputs = {"mean": lambda batch: model(batch.context), "quantiles": lambda batch: model.predict(batch.context)}
    outputs = {kind: torch.no_grad()(output) for kind, output in outputs.items()} if model else {}
    fitted = BASELINES[name](data, members=drawn, **outputs)

    def sample(batch):
        rows = MemberNoise(settings["seed"], batch.start, drawn, shape)

        def noise(noise_index: int):
            return rows(noise_index, 0, len(batch.start) * drawn).unflatten(0, (-1, drawn))

        found = fitted(batch, equidistant(noise) if kind == "quantiles" else noise)
        return to_support(smooth_members(found, members) if drawn > members else found, *support)

    return sample


def score_baseline(sample, settings: dict, data: WindowedField, split: str, kind: str = "random",
                   processes: Processes = SINGLE_PROCESS, joint: bool = True) -> tuple[dict, dict]:
    """The scores of a `baseline_sampler`, and those of each window."""
    return evaluate_ensemble(
        sample, data.batches(split, WINDOWS_AT_ONCE, limit=settings["test_windows"]), data.scaler.physical,
        settings["nsample"], kind, processes, threshold=settings["threshold"], joint=joint)


def score_simple(settings: dict, data: WindowedField, split: str, processes: Processes = SINGLE_PROCESS,
                 joint: bool = True) -> dict[str, tuple[dict, dict]]:
    """Scores, and those of each window, of the simple forecasters that can be fitted, by name."""
    found = {}
    for name in SIMPLE:
        try:
            sample = baseline_sampler(name, data, None, settings)
        except ValueError:  # no season before the first window
            continue
        found[name] = score_baseline(sample, settings, data, split, processes=processes, joint=joint)
    return found

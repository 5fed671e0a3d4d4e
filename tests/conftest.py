"""What the tests share: threads, the published arrays, small fields whose every value is known."""

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import main_train
from data.calendar import make_calendar
from data.context import Context
from data.fields import Field
from data.registry import DATASETS, get_spec
from data.windows import Batch, WindowedField
from models import Forecaster, build_forecaster, build_mean_model
from utils.config import PretrainConfig, TrainConfig, resolve
from utils.training import checkpoint

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("COST_SHARED") or ROOT.parent / "shared") / "datasets"
"""The published arrays, which are not ours to commit: COST_SHARED, else beside the repository."""

needs_real_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the published arrays are not at hand: {SHARED} (set COST_SHARED)"
)

GPU = os.environ.setdefault("COST_TEST_GPU", os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
                            if torch.cuda.device_count() else "")
"""The GPU of tests/test_cuda.py, "" where there is none. It is hidden from all others, which fork processes."""
os.environ["CUDA_VISIBLE_DEVICES"] = ""

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))


ON_ANY_STAGE_1 = "--training_span", "targets", "--support", "auto"
"""Flags by which stage 2 of every recipe can be built on one stage 1, named by --mean_run."""


class Payload:
    """Unpickled, it makes a folder: the mark of code that ran."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def refusal_of(path: Path, read, **options) -> str:
    """The message with which read(path) refuses a file: one line that begins with the file."""
    with pytest.raises(ValueError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}:") and "allow_pickle" not in message and "\n" not in message
    return message


def random_values(steps: int, nodes: int, seed: int = 0) -> np.ndarray:
    """Values (time, node) around 20, in float32."""
    return np.random.default_rng(seed).normal(20, 5, (steps, nodes)).astype(np.float32)


def with_gaps(values: np.ndarray, share: float = 0.2, seed: int = 1) -> np.ndarray:
    """The values with this share of them missing at random places, as NaN."""
    return np.where(np.random.default_rng(seed).random(values.shape) < share, np.float32(np.nan), values)


def make_field(values, interval=(1, "hour"), start="2020-01-06", pair=None) -> Field:
    """A field of these values; `pair` = (steps of the training field, validation steps) makes it one of two."""
    values = torch.as_tensor(values)
    spec = dataclasses.replace(
        get_spec("Oracle"), interval=interval, num_nodes=values.shape[1], validation_steps=pair and pair[1]
    )
    segments = ((0, pair[0]), (pair[0], len(values))) if pair else ((0, len(values)),)
    names = tuple(f"node {node}" for node in range(values.shape[1]))
    return Field("Tiny", spec, values, make_calendar(start, interval, len(values)), segments, names,
                 missing_share=float(values.isnan().double().mean()), masked=bool(values.isnan().any()))


def parts_of(context: Context) -> dict[str, torch.Tensor]:
    """The tensors that a context has, by name."""
    return {name: value for name, value in vars(context).items() if value is not None}


def pick(batch: Batch, rows) -> Batch:
    """Some windows of a batch."""
    context = Context(**{name: value[rows] for name, value in parts_of(batch.context).items()})
    return Batch(context, batch.future[rows], batch.start[rows])


def alter(batch: Batch, **parts) -> Batch:
    """A batch with other parts of its context."""
    return dataclasses.replace(batch, context=dataclasses.replace(batch.context, **parts))


HISTORY, HORIZON, NODES, SIZES = 5, 3, 4, (24, 7)
METADATA = {"num_nodes": NODES, "calendar_sizes": list(SIZES), "support": None, "masked": False, "covariates": {},
         "lag_steps": []}
"""Of the windows that `make_batch` makes, as `WindowedField.metadata` has them."""


def make_batch(batch: int = 3) -> Batch:
    """Windows of random values, H + F = 5 + 3 steps of 4 nodes."""
    calendar = torch.stack([torch.randint(size, (batch,)) for size in SIZES], dim=1)
    context = Context(torch.randn(batch, HISTORY, NODES), calendar, torch.randn(batch, HISTORY + HORIZON, NODES))
    return Batch(context, torch.randn(batch, HORIZON, NODES), torch.randperm(1000)[:batch])


def make_forecaster(recipe: str = "cost", trained: bool = True, batches=None, masked: bool = False, support=None,
                    dropout: float = 0.0, **settings) -> Forecaster:
    """A small forecaster of a recipe, its statistics fitted; `trained`: its denoiser predicts something."""
    metadata = {**METADATA, "masked": masked, "support": support}
    lengths = {"history_len": HISTORY, "predict_len": HORIZON}
    small = {"mean_channels": 8, "mean_layers": 2, "mean_dropout": dropout}
    small_2 = {"diffusion_channels": 16, "diffusion_layers": 2, "diffusion_dropout": dropout, "diffusion_embedding": 8}
    first, second = (checkpoint.settings(resolve(stage, {"recipe": recipe, **lengths, **chosen})) for stage, chosen in (
        (PretrainConfig, small), (TrainConfig, {**small_2, "modes": 2, **settings})))
    model = build_forecaster(second, build_mean_model(first, metadata), metadata)
    batches = batches or [make_batch(40), make_batch(40)]
    model.fit_statistics(batches, batches, lambda: torch.tensor([0.3, 0.1, 1.0, 2.0]))
    if trained:
        torch.nn.init.normal_(model.denoiser.project.weight, std=0.1)
    return model


@pytest.fixture(autouse=True, scope="session")
def empty_pictures():
    """The picture of a tiny run takes longer than its training: it is left empty, except where a test restores it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main_train, "draw_forecast", lambda sample, data, path: path.touch())
        yield


@pytest.fixture
def hang_ups():
    """SIGHUP ends processes, also where the tests were started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def field() -> Field:
    """120 hours of 5 nodes."""
    return make_field(random_values(120, 5))


@pytest.fixture
def data(field) -> WindowedField:
    """Windows of 6 + 4 steps: 111 of them, 67 / 22 / 22."""
    return WindowedField(field, 6, 4)


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """Register values as the dataset `Tiny` of a data folder of their own: registered(values) -> that folder."""
    def register(values, name="Tiny", **metadata):
        folder = tmp_path / f"{name}_data"
        folder.mkdir(exist_ok=True)
        np.save(folder / "values.npy", values)
        monkeypatch.setitem(DATASETS, name, dataclasses.replace(
            get_spec("Oracle"), **{"synthetic": False, "files": ("values.npy",), "shape": (values.shape,),
                                   "num_nodes": int(np.prod(values.shape[1:])), **metadata}
        ))
        return folder

    return register

"""Draw whether the members of finished runs reproduce the observed dependence.

    python -m scripts.paper.joint_pictures save/diffusion/SST_12_12 save/diffusion/Los_Speed_12_12 --out docs/results

For each run, named after its folder: joint_<run>_members.png, where nodes form a grid or have coordinates, and from its
metrics.json joint_<run>_correlation.png and joint_<run>_regions.png.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from models import TrainedForecaster, ensemble_sampler, load_forecaster
from utils.config import FlagParser, TrainConfig
from utils.output import plots
from utils.output.forecasts import in_space
from utils.pipeline import open_run_data
from utils.program import run_main
from utils.training.checkpoint import METRICS, read_json
from utils.training.device import choose_device

MEMBERS = 3
PICTURES = "members", "regions", "correlation"


def path_of(out: Path, folder: Path, name: str) -> Path:
    return out / f"joint_{folder.resolve().name}_{name}.png"


def member_picture(run: TrainedForecaster, data) -> plt.Figure | None:
    """Some members beside the observation, at the last step of the middle test window; None without places of nodes."""
    field, middle = data.field, data.starts["test"][len(data.starts["test"]) // 2]
    if not field.grid and field.coordinates is None:
        return None
    window = plots.forecast_window(ensemble_sampler(run.model, run.checkpoint["config"], run.device), data, middle,
                                   np.arange(data.num_nodes))
    truth, members = window["truth"][-1], window["members"][:, -1]
    layers = (in_space(field, each) for each in (truth, members[:MEMBERS], members.mean(0)))
    return plots.member_maps(*layers, field.spec.unit, field.axes if field.grid else field.coordinates.T)


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("run_folders", type=Path, nargs="+", help="folders of finished stage-2 runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of the pictures")
    parser.add_flags(TrainConfig, {}, ("data_dir", "device"))
    parser.add_argument("--overwrite", action="store_true", default=False, help="replace pictures that exist")
    given = parser.parse_args(arguments)
    parser.refuse_existing("--out", (path_of(given.out, folder, name) for folder in given.run_folders
                                     for name in PICTURES), given)
    device = choose_device(getattr(given, "device", TrainConfig.device))
    given.out.mkdir(parents=True, exist_ok=True)
    for folder in given.run_folders:
        run = load_forecaster(folder, device)
        data = open_run_data(run.checkpoint, getattr(given, "data_dir", ""), device)
        joint = read_json(folder / METRICS)["joint"]
        curve = plots.correlation_curve(joint["correlation"]) if joint["correlation"]["forecast"] else None
        for name, figure in zip(PICTURES, (member_picture(run, data), plots.region_pit(joint), curve), strict=True):
            if figure:
                path = path_of(given.out, folder, name)
                plots.write_figure(figure, path)
                print(path)
    return 0


if __name__ == "__main__":
    run_main(main)

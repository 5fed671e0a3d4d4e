"""Divide the scores of runs on the synthetic field by those of the exact forecaster.

    python -m scripts.paper.score_oracle save/diffusion/Oracle_12_12 [FOLDER ...] [--json FILE] [--table FILE]

The exact forecaster draws as many members as the run has, of the same kind, from the field's known predictive
distribution given the history. "around stage 1" are these members centred on the stage-1 mean of the run, as its own
are: stage 2 is then seen without the errors of the mean. All are scored on the same test windows.
"""

import math
import statistics
from pathlib import Path

import torch

from data.synthetic import OracleField, OraclePredictive, OracleSettings, make_oracle
from data.windows import WindowedField
from models import MeanModel, load_forecaster
from models.margins import centred
from models.quantiles import reorder, z_of_members
from utils.config import FlagParser, output_path
from utils.output.tables import markdown
from utils.pipeline import from_flags, open_windows
from utils.program import run_main
from utils.scores import metrics
from utils.scores.evaluation import evaluate_ensemble, joint_scores
from utils.scores.joint import SCORES as JOINT
from utils.scores.joint import correlation_curve
from utils.training.checkpoint import METRICS, read_json, write_json, write_text

SHOWN = (*metrics.SCORES, "QICE_ties", "RMSE", "spread_skill")
PARTS = "ours", "exact", "ratio", "around_stage_1", "ratio_around_stage_1"  # of a comparison, in the order shown


def exact_members(predictive: OraclePredictive, members: int, generator: torch.Generator,
                  ensemble: str) -> torch.Tensor:
    """Members (batch, member, F, node) of the exact distribution: "random", or its "quantiles" in their rank order."""
    z = predictive.sample_z(members, generator)
    if ensemble == "quantiles":
        quantiles = z_of_members(members).to(z).view(-1, 1, 1) * predictive.z_std
        z = reorder(predictive.z.unsqueeze(1) + quantiles, z)
    return predictive.values(z)


def score_exact(data: WindowedField, oracle: OracleField, members: int, limit: int = 0, ensemble: str = "random",
                mean_model: MeanModel | None = None) -> dict:
    """Scores of an ensemble of the exact predictive distribution on test windows of the synthetic field.

    mean_model: the members are centred on its output.
    """
    generator = torch.Generator().manual_seed(0)

    def sample(batch):
        predictive = oracle.predictive(data.scaler.physical(batch.context.history), batch.start, data.predict_len)
        drawn = exact_members(predictive, members, generator, ensemble)
        if mean_model:
            drawn = data.scaler.physical(mean_model(batch.context)).unsqueeze(1) + centred(drawn)
        return data.scaler.standardize(drawn)

    scores, _ = evaluate_ensemble(sample, data.batches("test", 8, limit=limit), data.scaler.physical,
                                  members, ensemble)
    return scores


def exact_curve(data: WindowedField, oracle: OracleField) -> dict:
    """Correlation between nodes of the predictive distribution ("law"), the same at every step, against distance."""
    scores = joint_scores(data)
    nodes = scores.correlated
    first, second = nodes[torch.triu_indices(len(nodes), len(nodes), 1)]
    exact, spread = oracle.spatial_covariance[first, second], oracle.spread.mean(0)
    pairs = {"weight": spread[first] * spread[second], **dict.fromkeys(("observed", "forecast", "control"), exact)}
    curve = correlation_curve({name: values.numpy() for name, values in pairs.items()},
                              scores.distances(first.numpy(), second.numpy()))
    return {"distance": curve["distance"], "unit": curve["unit"], "law": curve["observed"]}


def compare_joint(ours: dict, exact: dict, curve: dict) -> dict:
    """Joint scores of a run and of its control over those of the exact forecaster; correlations beside `exact_curve`.

    `gap`: the largest absolute difference over distances; that of the exact forecaster is sampling error.
    """
    names = [name for name in JOINT if ours.get(name) is not None and exact[name]]  # a single step has no increments
    lines = {name: ours["correlation"][name] for name in ("forecast", "control")}
    lines["exact"] = exact["correlation"]["forecast"]
    return {
        "ratio": {name: ours[name] / exact[name] for name in names},
        "control_ratio": {name: ours["control"][name] / exact[name] for name in names},
        "correlation": curve | lines,
        "gap": {name: max((abs(one - true) for one, true in zip(line, curve["law"], strict=True)), default=0.0)
                for name, line in lines.items()},
    }


def compare(folder: Path) -> dict:
    """A run's scores, those of the exact forecaster, and their ratios."""
    run = load_forecaster(folder)
    config = run.checkpoint["config"]
    if config["data_name"] != "Oracle":
        raise ValueError(f"{folder}: a run on {config['data_name']}; only Oracle has an exact forecaster")
    ours = read_json(folder / METRICS)
    data, oracle = open_windows(config, "", "cpu"), make_oracle(from_flags(OracleSettings, config, "oracle_"))
    steps, nodes = oracle.values.shape
    exact, around = (score_exact(data, oracle, ours["members"], limit=config["test_windows"], ensemble=ours["ensemble"],
                                 mean_model=model) for model in (None, run.model.mean_model))
    shown = [name for name in SHOWN if ours.get(name) is not None and exact[name] and around[name]]  # 0: of one node
    found = {name: ours[name] for name in ("data_name", "history_len", "predict_len", "windows", "members", "seed",
                                           "recipe", "sampler", "sample_steps", "best_epoch", "epochs", "ensemble")}
    found |= {
        "nodes": nodes, "time_steps": steps, "denoiser": config["denoiser"],
        "length_scale": config["oracle_length_scale"], "skew": config["oracle_skew"],
        "ours": {name: ours[name] for name in shown}, "exact": {name: exact[name] for name in shown},
        "ratio": {name: ours[name] / exact[name] for name in shown},
        "around_stage_1": {name: around[name] for name in shown},
        "ratio_around_stage_1": {name: ours[name] / around[name] for name in shown},
    }
    if "joint" in ours and not config["oracle_skew"]:  # with a skew, correlation depends on the history
        found["joint"] = compare_joint(ours["joint"], exact["joint"], exact_curve(data, oracle))
    return found


def table(runs: list[dict]) -> str:
    """Joint scores over the exact forecaster's as a Markdown table: mean over seeds, largest gap of any."""
    rows, groups = [], {}
    for run in runs:
        if "joint" in run:
            task = "nodes", "time_steps", "length_scale", "windows", "ensemble", "denoiser"
            groups.setdefault(tuple(run[name] for name in task), []).append(run)
    for (*sizes, ensemble, denoiser), same in groups.items():
        for side, gap, text in (("ratio", "forecast", denoiser),
                                ("control_ratio", "control", f"{denoiser}, without dependence")):
            means = [statistics.mean(run["joint"][side].get(name, math.nan) for run in same) for name in JOINT]
            rows.append([*(f"{size:g}" for size in sizes), ensemble, text, str(len(same)),
                         *("" if math.isnan(value) else f"{value:.3f}" for value in means),
                         f"{max(run['joint']['gap'][gap] for run in same):.3f}"])
    return markdown(["nodes", "steps", "length scale", "test windows", "members", "denoiser", "seeds", *JOINT,
                     "correlation, largest gap"], rows)


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("run_folders", type=Path, nargs="+", metavar="run_folder",
                        help="folders of finished stage-2 runs on Oracle")
    parser.add_argument("--json", type=output_path, default=None, help="write the scores and ratios there")
    parser.add_argument("--table", type=output_path, default=None, help="write a table of the joint scores there")
    given = parser.parse_args(arguments)
    runs = []
    for folder in given.run_folders:
        runs.append(found := compare(folder))
        print("{nodes} nodes, length scale {length_scale:g}, skew {skew:g}, --denoiser {denoiser}, seed {seed}: "
              "{windows} test windows, {members} members ({ensemble})".format(**found))
        print(markdown(["score", *PARTS], [[name, *(f"{found[part][name]:.4g}" for part in PARTS)]
                                           for name in found["ours"]]))
        if "joint" in found:
            print(table([found]))
    if given.json:
        write_json(given.json, runs[0] if len(runs) == 1 else {"runs": runs})
    if given.table:
        write_text(given.table, f"{table(runs)}\n")
    return 0


if __name__ == "__main__":
    run_main(main)

"""One page about the quality of a run: report.html in the run folder, and its pictures as PNG and PDF.

    python -m scripts.report save/diffusion/NYCFlights_12_12
    python -m scripts.report save/diffusion/NYCFlights_12_12 --split validation --windows 100 --output report.html

The windows are forecast once more and scored as after training. docs/report.md says what the page shows.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from data import calendar
from data.registry import sha256_of
from data.windows import WindowedField
from models import ensemble_sampler, load_forecaster
from utils.config import PATHS, FlagParser, TrainConfig, output_path
from utils.output import plots
from utils.output.forecasts import in_space
from utils.output.report import bullets, number, page, paragraph, picture, table
from utils.pipeline import open_run_data, refuse_input, score_ensemble, score_simple
from utils.program import run_main
from utils.scores.comparison import compare_simple, in_words, independent_block
from utils.scores.diagnostics import Diagnostics
from utils.scores.joint import SCORES as JOINT_SCORES
from utils.scores.texture import QUARTERS
from utils.training import checkpoint
from utils.training.checkpoint import PICTURES, REPORT
from utils.training.distributed import choose_device
from utils.training.runlog import FAR_COVERAGE

SCORES = ("CRPS", "CRPS_nodes", "CRPS_sum", "QICE_ties", "coverage90", "IS", "MAE", "RMSE", "energy_score",
          "spread_skill")
JOINT = (*JOINT_SCORES, "correlation_gap", "autocorrelation_gap", "PIT_error_regions")
BY_HORIZON = ("CRPS", "QICE_ties", "coverage90", "IS", "MAE", "RMSE", "spread_skill")
IN_UNIT = ("IS", "MAE", "RMSE", "energy_score")
DRAWN_NODES, DRAWN_MEMBERS, TABLE_NODES, SPREAD_GROUPS = 8, 3, 1000, 12
OURS = "this run"  # its name in tables and pictures
CAPTIONS = {
    "forecast": ("One window, nodes from the lowest to the highest CRPS", "The observation, the dashed line, should "
                 "leave the light band at one step in ten, and stay on neither side."),
    "maps": ("Uncertainty and error by place", "Means over windows and horizon. The maps of a row share their "
             "colours: they should look alike."),
    "members": ("Members beside the observation", "The last step of the same window, below as differences from the "
                "mean of the ensemble. Members should be as smooth as the observation."),
    "event": ("Reliability of the event", "Values above --threshold: share of events against forecast probability. On "
              "the diagonal: calibrated."),
    "pit": ("PIT histogram", "Flat: calibrated. Dome-shaped: too wide. U-shaped: too narrow. A slope: too high, where "
            "the left bars are the higher ones, or too low."),
    "spread_skill": ("Spread against error", "On the diagonal the spread of the ensemble predicts the size of "
                     "the error. Groups of about equal size."),
    "correlation": ("Correlation between nodes", "Observed: of the errors of the mean. Forecast: of the members around "
                    "it. They should agree. Control: the members in another order at every node."),
    "regions": ("PIT histogram of means over regions", "Flat: sums over many nodes are calibrated. Control: the "
                "same members in another order at every node, without dependence."),
    "horizon": ("Scores by horizon", "CRPS and RMSE are better when lower; coverage90 should be that of a "
                "calibrated ensemble, given beside the scores above."),
    "training": ("Training", "The weights of the lowest validation loss are the ones used; stage 2 keeps its start "
                 "unless the loss falls by more than half a percent."),
}
"""Title of each picture, and how to read it."""
WIDE = ("forecast", "maps", "members", "horizon", "training")
FEW_BLOCKS, FAR_QICE, FAR_SPREAD = 10, 3, 0.2  # thresholds of the warnings


def cautions(ours: dict, simple: dict[str, dict], trained: dict, settings: dict, data: WindowedField,
             block: int) -> list[str]:
    """Limits of the scores that a reader should know, in whole sentences."""
    texts, blocks = [], ours["windows"] // block
    if blocks < FEW_BLOCKS:
        texts.append(f"Few windows: {ours['windows']} were scored, but windows near each other share their steps. They "
                     f"are worth about {max(blocks, 1)} independent ones, so every score here is uncertain.")
    texts += [f"{note[0].upper()}{note[1:]}." for note in data.field.notes]
    texts += [f"{name.capitalize().replace('_', ' ')}, which needs no network, is as good or better: CRPS "
              f"{number(theirs['CRPS'])} against {number(ours['CRPS'])}."
              for name, theirs in simple.items() if ours["CRPS"] is not None and theirs["CRPS"] <= ours["CRPS"]]
    if ours["CRPS"] is None:
        return [*texts, "No target of these windows was observed: there are no scores."]
    if ours["QICE_ties"] > FAR_QICE * ours["QICE_floor"]:
        texts.append(f"Calibration: QICE_ties {number(ours['QICE_ties'])} is more than {FAR_QICE} times that of a "
                     f"calibrated ensemble ({number(ours['QICE_floor'])}); see the PIT histogram below.")
    off = ours["coverage90"] - ours["coverage90_floor"]
    if off < -FAR_COVERAGE or (off > FAR_COVERAGE and not data.scaler.any_whole):  # of counts it always holds too much
        texts.append(f"The central 90 % interval holds {100 * ours['coverage90']:.1f} % of the observations; a "
                     f"calibrated ensemble of {ours['members']} members: {100 * ours['coverage90_floor']:.1f} %.")
    spread = ours["spread_skill"]
    if spread is not None and abs(spread - 1) > FAR_SPREAD:
        texts.append(f"The ensemble is too {'narrow' if spread < 1 else 'wide'}: spread over error is "
                     f"{number(spread)}, calibrated is 1.")
    if not trained:
        texts.append(f"The run is not finished: its folder has no {checkpoint.METRICS}.")
    elif trained["best_epoch"] == settings["diffusion_epochs"]:
        texts.append(f"The last of {settings['diffusion_epochs']} epochs was the best: longer training may help "
                     "(--diffusion_epochs).")
    elif trained["best_epoch"] == 0:
        texts.append("No epoch of stage 2 was better than its start by more than half a percent: members are of the "
                     "Gaussian distribution that was estimated before training.")
    texts.append(f"One seed ({settings['seed']}): train others (--seed, --run_name) to see the variation.")
    return texts


def draw_pictures(scores: dict[str, dict], diagnostics: Diagnostics, logs: dict[str, list[dict]], window: dict,
                  data: WindowedField) -> Iterator[tuple[str, plt.Figure]]:
    """Every picture of the report, with its name in CAPTIONS; none without scores.

    window: see `plots.forecast_window`, of all nodes.
    """
    field, ours, nodes = data.field, scores[OURS], diagnostics.by_node()
    unit, joint, shown = field.spec.unit, ours["joint"], spread_out(nodes["CRPS"], DRAWN_NODES)
    if not len(shown):  # no target was observed
        return
    yield "forecast", plots.fan_charts(
        window["times"], *(window[part][..., shown] for part in ("history", "truth", "members")),
        [f"{window['names'][node]}: CRPS {number(nodes['CRPS'][node])}" for node in shown], unit)
    if field.grid or field.coordinates is not None:
        places = field.axes if field.grid else field.coordinates.T
        observed, mean, spread, error = (in_space(field, nodes[name]) for name in ("truth", "mean", "spread", "RMSE"))
        yield "maps", plots.maps([{"mean observed": observed, "mean forecast": mean},
                                  {"spread of the members": spread, "RMSE of their mean": error}], unit, places)
        members = window["members"][:, -1]
        layers = {f"member {number}": each for number, each in enumerate(members[:DRAWN_MEMBERS], 1)}
        layers = {name: in_space(field, each) for name, each in {"observed": window["truth"][-1], **layers}.items()}
        mean = in_space(field, members.mean(0))
        yield "members", plots.maps([layers, {f"{name} - mean": each - mean for name, each in layers.items()}], unit,
                                    places, differences=True)
    if "reliability" in ours:
        yield "event", plots.event_reliability(ours["reliability"])
    yield "pit", plots.pit_histogram({"forecast": ours["PIT"]})
    yield "spread_skill", plots.spread_against_skill(*diagnostics.spread_skill(SPREAD_GROUPS), unit)
    if joint["correlation"]["observed"]:
        yield "correlation", plots.correlation_curve(joint["correlation"])
    yield "regions", plots.pit_histogram({"forecast": joint["PIT"]["regions"],
                                          "control": joint["control"]["PIT"]["regions"]}, " of means over regions")
    yield "horizon", plots.scores_by_horizon(
        {name: each["per_horizon"] for name, each in scores.items()},
        {"CRPS": "share of mean |truth|", "RMSE": unit, "coverage90": "share"}, calendar.in_words(field.spec.interval))
    if logs:
        yield "training", plots.training_curves(logs)


def write_pictures(folder: Path, drawn: Iterator[tuple[str, plt.Figure]]) -> str:
    """Write every picture as PNG and PDF; all of them as HTML."""
    shown = []
    for name, figure in drawn:
        folder.mkdir(exist_ok=True)
        files = plots.picture_files(figure)
        shown.append(picture(*CAPTIONS[name], files["png"], name in WIDE))
        for ending, content in files.items():
            checkpoint.write_atomically(folder / f"{name}.{ending}", lambda file, content=content: file.write(content))
    return '<div class="pictures">\n' + "\n".join(shown) + "\n</div>"


def spread_out(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of at most `count` values, evenly spread over their order, first and last included; none that is NaN."""
    order = np.argsort(values, kind="stable")[:np.isfinite(values).sum()]
    return np.sort(order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))])


def read_logs(folder: Path, mean_run: str) -> dict[str, list[dict]]:
    """The lines of the logs of both stages, where they are still there.

    A checkpoint from elsewhere may name any `mean_run`: it is followed where it lies beside `folder`, as
    save/mean/NAME beside save/diffusion/NAME. Training may have run in another folder, which a relative path is from.
    """
    paths, beside = {"stage 2": folder / checkpoint.LOG}, folder.resolve().parent.with_name("mean")
    places = [(Path(place, mean_run) / checkpoint.LOG).resolve() for place in ("", *folder.resolve().parents)]
    if found := next((path for path in places if path.parent.parent == beside), None):
        paths = {"stage 1": found, **paths}
    else:
        print(f"note: the log of stage 1 is left out: {places[0]} lies elsewhere than the run", file=sys.stderr)
    return {stage: [json.loads(line) for line in path.read_text().splitlines()]
            for stage, path in paths.items() if path.is_file()}


def score_table(caption: str, names: Iterable[str], scores: dict[str, dict]) -> str:
    return table(caption, ["forecast", *names], [[name, *map(each.get, names)] for name, each in scores.items()])


def score_section(scores: dict[str, dict], unit: str) -> str:
    """Tables of scores, of the event, of the joint scores and of texture; differences to the simple forecasters."""
    ours = scores[OURS]
    differences = "; ".join(f"{name} {in_words(each['difference']) if each['difference'] else 'no difference'}"
                            for name, each in scores.items() if name != OURS)
    text = score_table(f"A calibrated ensemble of as many members: QICE_ties {number(ours['QICE_floor'])}, coverage90 "
                       f"{number(ours['coverage90_floor'])}, spread_skill 1. All others are better when lower. "
                       f"{', '.join(IN_UNIT)} in {unit}.", SCORES, scores)
    text += paragraph(f"CRPS of this run against that of others, with a 95 % interval: {differences}.")
    if "threshold" in ours:
        text += score_table(f"Values above {number(ours['threshold'])} {unit}. Brier: better when lower; Brier_skill: "
                            "1 - Brier / that of the share of events, which is event_rate.",
                            ("Brier", "Brier_skill", "event_rate"), scores)
    joint = {name: each["joint"] for name, each in scores.items() if "joint" in each}  # simple: maybe not
    text += score_table(
        "Joint scores: of means over the field, over random regions and over neighbourhoods, of maxima over regions "
        f"and of increments in time; energy_score in {unit}. All are better when lower. Without dependence: the same "
        "members in another order at every node (for increments and autocorrelation: at every step).", JOINT,
        {text: each for name, own in joint.items()
         for text, each in ((name, own), (f"{name}, without dependence", own["control"]))})
    return text + table(
        "Texture, members over observed errors, 1 is right: squared difference to the four nearest nodes and to the "
        "next step, share of the spectrum by quarter, smooth first; each over the variance. AUC of a classifier of "
        "members and errors, .5: it finds no difference.",
        ["forecast", "near", "step", *(f"quarter {number}" for number in range(1, QUARTERS + 1)), "AUC"],
        [[name, each["near"], each["step"], *(each["spectrum"] or [None] * QUARTERS), each["AUC"]]
         for name, each in ((name, own["texture"]) for name, own in joint.items())])


def node_section(nodes: dict[str, np.ndarray], names: tuple[str, ...], unit: str) -> str:
    """The table of scores by node."""
    chosen = spread_out(nodes["CRPS"], TABLE_NODES)
    columns = {"mean observed": "truth", "CRPS": "CRPS", "CRPS / mean |truth|": "CRPS_normalized",
               **{name: name for name in ("MAE", "RMSE", "spread", "coverage90")}}
    rows = [[names[node], *(float(nodes[name][node]) for name in columns.values())]
            for node in chosen[np.argsort(-nodes["CRPS"][chosen], kind="stable")]]
    which = "All nodes" if len(rows) == len(names) else f"{len(rows)} of {len(names)} nodes, evenly over their CRPS"
    return table(f"{which}, the highest CRPS first. Means over windows and horizon, in {unit}; coverage90 and CRPS / "
                 "mean |truth| are shares.", ["node", *columns], rows)


def facts_section(folder: Path, content: dict, data: WindowedField) -> str:
    """Data card, settings of both stages, and versions: what is needed to repeat the run."""
    spec, (first, last) = data.field.spec, data.field.calendar.ends
    card = {"name": data.field.name, "first step": first, "last step": last, "steps": len(data.field.calendar.times),
            "missing values": f"{100 * data.field.missing_share:.2f} %",
            **{f"{split} windows": len(starts) for split, starts in data.starts.items()}}
    card |= {name: value for name, value in vars(spec).items() if value not in (None, "", (), {}, False)}
    versions = checkpoint.read_json(folder / checkpoint.CONFIG)["versions"]
    versions |= {"SHA-256 of the weights": sha256_of(folder / checkpoint.CHECKPOINT)}
    parts = {"Data": card, "Settings of stage 2 (main_train.py)": content["config"],
             "Settings of stage 1 (main_pretrain.py)": content["mean_config"], "Versions": versions}
    return "".join(table(title, ["name", "value"], [[name, str(value)] for name, value in facts.items()])
                   for title, facts in parts.items())


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("run_folder", type=Path, help="folder of a stage-2 run")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--windows", type=int, dest="test_windows", help="windows to forecast, evenly spread; 0: all "
                        "(default: as many as the run scored)")
    parser.add_argument("--output", type=output_path, default=None, help=f"the page (default: RUN_FOLDER/{REPORT}); "
                        f"its pictures go beside it, for other.html into other_{PICTURES}")
    parser.add_paths()
    parser.add_flags(TrainConfig, {}, ("data_dir", "device"))
    parser.add_flags(TrainConfig, {}, ("sample_batch",), "that of the run")
    flags = parser.parse_args(arguments)
    given = vars(flags)
    if given.get("test_windows", 0) < 0:
        parser.error(f"--windows {given['test_windows']}: choose a number of windows, or 0 for all")
    folder, split, device = given["run_folder"], given["split"], choose_device(given.get("device", TrainConfig.device))
    run = load_forecaster(folder, device)
    model, content = run.model, run.checkpoint
    paths, data_dir = {name: given[name] for name in PATHS}, given.get("data_dir", "")
    refuse_input("--output", given["output"], content["config"], data_dir, *paths.values())
    data = open_run_data(content, data_dir, device, **paths)
    settings = content["config"] | {name: given[name] for name in ("sample_batch", "test_windows") if name in given}
    if output := given["output"]:
        beside = output.with_name(f"{output.stem}_{PICTURES}")
        parser.refuse_existing("--output: the folder of the pictures,", beside, flags)
        if beside.exists() and not beside.is_dir():
            raise ValueError(f"--output {output}: its pictures need the folder {beside}, which is a file")
    else:
        output, beside = folder / REPORT, folder / PICTURES
        try:
            checkpoint.check_writable(output)
        except (ValueError, OSError) as error:
            raise ValueError(f"{error}; give --output FILE for a page elsewhere") from error

    trained = checkpoint.read_json(folder / checkpoint.METRICS) if (folder / checkpoint.METRICS).exists() else {}
    simple = trained.get("simple", {})
    diagnostics, length = Diagnostics(), data.history_len + data.predict_len
    ours, windows = score_ensemble(model, settings, data, split, device, watch=diagnostics.update)
    if not simple or split != "test" or settings != content["config"]:
        simple = compare_simple(windows, score_simple(settings, data, split), length)
    scores, starts, nodes = {OURS: ours, **simple}, windows["start"], diagnostics.by_node()
    window = plots.forecast_window(ensemble_sampler(model, settings, device), data,
                                   data.starts[split][len(data.starts[split]) // 2], np.arange(data.num_nodes))
    pictures = draw_pictures(scores, diagnostics, read_logs(folder, content["mean_run"]), window, data)
    first, last = (str(data.local_times(int(start))[place]).replace("T", " ")
                   for start, place in ((starts.min(), data.history_len), (starts.max(), -1)))
    unit, step = data.field.spec.unit, calendar.in_words(data.field.spec.interval)
    text = page(
        f"Forecast report: {data.field.name}",
        f"{data.num_nodes} nodes, {unit}; {data.predict_len} steps of {step} from {data.history_len} of history; "
        f"{ours['members']} members; {ours['windows']} windows of the {split} split, {first} to {last}. "
        f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
        {
            "Warnings": bullets(cautions(ours, simple, trained, settings, data, independent_block(starts, length))),
            "Scores": score_section(scores, unit),
            "Pictures": write_pictures(beside, pictures),
            "By horizon": table(
                f"Horizon in steps of {step}; {', '.join(IN_UNIT[:3])} in {unit}.", ["horizon", *BY_HORIZON],
                [[place, *values] for place, values in enumerate(
                    zip(*(ours["per_horizon"][name] for name in BY_HORIZON), strict=True), 1)]),
            "By node": node_section(nodes, data.field.node_names, unit),
            "Data, settings, versions": facts_section(folder, content, data),
        })
    checkpoint.write_text(output, text)
    print(f"report: {output}\npictures: {beside}")
    return 0


if __name__ == "__main__":
    run_main(main)

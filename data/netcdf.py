"""NetCDF and Zarr as one table (time, node): values after the CF conventions, names and places of the nodes."""

import base64
import re
import struct
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .calendar import CONVERT
from .scaling import BLOCK
from .stamps import Stamps, read_stamps, rounded, zone_in
from .table import (
    LATITUDE_NAMES,
    LONGITUDE_NAMES,
    NODE_NAMES,
    TIME_NAMES,
    Table,
    as_tensor,
    find,
    listed,
    note_large,
    optional,
    outside_the_earth,
    repeated,
    unreadable,
)

NORTH, EAST = ({f"degree{s}{mark}" for s in ("", "s") for mark in (f"_{word}", f"_{word[0].upper()}", word[0].upper())}
               for word in ("north", "east"))
"""Units of latitude and longitude after CF."""
RADIANS = {"radian", "radians", "rad"}
DEGREES = {"", "degree", "degrees", "deg", *RADIANS}  # units of a coordinate that its name identifies


def read_xarray(path: Path, variable: str) -> Table:
    """One variable (time, place) or (time, latitude, longitude) of NetCDF or Zarr; land is left out of a grid.

    Dimensions of one entry are dropped. `_with_missing`, `_node_names` and `_places` say what the attributes decide.
    """
    xarray = optional("xarray", path)
    zarr = path.name.lower().rstrip("/").endswith(".zarr")
    library = optional("zarr" if zarr else "netCDF4", path)
    if zarr:
        _refuse_code(path)
    try:
        source = path if not zarr else xarray.backends.ZarrStore.open_group(  # which shows the fill values of storage
            path, mode="r", consolidated=False, use_zarr_fill_value_as_mask=True)
        with xarray.open_dataset(source, decode_cf=False, engine=None if zarr else "netcdf4") as stored:
            fills = _storage_fills(library.open_group(path, mode="r"), stored) if zarr else {}
            dataset = xarray.decode_cf(stored, decode_timedelta=False)
            array = _choose_variable(dataset, variable, path)
            raw = stored[array.name]
            if not zarr and "_FillValue" not in raw.attrs:
                fills = {array.name: library.default_fillvals.get(raw.dtype.str[1:])}
            array, notes = _with_missing(array, raw, fills.get(array.name), zarr)
            return _from_variable(dataset, array, path, notes)
    except Exception as error:  # a damaged file makes the libraries raise many kinds
        if str(error).startswith(f"{path}:"):
            raise
        raise unreadable(path, f"{'Zarr' if zarr else 'NetCDF'} file", error) from error


def _refuse_code(path: Path) -> None:
    """Raises: ValueError for a Zarr store that would unpickle: its metadata name the codec."""
    for file in (*path.rglob(".z*"), *path.rglob("zarr.json")):
        if file.is_file() and "pickle" in file.read_text(errors="replace"):
            raise ValueError(f"{path}: it holds Python objects ({file.name} names pickle), which are never loaded")


def _storage_fills(group, stored) -> dict[str, float]:
    """The fill values of unwritten chunks of a Zarr store; those that no attribute names are removed from `stored`.

    Zarr has one for any array, 0 where nobody chose one; only the attribute _FillValue says that it means missing.
    xarray takes the fill value of format 2 for that attribute, and its own way of writing the attribute for any.
    """
    fills = {}
    for name, array in stored.variables.items():
        fill, declared = array.attrs.pop("_FillValue", None), group[name].attrs.get("_FillValue")
        if array.dtype.kind in "iuf" and declared is not None:
            array.attrs["_FillValue"] = np.asarray(_number(declared)).astype(array.dtype)[()]
        elif array.dtype.kind in "iuf" and fill is not None:
            fills[name] = fill
    return fills


def _number(attribute) -> float:
    """An attribute of a Zarr store as a number: NaN is text in JSON, and real numbers of xarray are their bytes."""
    try:
        return float(np.ravel(attribute)[0])
    except ValueError:
        return struct.unpack("<d", base64.b64decode(attribute))[0]


def _with_missing(array, raw, fill, zarr: bool):
    """A decoded variable with NaN also where its stored values `raw` are out of range or were never written; and notes.

    valid_range, valid_min and valid_max bound stored values; where they are of a wider type than those, as scale_factor
    is, unpacked ones (NetCDF Users' Guide, appendix A). fill: the value of storage that was never written. That of a
    Zarr array means missing only where it is not 0 and beyond all other values: format 2 has no other place for the
    fill value that xarray was asked to write.
    """
    if array.dtype.kind not in "iuf":
        return array, ()  # refused later, by its type
    array = array.load()
    stored, notes, limits = raw.values, [], dict(zip(("valid_min", "valid_max"),
                                                     np.ravel(raw.attrs.get("valid_range", ())), strict=False))
    limits |= {name: np.ravel(raw.attrs[name])[0] for name in ("valid_min", "valid_max") if name in raw.attrs}
    if stored.dtype.kind == "i" and str(raw.attrs.get("_Unsigned", "")).lower() == "true":
        unsigned = stored.dtype.str.replace("i", "u")
        stored = stored.view(unsigned)
        limits = {name: np.asarray(limit).astype(raw.dtype).view(unsigned) for name, limit in limits.items()}
        fill = None if fill is None else np.asarray(fill).astype(raw.dtype).view(unsigned)
    gone = np.zeros(stored.shape, bool)
    if fill is not None and fill == fill:
        gone = stored == fill
        written = stored[~gone]
        if zarr and not (fill != 0 and written.size and (fill < np.nanmin(written) or fill > np.nanmax(written))):
            gone[:] = False
        if gone.any():
            notes.append(f"{int(gone.sum())} values are {fill}, the fill value of what was never written: missing")
    packed = {"scale_factor", "add_offset"} & set(raw.attrs)
    before = gone | np.isnan(array.values)
    for name, limit in limits.items():
        if np.asarray(limit).dtype.kind in "iuf":
            wide = packed and np.asarray(limit).dtype.kind == "f" and stored.dtype.kind in "iu"
            values = array.values if wide else stored
            limit = values.dtype.type(limit) if values.dtype.kind == "f" else limit
            gone |= values < limit if name == "valid_min" else values > limit
    if outside := int((gone & ~before).sum()):
        bounds = " to ".join(str(limit) for limit in limits.values())
        notes.append(f"{outside} values are outside of {'valid_range' if len(limits) > 1 else next(iter(limits))} "
                     f"{bounds}: missing")
    return (array.where(~gone) if gone.any() else array), tuple(notes)


def _choose_variable(dataset, variable: str, path: Path):
    """The variable asked for, else the only one that can be a field.

    Raises: ValueError with the variables of the file.
    """
    fields = [name for name, array in dataset.data_vars.items()
              if array.dtype.kind in "iuf" and _time_dimension(array) and not {"bnds", "nv"} & set(array.dims)]
    if variable and variable not in dataset.data_vars:
        raise ValueError(f"{path}: there is no variable {variable}; there are {listed(list(dataset.data_vars))}")
    if not variable and len(fields) != 1:
        raise ValueError(f"{path}: {len(fields)} variables have a time axis ({listed(fields)}); choose one with "
                         f"--variable" if fields else f"{path}: no variable has a time axis; there are "
                         f"{listed([f'{name} {array.dims}' for name, array in dataset.data_vars.items()])}")
    return dataset[variable or fields[0]]


def _time_dimension(array) -> str | None:
    """The dimension whose coordinate holds times, else the one that is named so."""
    times = [name for name in array.dims if name in array.coords
             and (array.coords[name].dtype.kind == "M" or hasattr(array.coords[name].values.flat[0], "calendar"))]
    return times[0] if times else find(list(array.dims), (*TIME_NAMES, "year"))


def _from_variable(dataset, array, path: Path, notes: tuple[str, ...]) -> Table:
    time = _time_dimension(array)
    if time is None:
        raise ValueError(f"{path}: variable {array.name} has dimensions {array.dims}; one must be the time")
    single = [name for name, size in array.sizes.items() if size == 1 and name != time]
    array = array.squeeze(single)
    space = [name for name in array.dims if name != time]
    if len(space) > 2:
        sizes = ", ".join(f"{name}: {size}" for name, size in array.sizes.items())
        raise ValueError(f"{path}: variable {array.name} has dimensions ({sizes}); expected time and one or two of "
                         "space: select the others beforehand")
    if len(space) == 2 and find([space[0]], (*LONGITUDE_NAMES, "x")) and find([space[1]], (*LATITUDE_NAMES, "y")):
        space = space[::-1]
    array = array.transpose(time, *space)
    note_large(path, 4 * array.size)
    sizes = {name: array.sizes[name] for name in space}
    grid = tuple(sizes.values()) if len(space) == 2 else None
    others = {name: each.squeeze([dimension for dimension in each.dims if dimension in single])
              for name, each in dataset.variables.items() if name != array.name}
    stamps, calendar = _stamps(array, time, path)
    table = Table(as_tensor(array.values.reshape(len(array), -1), str(path)), unit=str(array.attrs.get("units", "")),
                  grid=grid, calendar=calendar).with_stamps(stamps).with_notes(*notes)
    table = _with_coordinates(table, others, sizes)
    if not grid:
        return replace(table, node_names=_node_names(others, space))
    if table.coordinates is not None:
        places = tuple(f"lat {latitude:g} lon {longitude:g}" for latitude, longitude in table.coordinates)
        table = replace(table, node_names=None if repeated(places) else places)  # six digits may not tell them apart
    return without_land(table)


def _stamps(array, time: str, path: Path) -> tuple[Stamps | None, str]:
    """The stamps of a variable, if any, and the calendar of a climate model: its digits are taken as dates."""
    if time not in array.coords:
        return None, ""
    stamps = array.coords[time].values
    if stamps.dtype.kind == "M":
        offset = re.search(r":\d\d(?::[\d.]+)? *([+-]\d\d(?::?\d\d)?)$", str(array.coords[time].encoding.get("units")))
        return Stamps(rounded(stamps), zone_in(f"2000-01-01T00:00{offset[1]}") if offset else ""), ""
    if not hasattr(stamps.flat[0], "calendar"):
        found = Stamps(None)
        if stamps.dtype.kind != "f":
            found = read_stamps(pd.Series(stamps), lambda step: f"{path}: {time} {step}")
        if found.times is None:
            raise ValueError(f"{path}: coordinate {time} holds {stamps.flat[0]!r}, not times; expected units as in "
                             "'days since 2000-01-01', or no such coordinate, and --freq and --start")
        return found, ""
    calendar = {"365_day": "noleap"}.get(stamps.flat[0].calendar, stamps.flat[0].calendar)
    try:
        half = timedelta(microseconds=500_000)  # digits are cut, so this rounds
        times = np.array([(each + half).isoformat()[:19] for each in stamps], dtype="datetime64[s]")
    except ValueError as error:
        raise ValueError(f"{path}: calendar {calendar} has days that no real year has; {CONVERT}") from error
    if "gregorian" in calendar or calendar == "standard":
        return Stamps(times), ""
    note = f"its times are of the calendar {calendar}; their digits are taken as dates"
    return Stamps(times, notes=(note,)), calendar


def _with_coordinates(table: Table, others: dict, sizes: dict[str, int]) -> Table:
    """The table with the latitudes and longitudes among the other variables of its file, or a note why without."""
    (latitude, bare, left), (longitude, _, right) = (_places(others, *sought, sizes) for sought in (
        ("latitude", NORTH, LATITUDE_NAMES), ("longitude", EAST, LONGITUDE_NAMES)))
    table = table.with_notes(*filter(None, (left, right)))
    if latitude is None or longitude is None:
        return table
    coordinates = np.stack([latitude.ravel(), longitude.ravel()], axis=1)
    if outside_the_earth(coordinates).any():
        return table.with_notes("latitude and longitude are left out: not degrees from -90 to 90 and -180 to 360")
    if bare and all(len(one) > 1 and np.array_equal(one, np.arange(len(one))) for one in map(np.unique, coordinates.T)):
        return table.with_notes("latitude and longitude are left out: they count 0, 1, 2, ... and state no units")
    rectangular = table.grid and (latitude == latitude[:, :1]).all() and (longitude == longitude[:1]).all()
    return replace(table, coordinates=coordinates, axes=(latitude[:, 0], longitude[0]) if rectangular else None)


def _node_names(others: dict, space: list[str]) -> tuple[str, ...] | None:
    """Names of the places along `space`, the first that differ everywhere of: the coordinate that CF's cf_role marks as
    timeseries_id, coordinates of text, those with one of NODE_NAMES, and numbers of the dimension.
    """
    ranked = []
    for name, array in others.items():
        role, text = array.attrs.get("cf_role") == "timeseries_id", array.dtype.kind in "SUOT"
        own, named = [name] == space, find([name], NODE_NAMES) is not None
        if array.dims == tuple(space) and (role or text or own or named):
            ranked.append(((not role, not (text and own), not (text and named), not text, not named), array))
    for _, array in sorted(ranked, key=lambda item: item[0]):
        found = tuple(_text(each) for each in np.ravel(array.values).tolist())
        if all(found) and not repeated(found):
            return found
    return None


def _text(value) -> str:
    """A name as text, without padding."""
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip("\0 ")


def _places(others: dict, standard_name: str, units: set[str], names: tuple[str, ...], sizes: dict[str, int]):
    """Latitudes or longitudes in degrees on all places, or None; whether only their name identifies them; and a note
    where one of that name has other units.

    CF's standard_name or units decide; else the name, unless they contradict it. One that depends on more dimensions of
    space is preferred: a curvilinear grid's 1-D coordinates are positions, not degrees. Radians are converted.
    """
    found, note = [], None
    for name, array in others.items():
        if not sizes or not set(array.dims) <= set(sizes) or array.dtype.kind not in "iuf":
            continue
        unit, standard = (str(array.attrs.get(key, "")).strip() for key in ("units", "standard_name"))
        declared = standard == standard_name or not standard and unit in units
        named = find([name], names) is not None
        if declared and unit in units | DEGREES or named and not standard and unit.lower() in DEGREES:
            found.append((-len(array.dims), not declared, not named, name))
        elif named:
            note = f"{name} is left out: {standard or unit} in {unit or 'no unit'} is no {standard_name} in degrees"
    if not found:
        return None, False, note
    array = others[min(found)[-1]]
    missing = {dimension: size for dimension, size in sizes.items() if dimension not in array.dims}
    values = array.set_dims({**missing, **array.sizes}).transpose(*sizes).values.astype(float)
    unit = str(array.attrs.get("units", "")).strip().lower()
    return np.degrees(values) if unit in RADIANS else values, not unit and "standard_name" not in array.attrs, None


def without_land(table: Table) -> Table:
    """A grid without the places that have no value at any time; `kept` and `grid` can restore them."""
    kept = np.flatnonzero(~torch.stack([block.isnan().all(0) for block in table.values.split(BLOCK)]).all(0).numpy())
    if len(kept) in (0, table.values.shape[1]):
        return table
    return table.at(kept, kept=kept)

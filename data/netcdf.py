"""NetCDF and Zarr as one table (time, node): values after the CF conventions, names and places of the nodes."""

import base64
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from .readers import (
    LATITUDE_NAMES,
    LONGITUDE_NAMES,
    NODE_NAMES,
    QUALITY,
    TIME_NAMES,
    Table,
    as_tensor,
    coordinate_times,
    find,
    listed,
    optional,
    outside_the_earth,
    repeated,
    say_if_large,
)
from .scaling import BLOCK

NORTH, EAST = ({f"degree{s}{mark}" for s in ("", "s") for mark in (f"_{word}", f"_{word[0].upper()}", word[0].upper())}
               for word in ("north", "east"))
"""Units of latitude and longitude after CF."""
RADIANS = {"radian", "radians", "rad"}
DEGREES = {"", "degree", "degrees", "deg", *RADIANS}  # units of a coordinate that is known by its name


def read_xarray(path: Path, variable: str) -> Table:
    """One variable (time, place) or (time, latitude, longitude) of NetCDF or Zarr; land is left out of a grid.

    Dimensions of one entry are dropped. See `_missing`, `_node_names` and `_places` for what the attributes decide.
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
            storage = _storage_fill(library.open_group(path, mode="r"), stored) if zarr else {}
            dataset = xarray.decode_cf(stored, decode_timedelta=False)
            array, notes = _choose_variable(dataset, variable, path)
            raw = stored[array.name]
            if not zarr and "_FillValue" not in raw.attrs:
                storage = {array.name: library.default_fillvals.get(raw.dtype.str[1:])}
            array, told = _with_missing(array, raw, storage.get(array.name), zarr)
            return _from_variable(dataset, array, path, notes + told)
    except Exception as error:  # whatever a damaged file makes the libraries raise, the user made one mistake
        if str(error).startswith(f"{path}:"):
            raise
        kind = "Zarr" if zarr else "NetCDF"
        raise ValueError(f"{path}: not a readable {kind} file: {' '.join(str(error).split())}") from error


def _refuse_code(path: Path) -> None:
    """Refuse a Zarr store that would unpickle: its metadata name the codec.

    Raises: ValueError.
    """
    for file in (*path.rglob(".z*"), *path.rglob("zarr.json")):
        if file.is_file() and "pickle" in file.read_text(errors="replace"):
            raise ValueError(f"{path}: it holds Python objects ({file.name} names pickle), which are never loaded")


def _storage_fill(group, stored) -> dict[str, float]:
    """The fill values of a Zarr store that are no attribute, of which `stored` is rid: they fill unwritten chunks.

    Zarr writes them for any array, 0 where nobody chose one; only the attribute _FillValue says that it is missing.
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
    """A decoded variable with NaN at what its stored values `raw` mark as missing too, and notes on that.

    valid_range, valid_min and valid_max bound stored values; where they are of a wider type than those, as scale_factor
    is, unpacked ones (NetCDF Users' Guide, appendix A). `fill`: what stands where nothing was written, see `_is_fill`.
    """
    if array.dtype.kind not in "iuf":
        return array, ()  # no field, which is told where that is known of it
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
        if zarr and not _is_fill(fill, stored[~gone]):
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


def _is_fill(fill, others: np.ndarray) -> bool:
    """Whether the storage fill of a Zarr array stands for missing values: not 0, and beyond all other values.

    Format 2 has no other place for the fill value that xarray was asked to write.
    """
    return bool(fill != 0 and others.size and (fill < np.nanmin(others) or fill > np.nanmax(others)))


def _choose_variable(dataset, variable: str, path: Path):
    """The variable asked for, else the only one that can be a field, quality flags aside; and notes.

    Raises: ValueError with those that there are.
    """
    fields = [name for name, array in dataset.data_vars.items()
              if array.dtype.kind in "iuf" and _time_dimension(array) and not {"bnds", "nv"} & set(array.dims)]
    if variable and variable not in dataset.data_vars:
        raise ValueError(f"{path}: there is no variable {variable}; there are {listed(list(dataset.data_vars))}")
    flags = [name for name in fields if _is_quality(dataset[name], set(fields))] if not variable else []
    fields = [name for name in fields if name not in flags]
    if not variable and len(fields) != 1:
        raise ValueError(f"{path}: {len(fields)} variables have a time axis ({listed(fields)}); choose one with "
                         f"--variable" if fields else f"{path}: no variable has a time axis; there are "
                         f"{listed([f'{name} {array.dims}' for name, array in dataset.data_vars.items()])}")
    return dataset[variable or fields[0]], (f"quality flags are left out: {listed(flags)}",) if flags else ()


def _is_quality(array, fields: set[str]) -> bool:
    """Whether a variable holds flags: CF's attributes, or its name is that of another one with `_qc` or the like."""
    match = QUALITY.fullmatch(str(array.name))
    return bool({"flag_values", "flag_masks", "flag_meanings"} & set(array.attrs)
                or str(array.attrs.get("standard_name", "")).endswith(("status_flag", "quality_flag"))
                or match and {*match.groups()} & fields)


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
    say_if_large(path, 4 * array.size)
    values = as_tensor(array.values.reshape(len(array), -1), str(path))
    grid = tuple(array.sizes[name] for name in space) if len(space) == 2 else None
    beside = [each.squeeze([name for name in each.dims if name in single]) for name, each in dataset.variables.items()
              if name != array.name]
    names = dict(zip([name for name in dataset.variables if name != array.name], beside, strict=True))
    sizes = {name: array.sizes[name] for name in space}
    (latitude, bare, left), (longitude, _, right) = (_places(names, *known, sizes) for known in (
        ("latitude", NORTH, LATITUDE_NAMES), ("longitude", EAST, LONGITUDE_NAMES)))
    stamps = coordinate_times(array, time, path)
    notes = (*stamps.pop("notes", ()), *notes, *filter(None, (left, right)))
    table = Table(values, unit=str(array.attrs.get("units", "")), grid=grid, notes=notes, **stamps)
    if latitude is not None and longitude is not None:
        coordinates = np.stack([latitude.ravel(), longitude.ravel()], axis=1)
        rectangular = grid and (latitude == latitude[:, :1]).all() and (longitude == longitude[:1]).all()
        told = "latitude and longitude are left out: "
        if outside_the_earth(coordinates).any():
            table = replace(table, notes=(*table.notes, f"{told}not degrees from -90 to 90 and -180 to 360"))
        elif bare and all(len(one) > 1 and np.array_equal(one, np.arange(len(one)))
                          for one in map(np.unique, coordinates.T)):
            table = replace(table, notes=(*table.notes, f"{told}they count 0, 1, 2, ... and state no units"))
        else:
            axes = (latitude[:, 0], longitude[0]) if rectangular else None
            table = replace(table, coordinates=coordinates, axes=axes)
    if not grid:
        return replace(table, node_names=_node_names(names, space))
    if table.coordinates is not None:
        places = tuple(f"lat {latitude:g} lon {longitude:g}" for latitude, longitude in table.coordinates)
        table = replace(table, node_names=None if repeated(places) else places)  # closer than six digits tell
    return without_land(table)


def _node_names(beside: dict, space: list[str]) -> tuple[str, ...] | None:
    """Names of the places along `space`, the first that tell all apart of: the coordinate that CF's cf_role marks as
    timeseries_id, those of text, those of a known name, and numbers of the dimension.
    """
    def rank(item) -> tuple:
        name, array = item
        words = array.dtype.kind in "SUOT"
        known = find([name], NODE_NAMES) is not None
        return array.attrs.get("cf_role") != "timeseries_id", not (words and [name] == space), not (words and known), \
            not words, not known

    candidates = [(name, array) for name, array in beside.items() if array.dims == tuple(space)
                  and (array.dtype.kind in "SUOT" or [name] == space or find([name], NODE_NAMES)
                       or array.attrs.get("cf_role") == "timeseries_id")]
    for _, array in sorted(candidates, key=rank):
        found = tuple(_text(each) for each in np.ravel(array.values).tolist())
        if all(found) and not repeated(found):
            return found
    return None


def _text(value) -> str:
    """A name as text, without what pads it."""
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip("\0 ")


def _places(beside: dict, standard_name: str, units: set[str], known: tuple[str, ...], sizes: dict[str, int]):
    """Latitudes or longitudes in degrees on all places, or None; whether only their name says that they are; and a note
    where one by name is in other units.

    CF's standard_name or units decide; else the name, unless they say otherwise. One that depends on more dimensions of
    space is preferred: a curvilinear grid's 1-D coordinates are positions, not degrees. Radians are converted.
    """
    found, note = [], None
    for name, array in beside.items():
        if not sizes or not set(array.dims) <= set(sizes) or array.dtype.kind not in "iuf":
            continue
        unit, standard = (str(array.attrs.get(key, "")).strip() for key in ("units", "standard_name"))
        declared = standard == standard_name or not standard and unit in units
        named = find([name], known) is not None
        if declared and unit in units | DEGREES or named and not standard and unit.lower() in DEGREES:
            found.append((-len(array.dims), not declared, not named, name))
        elif named:
            note = f"{name} is left out: {standard or unit} in {unit or 'no unit'} is no {standard_name} in degrees"
    if not found:
        return None, False, note
    array = beside[min(found)[-1]]
    missing = {dimension: size for dimension, size in sizes.items() if dimension not in array.dims}
    values = array.set_dims({**missing, **array.sizes}).transpose(*sizes).values.astype(float)
    unit = str(array.attrs.get("units", "")).strip().lower()
    return np.degrees(values) if unit in RADIANS else values, not unit and "standard_name" not in array.attrs, None


def without_land(table: Table) -> Table:
    """A grid without the places that have no value at any time, which `kept` and `grid` can put back."""
    kept = np.flatnonzero(~torch.stack([block.isnan().all(0) for block in table.values.split(BLOCK)]).all(0).numpy())
    if len(kept) in (0, table.values.shape[1]):
        return table
    return table.at(kept, kept=kept)

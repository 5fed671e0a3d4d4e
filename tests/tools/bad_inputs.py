"""Fuzzed inputs, each a function of (seed, number): arrays, checkpoints and command lines with a fault.

A program has to end in a clean error (`fault`) or give a correct result.
"""

import dataclasses
import io
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import main_pretrain
import main_train
from data.readers import read_file
from scripts import evaluate, get_data
from scripts.paper import score_oracle
from utils.config import PretrainConfig, TrainConfig
from utils.training.checkpoint import (
    CHECKPOINT,
    CONFIG,
    DIGEST,
    METRICS,
    STATES,
    TEMPORARY,
    load_checkpoint,
    save_checkpoint,
)
from utils.training.runs import LOCK

NODES, ARRAY = 11, "Energy/SolarPower.npy"  # the dataset of which a file of one's own is accepted
TINY = ["--data_name", "Oracle", "--oracle_nodes", "4", "--oracle_steps", "200", "--device", "cpu", "--epochs", "6",
        "--batch_size", "16", "--channels", "4", "--layers", "1", "--networks", "1", "--ema", "0.9",
        "--keep_states"]
NOT_A_NUMBER = ("", " ", "abc", "nan", "1,5", "0x10", "None", "１.５.２", "🙂", "1e400", "\udcff", "-")
RUN = "Oracle_12_12"
UNICODE = ("é", "🙂", "\u202e", "\udcff", "\n")


@dataclass(frozen=True)
class BadInput:
    """An input: its fault in words, `work` of a program on it, and texts of which an error must name one.

    refused: whether exit status 0 is wrong.
    """

    text: str
    work: Callable[[], int | None]
    named: tuple[str, ...]
    refused: bool = False


def fault(bad: BadInput, status: int, said: str, before: dict, after: dict) -> str | None:
    """Why the end of a program is not acceptable; None where it is.

    Accepted: exit status 0, or 2 with one error line that names the input and with unchanged files (`files_below`).
    """
    lines = said.splitlines()
    if half := [name for name in after if name.endswith((TEMPORARY, ".part"))]:
        return f"left half written: {', '.join(half)}"
    if status == 0:
        return "was accepted" if bad.refused else None
    if status != 2:
        return f"ended with exit status {status}"
    if sum(line.startswith("error: ") for line in lines) != 1 or "Traceback" in said:
        return "did not end in one line that begins with `error: `"
    if not any(name in lines[-1] for name in bad.named):
        return f"the error names none of {', '.join(bad.named)}"
    return "was refused, but files have changed" if before != after else None


def files_below(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, but those that a run writes before it reads its state."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name not in (LOCK, CONFIG)}


def pick(random: np.random.Generator, options):
    """One of the options."""
    return list(options)[random.integers(len(options))]


# Bytes

def spoil(random: np.random.Generator, content: bytes, most: int = 0) -> tuple[str, bytes]:
    """How bytes were damaged, and the result; bits are flipped in the first `most` bytes (0: anywhere)."""
    length = len(content)

    def flipped() -> bytes:
        data = bytearray(content)
        for place in random.integers(min(most or length, length), size=random.integers(1, 9)):
            data[place] ^= 1 << random.integers(8)
        return bytes(data)

    def zeroed() -> bytes:
        first = random.integers(length)
        return content[:first] + bytes(min(length - first, 512)) + content[first + 512:]

    ways = {
        "bits flipped": flipped, "a block of zeros": zeroed, "truncated": lambda: content[:random.integers(length)],
        "almost whole": lambda: content[:-random.integers(1, 9)],
        "bytes behind its end": lambda: content + random.bytes(64), "empty": lambda: b"",
        "random bytes": lambda: random.bytes(random.integers(1, 2000)), "text": lambda: "time,node\n1,ä\n".encode(),
        "twice in a row": lambda: content * 2, "the start cut off": lambda: content[random.integers(1, length):],
    }
    how = pick(random, ways)
    return how, ways[how]()


# Arrays

def saved(array: np.ndarray, layout: str) -> bytes:
    """An array (time, node) as the bytes of a file of this ending; a table has times too."""
    file = io.BytesIO()
    if layout == ".npy":
        np.save(file, array)
    elif layout == ".npz":
        np.savez(file, values=array)
    else:
        times = np.datetime64("2020-01-01T00", "s") + np.arange(len(array)) * 3600
        frame = pd.DataFrame(array, columns=[f"node {k}" for k in range(array.shape[1])])
        frame.insert(0, "time", times)
        if layout == "long .csv":
            frame = frame.melt("time", var_name="node")
        if layout == ".parquet":
            frame.to_parquet(file)
        else:
            frame.to_csv(file, index=False, compression="gzip" if layout == ".csv.gz" else None)
    return file.getvalue()


def strange_type(random, values) -> tuple[str, np.ndarray]:
    kind = pick(random, ("U3", "S4", "complex64", "bool", "object", "M8[h]", "m8[h]", "i1", "u8", ">f4", ">i2",
                         "f2", "f8", "longdouble", "V4", "i4,f4"))
    return f"type {kind}", values.view(kind) if kind == "V4" else values.astype(kind, casting="unsafe")


def strange_shape(random, values) -> tuple[str, np.ndarray]:
    shape = pick(random, ((), (0,), (60 * NODES,), (0, NODES), (60, 0), (60, NODES - 1), (NODES, 60), (60, NODES, 1),
                          (60, 1, NODES), (60, NODES, 2), (60, 1, 1, NODES), (1, NODES), (60 * NODES, 1), (3, NODES)))
    return f"shape {shape}", np.resize(values, shape)


def strange_value(random, values) -> tuple[str, np.ndarray]:
    value = pick(random, (np.nan, np.inf, -np.inf, 1e39, -1e308, 1e-320, 3.4e38))
    values = values.astype(np.float64)
    values.flat[random.integers(values.size, size=random.integers(1, 20))] = value
    return f"a value {value}", values


def forged_header(random, values) -> tuple[str, bytes]:
    """A .npy file with a false header."""
    shape = pick(random, ((-1, NODES), (10**12, NODES), (2**63, 2**63), (60, -NODES), (10**30,), (61, NODES), "60"))
    kind = pick(random, ("<f4", "<f16", "|O", "nonsense", "<U1000000000", "<f4"))
    header = repr({"descr": kind, "fortran_order": False, "shape": shape})
    return f"header {header}", np.lib.format.magic(pick(random, (1, 1, 2, 9)), 0) + len(header).to_bytes(
        2, "little") + header.encode() + values.tobytes()


def bad_array(random: np.random.Generator, folder: Path) -> BadInput:
    """A faulty file of values: read by itself, by a program, or imported."""
    values = random.normal(20, 5, (60, NODES)).astype(np.float32)
    layout = pick(random, (".npy", ".npy", ".npz", ".npz", ".csv", "long .csv", ".csv.gz", ".parquet"))
    way = pick(random, ("bytes", "bytes", "value", "header", "type", "shape", "order", "archive"))
    if way == "header":
        layout, (how, content) = ".npy", forged_header(random, values)
    elif way == "archive":
        layout, (how, content) = ".npz", forged_archive(random, values)
    elif way in ("bytes", "value") or not layout.startswith(".np"):
        spoiled = strange_value(random, values) if way == "value" else ("", values)
        how, content = spoiled[0], saved(spoiled[1], layout)
        if way != "value":
            how, content = spoil(random, content, pick(random, (0, 130)))
    else:
        how, array = {
            "type": strange_type, "shape": strange_shape,
            "order": lambda random, values: ("Fortran order", np.asfortranarray(values))}[way](random, values)
        content = saved(array, layout)
    path = folder / f"values{layout.split()[-1]}"
    imported_as = folder / "from" / ARRAY
    for place in (path, imported_as):
        place.parent.mkdir(exist_ok=True, parents=True)
        place.write_bytes(content)
    own = ["--data_name", "mine", "--data_path", str(path)]
    if layout.startswith(".np"):
        own += ["--freq", "1h", "--start", "2020-01-01"]

    def read() -> None:
        found = read_file(path).values
        if layout.startswith(".np"):
            expected = np.load(path, allow_pickle=False)
            expected = expected["values"] if isinstance(expected, np.lib.npyio.NpzFile) else expected
            expected = expected.reshape(len(expected), -1).astype(np.float32)
            assert np.array_equal(found.float().numpy(), expected, equal_nan=True), "other values than NumPy reads"

    def imported() -> None:
        data_dir = folder / "data"
        data_dir.mkdir()
        get_data.main(["--from", str(folder / "from"), "--data_dir", str(data_dir)])
        assert (data_dir / ARRAY).read_bytes() == content, "not a copy"

    program, work = pick(random, {
        "read_file": read, "get_data --from": imported,
        "main_pretrain": lambda: main_pretrain.main(
            [*own, "--device", "cpu", "--dry_run", "--history_len", "4", "--predict_len", "3"]),
    }.items())
    return BadInput(f"{layout}, {how}, for {program}", work, (str(path), ARRAY, "--history_len", "--predict_len"))


def forged_archive(random, values) -> tuple[str, bytes]:
    """A .npz file with wrong members."""
    file, member = io.BytesIO(), saved(values, ".npy")
    names = pick(random, ((), ("other.npy",), ("values.npy", "values.npy"), ("values",), ("values.txt",),
                          ("../values.npy",), ("values.npy", "node_names.npy")))
    how, inner = pick(random, (("whole", member), spoil(random, member)))
    with zipfile.ZipFile(file, "w") as archive:
        for name in dict.fromkeys(names):
            archive.writestr(name, inner)
    return f"members {names}, {how}", file.getvalue()


# Checkpoints

def bad_checkpoint(random: np.random.Generator, folder: Path, pattern: Path) -> BadInput:
    """A copy of the finished runs `pattern` in which a checkpoint is damaged, read by a program that builds on it."""
    shutil.copytree(pattern, folder, dirs_exist_ok=True)
    stage, names, program, work = pick(random, (
        ("diffusion", [CHECKPOINT], "evaluate",
         lambda run: evaluate.main([run, "--device", "cpu", "--split", "test", "--test_windows", "1"])),
        ("mean", [CHECKPOINT], "main_train", lambda run: main_train.main([*TINY, "--mean_run", run, "--dry_run"])),
        ("mean", STATES, "main_pretrain", lambda run: main_pretrain.main([*TINY, "--save_dir", str(folder)])),
    ))
    run = folder / stage / RUN
    if program == "main_pretrain":
        (run / METRICS).unlink()  # not finished: it resumes
    path = run / pick(random, names)
    way = pick(random, ("bytes", "bytes without SHA-256", "content", "settings", "weights"))
    if way.startswith("bytes"):
        how, content = spoil(random, path.read_bytes())
        path.write_bytes(content)
        if way != "bytes":
            path.with_name(path.name + DIGEST).unlink()
    else:
        content = load_checkpoint(path)
        part = content.get("state", content)
        how = {"content": lambda: strange_entry(random, pick(random, (part, content))),
               "settings": lambda: strange_entry(random, pick(random, dicts_in(content))),
               "weights": lambda: strange_weight(random, part["model" if part is not content else "weights"])}[way]()
        save_checkpoint(path, content)

    def checked() -> None:
        work(str(run))
        if way.startswith("bytes"):  # where it was read all the same, the weights are those that were written
            found, expected = (load_checkpoint(top / stage / RUN / CHECKPOINT)["weights"] for top in (folder, pattern))
            assert all(torch.equal(found[name], value) for name, value in expected.items()), "other weights"

    named = (str(run), "--", "Oracle: other data")
    return BadInput(f"{stage}/{path.name}, {way}: {how}, for {program}", checked, named)


def dicts_in(content: dict) -> list[dict]:
    """The dicts of settings and metadata in a checkpoint."""
    inner = [value for value in content.values() if isinstance(value, dict)]
    return [each for each in inner if each and isinstance(next(iter(each)), str) and not any(
        isinstance(value, torch.Tensor) for value in each.values())]


def strange_entry(random, content: dict) -> str:
    name = pick(random, content)
    if random.random() < 0.3:
        del content[name]
        return f"no {name}"
    content[name] = value = pick(random, (None, -1, 0, 10**12, "abc", "", [], {}, float("nan"), 1e300, True, [1, 2]))
    return f"{name} {value!r}"


def strange_weight(random, weights: dict) -> str:
    name = pick(random, weights)
    value = weights[name]
    ways = {
        "missing": lambda: None, "of another shape": lambda: value.new_zeros(*value.shape, 2),
        "transposed": lambda: value.mT.contiguous() if value.dim() > 1 else value[:0], "a text": lambda: "abc",
        "a list": lambda: [1.0], "NaN": lambda: torch.full_like(value, torch.nan), "complex": lambda: value * 1j,
        "empty": lambda: value.new_zeros(0), "bytes": lambda: value.to(torch.uint8),
    }
    how = pick(random, ways)
    weights[name] = ways[how]()
    if how == "missing":
        del weights[name]
    if random.random() < 0.2:
        weights["one_too_many"] = torch.zeros(3)
        how += ", and one too many"
    return f"{name} {how}"


# Command lines

def bad_command(random: np.random.Generator, folder: Path, pattern: Path) -> BadInput:
    """A command line with one mistake."""
    name, program, config_class, arguments = pick(random, (
        ("main_pretrain", main_pretrain, PretrainConfig, [*TINY, "--dry_run"]),
        ("main_train", main_train, TrainConfig, [*TINY, "--dry_run", "--mean_run", str(pattern / "mean" / RUN)]),
        ("main_pretrain", main_pretrain, PretrainConfig, [*TINY, "--dry_run"]),
        ("main_train", main_train, TrainConfig, [*TINY, "--dry_run", "--mean_run", str(pattern / "mean" / RUN)]),
        ("evaluate", evaluate, None, [str(pattern / "diffusion" / RUN), "--device", "cpu", "--test_windows", "1"]),
        ("get_data", get_data, None, ["--data_dir", str(folder)]),
        ("score_oracle", score_oracle, None, [str(pattern / "diffusion" / RUN)]),
    ))
    ways = {"unknown flag": wrong_flag, "path": wrong_path}
    if config_class:
        ways |= {"not a number": not_a_number, "out of range": out_of_range, "huge": huge, "near miss": near_miss,
                 "no value": no_value, "text": strange_text}
    way = pick(random, ways)
    wrong, named, refused = ways[way](random, name, config_class, folder)
    return BadInput(f"{name}, {way}: {' '.join(wrong)!a}", lambda: program.main([*arguments, *wrong]), named, refused)


def flags(config_class, *kinds: type) -> list[dataclasses.Field]:
    return [item for item in dataclasses.fields(config_class) if item.type in kinds]


def wrong_flag(random, name, config_class, folder):
    known = {f"--{item.name}" for item in dataclasses.fields(TrainConfig) + dataclasses.fields(PretrainConfig)}
    flag = pick(random, known)
    place = random.integers(2, len(flag))
    wrong = pick(random, (flag[:place] + flag[place + 1:], flag[:place] + flag[place] + flag[place:], flag.upper(),
                          flag.replace("_", "-") + "-", flag[:place] + pick(random, UNICODE) + flag[place:], f"-{flag}",
                          f"--{random.bytes(3).hex()}x"))
    wrong = wrong if wrong not in known and not wrong.startswith("--no-") else "--nothing"
    return [wrong, "1"], (wrong.splitlines()[0], ascii(wrong)[1:-1], "'1'", " 1"), True


def not_a_number(random, name, config_class, folder):
    item = pick(random, flags(config_class, int, float))
    return [f"--{item.name}={pick(random, NOT_A_NUMBER)}"], (f"--{item.name}",), True


def out_of_range(random, name, config_class, folder):
    item = pick(random, [item for item in flags(config_class, int, float)
                         if {item.metadata["minimum"], item.metadata["above"]} != {None}])
    lowest, highest = (item.metadata[name] for name in ("minimum", "maximum"))
    lowest = item.metadata["above"] if lowest is None else lowest
    value = pick(random, (lowest - 1, -10**6 if highest is None else 2 * highest))
    return [f"--{item.name}", str(item.type(value))], (f"--{item.name}",), True


def huge(random, name, config_class, folder):
    item = pick(random, flags(config_class, int))
    value = pick(random, (2**31, 2**63, 10**30, 2 * 10**9))
    return [f"--{item.name}", str(value)], (f"--{item.name}", "--batch_size"), False


def near_miss(random, name, config_class, folder):
    item, value = pick(random, [(item, getattr(config_class, item.name)) for item in flags(config_class, str)
                                if item.metadata["choices"] or item.name in ("data_name", "device")])
    place = random.integers(len(value))
    near = value[:place] + value[place + 1:], value + "x", value.upper() + "1", "", pick(random, UNICODE), value[::-1]
    wrong = pick(random, [each for each in near if each != value])  # v backwards is v
    return [f"--{item.name}", wrong], (f"--{item.name}", f"'{wrong}'", f" {wrong} "), True


def no_value(random, name, config_class, folder):
    item = pick(random, flags(config_class, int, float, str))
    return [f"--{item.name}"], (f"--{item.name}",), True


def strange_text(random, name, config_class, folder):
    item = pick(random, flags(config_class, str))
    text = pick(random, ("../../etc", "a/b", "x" * 5000, " ", *UNICODE, ".", "~nobody/there", "$HOME", "-", "%s",
                         "a\tb"))
    named = f"--{item.name}", repr(text), text.splitlines()[0] if text.strip() else "--"
    return [f"--{item.name}={text}"], named, False


def wrong_path(random, name, config_class, folder):
    """A flag or argument that leads to something that is not there or is something else."""
    (folder / "file").write_bytes(b"not a folder")
    (folder / "empty").mkdir()
    place = str(folder / pick(random, ("missing", "file", "empty", "file/below", "ünï cödé")))
    if name == "get_data":
        return [pick(random, ("--from", "--about")), place], (place, "--"), True
    if not config_class:
        return pick(random, (["--json", f"{place}/below/scores.json"], [place])), (place, "--json", "argument"), True
    flag = pick(random, ("--resume", "--data_dir", *(["--mean_run"] if name == "main_train" else [])))
    dataset = ["--data_name", "MobileNJ"] if flag == "--data_dir" else []
    return [flag, place, *dataset, "--no-dry_run"], (place, flag), True

"""Fuzzed inputs, each a function of (seed, number): arrays and checkpoints with a fault.

A program has to end in a clean error (`fault`) or give a correct result.
"""

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import main_pretrain
import main_train
from data.readers import read_file
from scripts import evaluate
from utils.training import checkpoint
from utils.training.runs import LOCK

NODES = 11
RUN = "Oracle_12_12"
TINY = ["--data_name", "Oracle", "--oracle_nodes", "4", "--oracle_steps", "200", "--device", "cpu", "--epochs", "6",
        "--batch_size", "16", "--channels", "4", "--layers", "1", "--networks", "1", "--ema", "0.9",
        "--keep_states"]


@dataclass(frozen=True)
class BadInput:
    """An input: its fault in words, `work` of a program on it, and texts of which an error must name one."""

    text: str
    work: Callable[[], int | None]
    named: tuple[str, ...]


def fault(bad: BadInput, status: int, said: str, before: dict, after: dict) -> str | None:
    """Why the end of a program is not acceptable; None where it is.

    Accepted: exit status 0, or 2 with one error line that names the input and with unchanged files (`files_below`).
    """
    lines = said.splitlines()
    if half := [name for name in after if name.endswith((checkpoint.TEMPORARY, ".part"))]:
        return f"left half written: {', '.join(half)}"
    if status == 0:
        return None
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
            if path.is_file() and path.name not in (LOCK, checkpoint.CONFIG)}


def pick(random: np.random.Generator, options):
    """One of the options."""
    return list(options)[random.integers(len(options))]


def spoil(random: np.random.Generator, content: bytes, most: int = 0) -> tuple[str, bytes]:
    """How bytes were damaged, and the result; bits are flipped in the first `most` bytes (0: anywhere)."""
    flipped, place = bytearray(content), random.integers(len(content))
    for bit in random.integers(8 * min(most or len(content), len(content)), size=random.integers(1, 9)):
        flipped[bit // 8] ^= 1 << bit % 8
    return pick(random, {
        "bits flipped": bytes(flipped), "truncated": content[:place], "almost whole": content[:-random.integers(1, 9)],
        "a block of zeros": content[:place] + bytes(len(content[place:place + 512])) + content[place + 512:],
        "bytes behind its end": content + random.bytes(64), "empty": b"", "random bytes": random.bytes(place + 1),
        "text": "time,node\n1,ä\n".encode(), "the start cut off": content[place:],
    }.items())


def saved(array: np.ndarray, ending: str) -> bytes:
    """An array (time, node) as the bytes of a file of this ending; a table has times too."""
    file = io.BytesIO()
    if ending == ".npy":
        np.save(file, array)
    elif ending == ".npz":
        np.savez(file, values=array)
    else:
        frame = pd.DataFrame(array, columns=[f"node {k}" for k in range(array.shape[1])])
        frame.insert(0, "time", pd.date_range("2020-01-01", periods=len(array), freq="h"))
        if ending == ".parquet":
            frame.to_parquet(file)
        else:
            frame.to_csv(file, index=False, compression="gzip" if ending == ".csv.gz" else None)
    return file.getvalue()


def bad_array(random: np.random.Generator, folder: Path, _: Path | None = None) -> BadInput:
    """A faulty file of values, read by itself or by a program."""
    values = random.normal(20, 5, (60, NODES)).astype(np.float32)
    ending = pick(random, (".npy", ".npz", ".csv", ".csv.gz", ".parquet"))
    how = pick(random, ("bytes", "value", "kind"))
    if how == "bytes":
        how, content = spoil(random, saved(values, ending), pick(random, (0, 130)))
    elif how == "value" or not ending.startswith(".np"):
        how = pick(random, (np.nan, np.inf, -np.inf, 1e39, -1e308, 1e-320, 3.4e38))
        values = values.astype(np.float64)
        values.flat[random.integers(values.size, size=random.integers(1, 20))] = how
        content = saved(values, ending)
    else:
        shape = pick(random, ((60, NODES), (), (0,), (660,), (0, NODES), (60, 0), (NODES, 60), (60, NODES, 2)))
        kind = pick(random, ("f4", "U3", "S4", "complex64", "bool", "object", "M8[h]", "i1", "u8", ">f4", "longdouble"))
        how, content = (shape, kind), saved(np.resize(values, shape).astype(kind, casting="unsafe"), ending)
    path = folder / f"values{ending}"
    path.write_bytes(content)

    def read() -> None:
        found = read_file(path).values
        if ending.startswith(".np"):
            expected = np.load(path, allow_pickle=False)
            expected = expected["values"] if isinstance(expected, np.lib.npyio.NpzFile) else expected
            expected = expected.reshape(len(expected), -1).astype(np.float32)
            assert np.array_equal(found.float().numpy(), expected, equal_nan=True), "other values than NumPy reads"

    times = ["--freq", "1h", "--start", "2020-01-01"] if ending.startswith(".np") else []
    arguments = ["--data_name", "mine", "--data_path", str(path), *times, "--device", "cpu", "--dry_run",
                 "--history_len", "4", "--predict_len", "3"]
    work = pick(random, (read, lambda: main_pretrain.main(arguments)))
    return BadInput(f"{ending}, {how}", work, (str(path), "--history_len", "--predict_len"))


def bad_checkpoint(random: np.random.Generator, folder: Path, pattern: Path) -> BadInput:
    """A copy of the finished runs `pattern` in which a checkpoint is damaged, read by a program that builds on it."""
    shutil.copytree(pattern, folder, dirs_exist_ok=True)
    stage, name, work = pick(random, (
        ("diffusion", checkpoint.CHECKPOINT,
         lambda run: evaluate.main([run, "--device", "cpu", "--split", "test", "--test_windows", "1"])),
        ("mean", checkpoint.CHECKPOINT, lambda run: main_train.main([*TINY, "--mean_run", run, "--dry_run"])),
        ("mean", pick(random, checkpoint.STATES), lambda run: main_pretrain.main([*TINY, "--save_dir", str(folder)])),
    ))
    run = folder / stage / RUN
    if name in checkpoint.STATES:
        (run / checkpoint.METRICS).unlink()  # not finished: it resumes
    path, way = run / name, pick(random, ("bytes", "entry"))
    if way == "entry":
        content = checkpoint.load_checkpoint(path)
        how = strange_entry(random, content)
        checkpoint.save_checkpoint(path, content)
    else:
        how, content = spoil(random, path.read_bytes())
        path.write_bytes(content)

    def checked() -> None:
        work(str(run))
        if way != "entry":  # where it was read all the same, the weights are those that were written
            found, expected = (checkpoint.load_checkpoint(top / stage / RUN / checkpoint.CHECKPOINT)["weights"]
                               for top in (folder, pattern))
            assert all(torch.equal(found[name], value) for name, value in expected.items()), "other weights"

    named = str(run), "--", "Oracle: other data", "Oracle: another field"
    return BadInput(f"{stage}/{name}, {way}: {how}", checked, named)


def strange_entry(random: np.random.Generator, content: dict) -> str:
    """Remove or replace an entry of a checkpoint or of a dict in it: what was done, in words."""
    part = pick(random, [content, *(value for value in content.values() if isinstance(value, dict) and value)])
    name = pick(random, part)
    value = pick(random, (None, -1, 0, 10**12, "abc", "", [], {}, float("nan"), True, torch.zeros(3), "removed"))
    part[name] = value
    if value == "removed":
        del part[name]
    return f"{name} {value!r}"

"""Show which datasets are there, and get those that are not.

    python -m scripts.get_data                       the table of all datasets
    python -m scripts.get_data --from DIR            import every known file found below DIR
    python -m scripts.get_data --download NAME ...   fetch datasets from the authors' release, over https

A file is checked (SHA-256 where it is known, and the shape) before it takes its name, so what is in the data
folder is whole; a file that is refused leaves nothing behind, and nothing that is there is overwritten.
"""

import os
import shutil
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import asdict
from http.client import HTTPException
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.registry import DATASETS, RELEASE_URL, DatasetSpec, data_dir_from, get_spec, locate, sha256_of
from utils.config import FlagParser

USER_ERRORS = (OSError, ValueError, HTTPException)


def known_files(spec: DatasetSpec) -> tuple[str, ...]:
    """All files of a dataset, its graph included, relative to the data folder."""
    return (*spec.files, spec.graph) if spec.graph else spec.files


def check_file(path: Path, file: str, spec: DatasetSpec) -> str:
    """The SHA-256 of `path`, once it has proved to be what the card says of `file`.

    Raises: ValueError with both digests, or with the expected and the found shape.
    """
    found, expected = sha256_of(path), spec.sha256.get(file)
    if expected and found != expected:
        raise ValueError(f"{file} is refused, its SHA-256 differs: expected {expected}, found {found}")
    if file.endswith((".npy", ".npz")):
        shape = read_shape(path, file)
        if len(shape) not in (2, 3) or np.prod(shape[1:]) != spec.num_nodes:
            raise ValueError(f"{file} is refused: expected (time, ...) with {spec.num_nodes} nodes, "
                             f"found {shape}")
    return found


def read_shape(path: Path, file: str) -> tuple[int, ...]:
    """The shape of a numeric array, read without running anything that the file may hold."""
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
        if isinstance(array, np.lib.npyio.NpzFile):
            with array:
                array = array["values"]
        kind, shape = array.dtype.kind, array.shape
    except Exception:  # a damaged file makes NumPy and zipfile raise many kinds, or give bytes
        raise ValueError(f"{file} is refused: not a whole numpy file with one array of numbers") from None
    if kind not in "iuf":
        raise ValueError(f"{file} is refused: expected numbers, found an array of type {array.dtype}")
    return shape


@contextmanager
def arriving(target: Path):
    """A path beside `target` to write to: it becomes `target` if the block ends well, else all traces go."""
    new_folders = [folder for folder in target.parents if not folder.exists()]
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        with suppress(OSError):
            for folder in new_folders:
                folder.rmdir()
        raise


def refuse_to_overwrite(target: Path, digest: str | None):
    """Raise a ValueError if another file than the one with this digest stands at `target`."""
    if target.exists() and digest and (found := sha256_of(target)) != digest:
        raise ValueError(f"{target} is there already and differs: move it away first. "
                         f"Its SHA-256 is {found}, that of the new file {digest}")


def verdict(file: str, spec: DatasetSpec, digest: str) -> str:
    """What the check of SHA-256 came to, in words."""
    return "SHA-256 as expected" if file in spec.sha256 else (
        f"shape as expected; its SHA-256 could not be verified, none is published. It is {digest}")


def find_below(folder: Path, files: list[str]) -> dict[str, Path]:
    """The copies of `files` below `folder`: by the relative path where there is one, else by bare name."""
    names = {Path(file).name: file for file in files}

    def rank(path):
        return not path.as_posix().endswith(f"/{names[path.name]}"), len(path.parts), path

    found = [path for path in folder.rglob("*") if path.name in names and path.is_file()]
    return {names[path.name]: path for path in sorted(found, key=rank, reverse=True)}  # the last one stays


def import_file(source: Path, file: str, spec: DatasetSpec, data_dir: Path) -> str:
    """Copy one checked file into the data folder; gives what was done, in words."""
    digest, target = check_file(source, file, spec), data_dir / file
    refuse_to_overwrite(target, digest)
    if target.exists():
        return f"{file}: already there"
    with arriving(target) as part:
        shutil.copyfile(source, part)
        if sha256_of(part) != digest:
            raise ValueError(f"{file} is refused: {source} changed while it was copied")
    return f"{file}: imported, " + verdict(file, spec, digest)


class HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https addresses only."""

    def redirect_request(self, request, response, code, message, headers, url):
        require_https(url)
        return super().redirect_request(request, response, code, message, headers, url)


def require_https(url: str):
    if not url.lower().startswith("https://"):
        raise ValueError(f"{url} is refused: only https addresses are accepted")


def fetch(url: str, path: Path):
    """Save what `url` answers as `path`."""
    with urllib.request.build_opener(HttpsOnly).open(url, timeout=60) as answer, path.open("wb") as file:
        total = int(answer.headers.get("Content-Length") or 0)
        name = url.rsplit("/", 1)[-1]
        with tqdm(total=total or None, desc=name, unit="B", unit_scale=True, disable=None) as bar:
            while block := answer.read(1 << 16):
                bar.update(file.write(block))
        if total and file.tell() != total:
            raise ValueError(f"{url}: the connection ended after {file.tell()} of {total} bytes; try again")


def download_file(url: str, file: str, spec: DatasetSpec, data_dir: Path) -> str:
    """Fetch one file into the data folder and check it; gives what was done, in words."""
    expected, target = spec.sha256.get(file), data_dir / file
    refuse_to_overwrite(target, expected)
    if target.exists():
        return f"{file}: already there"
    with arriving(target) as part:
        try:
            fetch(url, part)
        except OSError as error:
            raise OSError(f"{url}: {error}") from None
        digest = check_file(part, file, spec)
    return f"{file}: downloaded, " + verdict(file, spec, digest)


def download(name: str, base_url: str, data_dir: Path):
    """Fetch the files of one dataset, saying what was done with each."""
    spec = get_spec(name)
    if spec.private:
        raise ValueError(f"{name} cannot be downloaded. {spec.private}")
    if spec.synthetic or spec.embedded:
        how = "is generated when it is used" if spec.synthetic else "comes with the project"
        raise ValueError(f"{name} {how}: there is nothing to download")
    for file in known_files(spec):
        print(download_file(f"{base_url.rstrip('/')}/{file}", file, spec, data_dir))


def import_all(folder: Path, data_dir: Path) -> list[str]:
    """Import every known file below `folder`, saying what was done with each; gives the refusals."""
    if not folder.is_dir():
        raise ValueError(f"--from {folder}: no such folder")
    cards = {file: spec for spec in DATASETS.values() for file in known_files(spec)}
    sources = find_below(folder, list(cards))
    if not sources:
        raise ValueError(f"--from {folder}: none of the known files is below it. They are {', '.join(cards)}")
    refusals = []
    for file in filter(sources.get, cards):
        try:
            print(import_file(sources[file], file, cards[file], data_dir))
        except USER_ERRORS as error:
            refusals.append(str(error))
    return refusals


AVAILABLE = ("present", "embedded", "generated")


def state_of(name: str, data_dir: Path) -> tuple[str, str]:
    """In words whether a dataset is there, and its size."""
    spec = get_spec(name)
    if spec.synthetic:
        return "generated", ""
    try:
        paths = locate(name, data_dir)
    except FileNotFoundError:
        return "private" if spec.private else "missing", ""
    digests = [(spec.sha256.get(file), sha256_of(path)) for file, path in zip(spec.files, paths, strict=True)]
    changed = any(known and known != found for known, found in digests)
    state = "differs" if changed else "embedded" if spec.embedded else "present"
    return state, f"{sum(path.stat().st_size for path in paths) / 1e6:.1f} MB"


def table(data_dir: Path) -> str:
    """One line for each dataset."""
    rows = [("name", "shape", "interval", "unit", "state", "size")]
    for name, spec in DATASETS.items():
        shape = " + ".join("x".join(map(str, shape)) for shape in spec.shape) or f"time x {spec.num_nodes}"
        rows.append((name, shape, " ".join(map(str, spec.interval)), spec.unit, *state_of(name, data_dir)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main(argv=None):
    parser = FlagParser(__doc__.splitlines()[0])
    action = parser.add_mutually_exclusive_group()
    parser.set_defaults(folder=None, download=None, about=None, available=False, data_dir=None)
    action.add_argument("--from", dest="folder", type=Path, metavar="DIR",
                        help="import every known file found below DIR, by its path or its bare name")
    action.add_argument("--download", nargs="+", metavar="NAME", help="fetch these datasets from the release")
    action.add_argument("--about", metavar="NAME", help="print the card of a dataset: source, licence, files, ...")
    action.add_argument("--available", action="store_true", help="print only the names of the datasets that are there")
    parser.add_argument("--base_url", default=RELEASE_URL,
                        help="https address that holds Climate/, Urban/, ... (default: %(default)s)")
    parser.add_argument("--data_dir", help="data folder (default: COST_DATA_DIR, else data/dataset)")
    args = parser.parse_args(argv)
    data_dir, refusals = data_dir_from(args.data_dir), []
    try:
        if args.folder:
            refusals = import_all(args.folder.expanduser(), data_dir)
        elif args.download:
            require_https(args.base_url)
            for name in args.download:
                get_spec(name)  # an unknown name is told before anything is fetched
            for name in args.download:
                download(name, args.base_url, data_dir)
        elif args.about:
            card = asdict(get_spec(args.about))
            known = {fact: value for fact, value in card.items() if value not in (None, (), {}, False)}
            print("\n".join(f"{fact + ':':18}{value}" for fact, value in known.items()))
        elif args.available:
            print("\n".join(name for name in DATASETS if state_of(name, data_dir)[0] in AVAILABLE))
        else:
            print(f"{table(data_dir)}\n\nData folder: {data_dir}. To get what is missing: --from DIR or "
                  f"--download NAME (see --help).")
    except USER_ERRORS as error:
        refusals.append(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    for refusal in refusals:
        print(f"get_data: {refusal}", file=sys.stderr)
    if refusals:
        sys.exit(2)


if __name__ == "__main__":
    main()

"""Show which datasets are there, and get those that are not.

    python -m scripts.get_data                       the table of all datasets
    python -m scripts.get_data --from DIR            import every known file found below DIR
    python -m scripts.get_data --download NAME ...   fetch datasets from the authors' release, over https

A file is checked (SHA-256 or git blob id where one is published, and the shape) before it takes its name. A refused
file leaves nothing behind, and no file is overwritten. TaxiBJ may also be the .zip of the release.
"""

import hashlib
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from tqdm import tqdm

from data.memory import check_memory
from data.registry import (
    DATASETS,
    RELEASE_URL,
    DatasetSpec,
    data_dir_from,
    get_spec,
    git_blob_of,
    locate,
    sha256_of,
)
from utils.config import FlagParser
from utils.program import run_main
from utils.training.checkpoint import naming, write_atomically
from utils.training.signals import time_limit

LARGEST_FILE = 256 << 20  # bytes; the largest of the release has 50 million
LONGEST_DOWNLOAD = 1800  # seconds for a file


def known_files(spec: DatasetSpec) -> tuple[str, ...]:
    """All files of a dataset, its graph included, relative to the data folder."""
    return (*spec.files, spec.graph) if spec.graph else spec.files


def check_file(path: Path, file: str, spec: DatasetSpec) -> str:
    """The SHA-256 of `path`, which must agree with the card of `file`.

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
    """The shape of a numeric array; no pickle is loaded."""
    check_memory(path)
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
def unpacked(source: Path, file: str) -> Iterator[Path]:
    """A path to `file`, unpacked for the time being where `source` is the .zip that holds it.

    Raises: ValueError for an archive that is damaged, encrypted, too large, or has not one file of that name.
    """
    if source.suffix != ".zip":
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(file).name  # whatever paths the archive names
        try:
            with zipfile.ZipFile(source) as archive:
                entries = [entry for entry in archive.infolist() if Path(entry.filename).name == path.name]
                if len(entries) != 1:
                    raise ValueError(f"{source} is refused: {len(entries)} files in it are named {path.name}")
                if entries[0].file_size > LARGEST_FILE:
                    raise ValueError(f"{source} is refused: it unfolds to more than {LARGEST_FILE >> 20} MiB")
                with naming(path), archive.open(entries[0]) as packed, path.open("wb") as plain:
                    shutil.copyfileobj(packed, plain)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{source} is refused: not a whole archive without password ({error})") from None
        yield path


def refuse_to_overwrite(target: Path, digest: str | None):
    """Raises: ValueError where `target` is a file of another digest."""
    if target.exists() and digest and (found := sha256_of(target)) != digest:
        raise ValueError(f"{target} is there already and differs: move it away first. "
                         f"Its SHA-256 is {found}, that of the new file {digest}")


def verdict(source: Path, file: str, spec: DatasetSpec, digest: str) -> str:
    """Result of the check of the SHA-256 or of the git blob id of `source`, in words."""
    if file in spec.sha256:
        return "SHA-256 as expected"
    name = spec.archive.get(file, file) if source.suffix == ".zip" else file
    blob, found = spec.git_blob.get(name), git_blob_of(source)
    if found == blob:
        return f"its git blob id is that of {name} in the authors' release, {blob}"
    reason = f"the git blob id of {name} in the release is {blob}, its own {found}" if blob else "none is published"
    return f"shape as expected; it could not be verified, {reason}. Its SHA-256 is {digest}"


def find_below(folder: Path, files: list[str]) -> dict[str, Path]:
    """The copies of `files` below `folder`: by the relative path where there is one, else by bare name."""
    names = {Path(file).name: file for file in files}

    def rank(path):
        return not path.as_posix().endswith(f"/{names[path.name]}"), len(path.parts), path

    found = [path for path in folder.rglob("*") if path.name in names and path.is_file()]
    return {names[path.name]: path for path in sorted(found, key=rank, reverse=True)}  # the last one of a name is kept


def import_file(source: Path, file: str, spec: DatasetSpec, data_dir: Path, done: str = "imported") -> str:
    """Copy one checked file into the data folder, out of its .zip where `source` is that; a message.

    After an error no file and no new folder is left.
    """
    target = data_dir / file
    with unpacked(source, file) as plain:
        digest = check_file(plain, file, spec)
        refuse_to_overwrite(target, digest)
        if target.exists():
            return f"{file}: already there"

        def copy(part):
            content = plain.read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                raise ValueError(f"{file} is refused: {source} changed while it was copied")
            part.write(content)

        new_folders = [folder for folder in target.parents if not folder.exists()]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, copy)
        except BaseException:
            with suppress(OSError):
                for folder in new_folders:
                    folder.rmdir()
            raise
    return f"{file}: {done}, " + verdict(source, file, spec, digest)


class SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https addresses of the same host only."""

    def redirect_request(self, request, response, code, message, headers, url):
        require_https(url)
        if urlsplit(url).netloc != urlsplit(request.full_url).netloc:
            raise ValueError(f"{request.full_url} is refused: it leads to another host, {urlsplit(url).netloc}")
        return super().redirect_request(request, response, code, message, headers, url)


def require_https(url: str):
    if not url.lower().startswith("https://"):
        raise ValueError(f"{url} is refused: only https addresses are accepted")


def fetch(url: str, path: Path):
    """Save the content of `url`: at most LARGEST_FILE bytes, in at most LONGEST_DOWNLOAD seconds."""
    with (time_limit(LONGEST_DOWNLOAD), urllib.request.build_opener(SameHost).open(url, timeout=60) as answer,
          path.open("wb") as file):
        total, size = int(answer.headers.get("Content-Length") or 0), 0
        with tqdm(total=total or None, desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
            while max(total, size) <= LARGEST_FILE and (block := answer.read1(1 << 16)):
                with naming(path):
                    size += file.write(block)
                    file.flush()
                bar.update(len(block))
        if max(total, size) > LARGEST_FILE:
            raise ValueError(f"{url} is refused: larger than {LARGEST_FILE >> 20} MiB, as no file of the release is")
        if total and size != total:
            raise ValueError(f"{url}: the connection ended after {size} of {total} bytes; try again")


def download_file(base_url: str, file: str, spec: DatasetSpec, data_dir: Path) -> str:
    """Fetch one file, or the .zip that holds it, and import it; a message."""
    refuse_to_overwrite(data_dir / file, spec.sha256.get(file))
    if (data_dir / file).exists():
        return f"{file}: already there"
    name = spec.archive.get(file, file)
    url = f"{base_url.rstrip('/')}/{name}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / Path(name).name
        try:
            fetch(url, source)
        except (OSError, HTTPException) as error:
            raise OSError(f"{url}: {error}") from None
        return import_file(source, file, spec, data_dir, "downloaded")


def download(name: str, base_url: str, data_dir: Path):
    """Fetch the files of one dataset, with a message for each."""
    spec = get_spec(name)
    if spec.private:
        raise ValueError(f"{name} cannot be downloaded. {spec.private}")
    if spec.synthetic or spec.embedded:
        how = "is generated when it is used" if spec.synthetic else "comes with the project"
        raise ValueError(f"{name} {how}: there is nothing to download")
    for file in known_files(spec):
        print(download_file(base_url, file, spec, data_dir))


def import_all(folder: Path, data_dir: Path) -> None:
    """Import every known file below `folder`, with a message for each.

    Raises: ValueError with all refusals, after the other files are imported.
    """
    if not folder.is_dir():
        raise ValueError(f"--from {folder}: no such folder")
    cards = {file: spec for spec in DATASETS.values() for file in known_files(spec)}
    archives = {file: name for spec in DATASETS.values() for file, name in spec.archive.items()}
    found = find_below(folder, [*cards, *archives.values()])
    sources = {file: found.get(file) or found.get(archives.get(file)) for file in cards}
    if not found:
        raise ValueError(f"--from {folder}: none of the known files is below it. They are "
                         f"{', '.join((*cards, *archives.values()))}")
    refusals = []
    for file in filter(sources.get, cards):
        try:
            print(import_file(sources[file], file, cards[file], data_dir))
        except (OSError, ValueError) as error:
            refusals.append(str(error))
    if refusals:
        raise ValueError("; ".join(refusals))


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
    changed = any(expected and expected != found for expected, found in digests)
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
    data_dir = data_dir_from(args.data_dir)
    if args.folder:
        import_all(args.folder.expanduser(), data_dir)
    elif args.download:
        require_https(args.base_url)
        for name in args.download:
            get_spec(name)  # refuses an unknown name before anything is fetched
        for name in args.download:
            download(name, args.base_url, data_dir)
    elif args.about:
        for name, value in asdict(get_spec(args.about)).items():
            if value not in (None, (), {}, False):
                print(f"{name + ':':18}{value}")
    elif args.available:
        print("\n".join(name for name in DATASETS if state_of(name, data_dir)[0] in AVAILABLE))
    else:
        print(f"{table(data_dir)}\n\nData folder: {data_dir}. To get what is missing: --from DIR or "
              f"--download NAME (see --help).")
    return 0


if __name__ == "__main__":
    run_main(main)

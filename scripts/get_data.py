"""Show which datasets are there, and get those that are not.

    python -m scripts.get_data                       the table of all datasets
    python -m scripts.get_data --from DIR            import every known file found below DIR
    python -m scripts.get_data --download NAME ...   fetch datasets from the authors' release, over https

A file is checked (SHA-256 where one is known, else the number of nodes) before it takes its name. A refused file leaves
nothing behind, and no file is overwritten. TaxiBJ may also be the .zip of the release.
"""

import hashlib
import io
import time
import urllib.request
import zipfile
import zlib
from dataclasses import asdict
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from tqdm import tqdm

from data.registry import DATASETS, RELEASE_URL, DatasetSpec, data_dir_from, get_spec, locate, sha256_of
from utils.config import FlagParser
from utils.program import run_main
from utils.training.checkpoint import write_atomically

LARGEST_FILE = 256 << 20  # bytes; the largest of the release has 50 million
LONGEST_DOWNLOAD = 1800  # seconds for a file


def import_file(content: bytes, source: Path | str, file: str, spec: DatasetSpec, data_dir: Path) -> str:
    """Write one checked file into the data folder, unpacked where its `source` is a .zip: what was done, in words.

    Raises: ValueError for another SHA-256 or shape, a wrong archive, or where another file is there already.
    """
    name = spec.archive.get(file, file) if str(source).endswith(".zip") else file
    expected, blob = spec.sha256.get(file), spec.git_blob.get(name)
    own_blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    content = unpacked(content, source, Path(file).name) if name != file else content
    digest = hashlib.sha256(content).hexdigest()
    if expected and digest != expected:
        raise ValueError(f"{file} is refused, its SHA-256 differs: expected {expected}, found {digest}")
    if not expected and file.endswith(".npy"):
        try:
            array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except Exception:  # a damaged file makes NumPy raise many kinds
            raise ValueError(f"{file} is refused: not a whole numpy file with one array of numbers") from None
        if array.dtype.kind not in "iuf" or array.ndim not in (2, 3) or np.prod(array.shape[1:]) != spec.num_nodes:
            raise ValueError(f"{file} is refused: expected numbers (time, ...) with {spec.num_nodes} nodes, found "
                             f"{array.shape} of {array.dtype}")
    if is_there(data_dir / file, digest):
        return f"{file}: already there"
    (data_dir / file).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(data_dir / file, lambda part: part.write(content))
    if expected:
        return f"{file}: imported, SHA-256 as expected"
    if own_blob == blob:
        return f"{file}: imported, its git blob id is that of {name} in the authors' release, {blob}"
    reason = f"the git blob id of {name} in the release is {blob}, its own {own_blob}" if blob else "none is published"
    return f"{file}: imported; it could not be verified, {reason}. Its SHA-256 is {digest}"


def unpacked(content: bytes, source: Path | str, name: str) -> bytes:
    """The one file of a name in an archive, whatever path it has there. Raises: ValueError without such a one."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [entry for entry in archive.infolist() if Path(entry.filename).name == name]
            if len(entries) != 1:
                raise ValueError(f"{source} is refused: {len(entries)} files in it are named {name}")
            if entries[0].file_size > LARGEST_FILE:
                raise ValueError(f"{source} is refused: it decompresses to more than {LARGEST_FILE >> 20} MiB")
            return archive.read(entries[0])
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{source} is refused: not a whole archive without password ({error})") from None


def is_there(target: Path, digest: str | None) -> bool:
    """Whether a file is there. Raises: ValueError where it has another digest."""
    if target.exists() and digest and (found := sha256_of(target)) != digest:
        raise ValueError(f"{target} is there already and differs: move it away first. "
                         f"Its SHA-256 is {found}, that of the new file {digest}")
    return target.exists()


class SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https addresses of the same host only."""

    def redirect_request(self, request, response, code, message, headers, url):
        if urlsplit(url)[:2] != urlsplit(request.full_url)[:2]:
            raise ValueError(f"{request.full_url} is refused: it leads to {url}, no https address of the same host")
        return super().redirect_request(request, response, code, message, headers, url)


def fetch(url: str) -> bytes:
    """The content of `url`: at most LARGEST_FILE bytes, in at most LONGEST_DOWNLOAD seconds."""
    content, end = bytearray(), time.monotonic() + LONGEST_DOWNLOAD
    with urllib.request.build_opener(SameHost).open(url, timeout=60) as answer:
        total = int(answer.headers.get("Content-Length") or 0)
        with tqdm(total=total or None, desc=url.split("/")[-1], unit="B", unit_scale=True, disable=None) as bar:
            while max(total, len(content)) <= LARGEST_FILE and (block := answer.read1(1 << 16)):
                content += block
                bar.update(len(block))
                if time.monotonic() > end:
                    raise TimeoutError(f"it took longer than {LONGEST_DOWNLOAD:g} seconds")
    if max(total, len(content)) > LARGEST_FILE:
        raise ValueError(f"{url} is refused: larger than {LARGEST_FILE >> 20} MiB, as no file of the release is")
    if total and len(content) != total:
        raise ValueError(f"{url}: the connection ended after {len(content)} of {total} bytes; try again")
    return bytes(content)


def download(name: str, spec: DatasetSpec, data_dir: Path) -> None:
    """Fetch the files of one dataset, with a message for each."""
    reason = ("It is generated when it is used." if spec.synthetic else
              "It comes with the project." if spec.embedded else spec.private)
    if reason:
        raise ValueError(f"{name} cannot be downloaded. {reason}")
    for file in filter(None, (*spec.files, spec.graph)):
        if is_there(data_dir / file, spec.sha256.get(file)):
            print(f"{file}: already there")
            continue
        url = f"{RELEASE_URL}/{spec.archive.get(file, file)}"
        try:
            content = fetch(url)
        except (OSError, HTTPException) as error:
            raise OSError(f"{url}: {error}") from None
        print(import_file(content, url, file, spec, data_dir))


def import_all(folder: Path, data_dir: Path) -> None:
    """Import every known file below `folder`, found by its relative path, else by its bare name; a message for each."""
    if not folder.is_dir():
        raise ValueError(f"--from {folder}: no such folder")
    paths = sorted(filter(Path.is_file, folder.absolute().rglob("*")), key=lambda path: (len(path.parts), path))
    files = {file: spec for spec in DATASETS.values() for file in (*spec.files, spec.graph) if file}
    found, refusals = 0, []
    for file, spec in files.items():
        endings = [f"/{end}" for name in (file, spec.archive.get(file, file)) for end in (name, Path(name).name)]
        source = next((path for ending in endings for path in paths if path.as_posix().endswith(ending)), None)
        if source is None:
            continue
        found += 1
        try:
            print(import_file(source.read_bytes(), source, file, spec, data_dir))
        except (OSError, ValueError) as error:
            refusals.append(str(error))
    if not found:
        raise ValueError(f"--from {folder}: none of the known files is below it. They are {', '.join(files)}")
    if refusals:
        raise ValueError("; ".join(refusals))


def state_of(name: str, spec: DatasetSpec, data_dir: Path) -> str:
    """In one word whether a dataset is there."""
    if spec.synthetic:
        return "generated"
    try:
        paths = locate(name, data_dir)
    except FileNotFoundError:
        return "private" if spec.private else "missing"
    changed = any(file in spec.sha256 and sha256_of(path) != spec.sha256[file]
                  for file, path in zip(spec.files, paths, strict=True))
    return "differs" if changed else "embedded" if spec.embedded else "present"


def main(argv=None):
    parser = FlagParser(__doc__.splitlines()[0])
    action = parser.add_mutually_exclusive_group()
    parser.set_defaults(folder=None, download=None, about=None, available=False, data_dir=None)
    action.add_argument("--from", dest="folder", type=Path, metavar="DIR",
                        help="import every known file found below DIR, by its path or its bare name")
    action.add_argument("--download", nargs="+", metavar="NAME", help="fetch these datasets from the release")
    action.add_argument("--about", metavar="NAME", help="print the card of a dataset: source, licence, files, ...")
    action.add_argument("--available", action="store_true", help="print only the names of the datasets that are there")
    parser.add_argument("--data_dir", help="data folder (default: COST_DATA_DIR, else data/dataset)")
    args = parser.parse_args(argv)
    data_dir = data_dir_from(args.data_dir)
    if args.folder:
        import_all(args.folder.expanduser(), data_dir)
    elif args.download:
        for name, spec in [(name, get_spec(name)) for name in args.download]:  # all known before one is fetched
            download(name, spec, data_dir)
    elif args.about:
        for name, value in asdict(get_spec(args.about)).items():
            if value not in (None, (), {}, False):
                print(f"{name + ':':18}{value}")
    elif args.available:
        for name, spec in DATASETS.items():
            if state_of(name, spec, data_dir) in ("present", "embedded", "generated"):
                print(name)
    else:
        rows = [("name", "shape", "interval", "unit", "state")]
        for name, spec in DATASETS.items():
            shape = " + ".join("x".join(map(str, shape)) for shape in spec.shape) or f"time x {spec.num_nodes}"
            rows.append((name, shape, " ".join(map(str, spec.interval)), spec.unit, state_of(name, spec, data_dir)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(map(str.ljust, row, widths)).rstrip())
        print(f"\nData folder: {data_dir}. To get what is missing: --from DIR or --download NAME (see --help).")
    return 0


if __name__ == "__main__":
    run_main(main)

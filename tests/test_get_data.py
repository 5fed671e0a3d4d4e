"""Data arrives whole and checked, or not at all, and every refusal is one clear line."""

import contextlib
import io
import os
import resource
import signal
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SHARED

from data.registry import DATASETS, DEFAULT_DATA_DIR, sha256_of
from scripts import get_data
from tests.tools import build_nycflights
from tests.tools.children import end_of, start_child
from utils.program import run_main


def array_bytes(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


CROWD = array_bytes(np.ones((30, 403, 1), np.float32))


def put(folder: Path, file: str, content: bytes = CROWD) -> Path:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def refusal(capsys, *argv) -> str:
    """The one line that the command says before it leaves with status 2."""
    with pytest.raises(SystemExit) as caught:
        run_main(lambda: get_data.main(list(map(str, argv))))
    said = capsys.readouterr().err.strip()
    assert caught.value.code == 2 and "\n" not in said and "Traceback" not in said
    return said


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def source(tmp_path):
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target"


# The table

def test_the_table_says_what_is_there(target, capsys):
    put(target, "Urban/CrowdBM.npy")
    put(target, "Urban/BikeDC.npy")
    get_data.main(["--data_dir", str(target)])
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert DATASETS.keys() <= rows.keys()
    for name, state in dict(NYCFlights="embedded", Oracle="generated", SST="missing", SolarPower="private",
                            CrowdBM="present", BikeDC="differs").items():
        assert state in rows[name]


# Import

def test_the_shared_datasets_are_imported_and_a_second_time_changes_nothing(target, capsys):
    if not SHARED.is_dir():
        pytest.skip(f"no published arrays at {SHARED}")
    get_data.main(["--from", str(SHARED), "--data_dir", str(target)])
    arrived = {path: path.stat().st_mtime_ns for path in target.rglob("*") if path.is_file()}
    assert {target / "Climate/SST.npy", target / "Urban/Los_Speed_adj.csv"} <= arrived.keys()
    get_data.main(["--from", str(SHARED), "--data_dir", str(target)])
    assert arrived == {path: path.stat().st_mtime_ns for path in target.rglob("*") if path.is_file()}
    assert capsys.readouterr().out.count("already there") == len(arrived)


def test_a_file_is_found_by_its_path_before_its_bare_name(source, target):
    put(source, "CrowdBM.npy", b"another file")
    put(source, "deep/down/Urban/CrowdBM.npy")
    get_data.main(["--from", str(source), "--data_dir", str(target)])
    assert (target / "Urban/CrowdBM.npy").read_bytes() == CROWD


def test_a_file_is_found_in_the_current_folder_itself(tmp_path, target, monkeypatch):
    put(tmp_path / "here", "CrowdBM.npy")
    monkeypatch.chdir(tmp_path / "here")
    get_data.main(["--from", ".", "--data_dir", str(target)])
    assert (target / "Urban/CrowdBM.npy").read_bytes() == CROWD


def test_a_file_is_found_by_its_bare_name_below_a_path_with_spaces(tmp_path, target):
    put(tmp_path / "ein Übungs ordner", "CrowdBM.npy").chmod(0o444)
    get_data.main(["--from", str(tmp_path / "ein Übungs ordner"), "--data_dir", str(target)])
    assert (target / "Urban/CrowdBM.npy").read_bytes() == CROWD


def test_a_tampered_file_is_refused(source, target, capsys):
    path = put(source, "Urban/BikeDC.npy", array_bytes(np.zeros((1440, 20, 20), np.int32)))
    said = refusal(capsys, "--from", source, "--data_dir", target)
    assert sha256_of(path) in said and DATASETS["BikeDC"].sha256["Urban/BikeDC.npy"] in said
    assert not target.exists()


def test_a_tampered_graph_is_refused_and_the_good_file_beside_it_arrives(source, target, capsys):
    put(source, "Urban/CrowdBM.npy")
    put(source, "Urban/Los_Speed_adj.csv", b"1,0\n0,1\n")
    assert "Los_Speed_adj.csv is refused" in refusal(capsys, "--from", source, "--data_dir", target)
    assert [path.name for path in target.rglob("*.*")] == ["CrowdBM.npy"]


class Payload:
    def __reduce__(self):
        return pytest.fail, ("the payload ran",)


@pytest.mark.parametrize("content", [
    b"", CROWD[:-1], b"time,node\n1,2\n",
    array_bytes(np.array(["a"])), array_bytes(np.array([Payload()], object)),
    array_bytes(np.ones(30)), array_bytes(np.ones((30, 402))), array_bytes(np.ones((30, 403), complex)),
], ids=["empty", "truncated", "text", "words", "pickle", "1-D", "wrong node count", "complex"])
def test_a_file_that_is_no_field_of_numbers_is_refused(content, source, target, capsys):
    put(source, "Urban/CrowdBM.npy", content)
    said = refusal(capsys, "--from", source, "--data_dir", target)
    assert "Urban/CrowdBM.npy is refused" in said and "allow_pickle" not in said and not target.exists()


@pytest.mark.parametrize("member", ["values", "values.npy"])
def test_an_archive_with_a_forged_member_is_refused(member, source, target, capsys):
    forged = b"no array" if member == "values" else CROWD.replace(b"(30, 403, 1)", b"(30,-403, 1)")
    path = put(source, "Urban/CrowdBM.npy", b"")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, forged)
    said = refusal(capsys, "--from", source, "--data_dir", target)
    assert "Urban/CrowdBM.npy is refused: not a whole numpy file" in said and not target.exists()


def test_an_unknown_flag_is_refused_in_one_line(capsys):
    assert "--abuot" in refusal(capsys, "--abuot", "SST")


def test_a_differing_file_in_the_data_folder_is_never_overwritten(source, target, capsys):
    put(source, "Urban/CrowdBM.npy")
    mine = put(target, "Urban/CrowdBM.npy", array_bytes(np.zeros((5, 403))))
    before = mine.read_bytes()
    assert "move it away first" in refusal(capsys, "--from", source, "--data_dir", target)
    assert mine.read_bytes() == before


def test_an_import_from_nowhere_or_from_a_folder_without_data_is_refused(source, target, capsys):
    assert "no such folder" in refusal(capsys, "--from", source, "--data_dir", target)
    source.mkdir()
    assert "none of the known files" in refusal(capsys, "--from", source, "--data_dir", target)


def test_the_environment_names_the_data_folder(source, target, monkeypatch):
    monkeypatch.setenv("COST_DATA_DIR", str(target))
    put(source, "CrowdBM.npy")
    get_data.main(["--from", str(source)])
    assert (target / "Urban/CrowdBM.npy").is_file()


def test_an_interrupted_copy_leaves_no_trace(source, target, monkeypatch):
    def interrupted(path, write):
        assert path.parent.is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr(get_data, "write_atomically", interrupted)
    put(source, "Urban/CrowdBM.npy")
    with pytest.raises(KeyboardInterrupt):
        get_data.main(["--from", str(source), "--data_dir", str(target)])
    assert files_of(target) == []


# Copies of the release whose SHA-256 is not known

TAXI = array_bytes(np.ones((30, 32, 32), np.int32))


def archive_of(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def released(monkeypatch, name: str, file: str, path: Path) -> str:
    """Let the card name the git blob id of a file, as git itself gives it."""
    blob = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], git_blob={file: blob}))
    return blob


def test_the_cards_name_the_git_blob_ids_of_the_release():
    assert {file: blob[:7] for spec in DATASETS.values() for file, blob in spec.git_blob.items()} == {
        "CommTraffic/MobileSH.npy": "22b745d", "Urban/CrowdBJ.npy": "5b0d7f4", "Urban/CrowdBM.npy": "c6d6a12",
        "Urban/TaxiBJ.zip": "3e72f4d"}


def test_a_copy_of_the_release_is_verified_by_its_git_blob_id_and_another_one_is_said_not_to_be(
        source, target, capsys, monkeypatch):
    path = put(source, "CrowdBM.npy")
    expected, own = DATASETS["CrowdBM"].git_blob["Urban/CrowdBM.npy"], released(
        monkeypatch, "CrowdBM", "Urban/CrowdBM.npy", path)
    get_data.main(["--from", str(source), "--data_dir", str(target)])
    assert f"imported, its git blob id is that of Urban/CrowdBM.npy in the authors' release, {own}" in (
        capsys.readouterr().out)
    monkeypatch.setitem(DATASETS, "CrowdBM", replace(DATASETS["CrowdBM"], git_blob={"Urban/CrowdBM.npy": expected}))
    get_data.main(["--from", str(source), "--data_dir", str(target / "again")])
    said = capsys.readouterr().out
    assert "could not be verified, the git blob id of Urban/CrowdBM.npy in the release is " in said
    assert f"in the release is {expected}, its own {own}. Its SHA-256 is {sha256_of(path)}" in said


@pytest.mark.parametrize("hours", [504, 672, 30])
def test_a_copy_of_mobile_sh_may_have_any_length_and_only_its_nodes_are_counted(hours, source, target, capsys):
    put(source, "MobileSH.npy", array_bytes(np.ones((hours, 32, 28), np.float32)))
    get_data.main(["--from", str(source), "--data_dir", str(target)])
    assert "CommTraffic/MobileSH.npy: imported; it could not be verified" in capsys.readouterr().out
    put(source, "MobileSH.npy", array_bytes(np.ones((hours, 32, 27), np.float32)))
    said = refusal(capsys, "--from", source, "--data_dir", target / "again")
    assert f"with 896 nodes, found ({hours}, 32, 27)" in said


@pytest.mark.parametrize("inside", ["TaxiBJ.npy", "data/TaxiBJ.npy", "../../TaxiBJ.npy", "/etc/TaxiBJ.npy"])
def test_the_archive_of_taxi_bj_is_verified_and_unpacked_wherever_its_paths_lead(
        inside, source, target, capsys, monkeypatch):
    others = ("readme.txt", b"x"), ("__MACOSX/._TaxiBJ.npy", b"x")
    path = archive_of(source / "Urban/TaxiBJ.zip", *others, (inside, TAXI))
    blob = released(monkeypatch, "TaxiBJ", "Urban/TaxiBJ.zip", path)
    get_data.main(["--from", str(source), "--data_dir", str(target)])
    assert f"its git blob id is that of Urban/TaxiBJ.zip in the authors' release, {blob}" in capsys.readouterr().out
    assert files_of(target) == [target / "Urban/TaxiBJ.npy"]
    assert (target / "Urban/TaxiBJ.npy").read_bytes() == TAXI
    get_data.main(["--from", str(source), "--data_dir", str(target)])
    assert "already there" in capsys.readouterr().out


def encrypted(path: Path) -> Path:
    """The flag of encryption in both headers of the only member."""
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("make, reason", [
    (lambda path: archive_of(path, ("a.npy", TAXI)), "0 files in it are named TaxiBJ.npy"),
    (lambda path: archive_of(path, ("TaxiBJ.npy", TAXI), ("b/TaxiBJ.npy", TAXI)), "2 files in it are named TaxiBJ.npy"),
    (lambda path: archive_of(path, ("TaxiBJ.npy", CROWD)), "with 1024 nodes, found (30, 403, 1)"),
    (lambda path: archive_of(path, ("TaxiBJ.npy", bytes((1 << 20) + 1))), "decompresses to more than 1 MiB"),
    (lambda path: encrypted(archive_of(path, ("TaxiBJ.npy", TAXI))), "not a whole archive without password"),
    (lambda path: path.write_bytes(archive_of(path, ("TaxiBJ.npy", TAXI)).read_bytes()[:-40]), "not a whole archive"),
], ids=["none", "two", "other nodes", "bomb", "encrypted", "truncated"])
def test_an_archive_that_is_not_that_of_taxi_bj_is_refused_and_leaves_nothing(
        make, reason, source, target, capsys, monkeypatch):
    monkeypatch.setattr(get_data, "LARGEST_FILE", 1 << 20)
    source.mkdir()
    make(source / "TaxiBJ.zip")
    assert reason in refusal(capsys, "--from", source, "--data_dir", target) and not target.exists()


@pytest.mark.parametrize("packed", [False, True])
def test_a_disk_that_is_full_is_an_error_that_names_a_file_and_leaves_nothing(packed, source, target, capsys):
    archive_of(source / "TaxiBJ.zip", ("TaxiBJ.npy", TAXI)) if packed else put(source, "CrowdBM.npy")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        said = refusal(capsys, "--from", source, "--data_dir", target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in said and f"'{target}/Urban/" in said and files_of(target) == []


# Download

class Handler(SimpleHTTPRequestHandler):
    asked = threading.Event()

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.asked.set()
        if self.path.startswith("/to_http/"):
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/Urban/CrowdBM.npy")
            self.end_headers()
        elif self.path.startswith("/cut/"):
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(CROWD)
        elif self.path.startswith("/elsewhere/"):
            self.send_response(302)
            self.send_header("Location", f"https://localhost:{self.server.server_port}/Urban/CrowdBM.npy")
            self.end_headers()
        elif self.path.startswith(("/endless/", "/large/", "/slow/")):
            self.send_response(200)
            if "large" in self.path:
                self.send_header("Content-Length", str(1 << 30))
            self.end_headers()
            with contextlib.suppress(OSError):  # when the client has had enough
                while True:
                    self.wfile.write(b"x" if "slow" in self.path else bytes(1 << 16))
                    time.sleep(0.02 if "slow" in self.path else 0)
        else:
            super().do_GET()


@pytest.fixture
def served(source, tmp_path, monkeypatch):
    """The address of a local https server, of a certificate that is trusted, over the folder `source`."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    source.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=source))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setattr(get_data, "RELEASE_URL", f"https://127.0.0.1:{server.server_port}")
    yield get_data.RELEASE_URL
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_arrives_and_its_unverified_digest_is_told(served, source, target, capsys):
    path = put(source, "Urban/CrowdBM.npy")
    get_data.main(["--download", "CrowdBM", "--data_dir", str(target)])
    said = capsys.readouterr().out
    assert sha256_of(path) in said and "could not be verified" in said
    assert files_of(target) == [target / "Urban/CrowdBM.npy"]
    assert (target / "Urban/CrowdBM.npy").read_bytes() == CROWD


def test_a_verified_download_says_so_and_is_not_repeated(served, source, target, capsys, monkeypatch):
    path = put(source, "Urban/CrowdBM.npy")
    spec = replace(DATASETS["CrowdBM"], sha256={"Urban/CrowdBM.npy": sha256_of(path)})
    monkeypatch.setitem(DATASETS, "CrowdBM", spec)
    get_data.main(["--download", "CrowdBM", "--data_dir", str(target)])
    assert "SHA-256 as expected" in capsys.readouterr().out
    path.unlink()
    get_data.main(["--download", "CrowdBM", "--data_dir", str(target)])
    assert "already there" in capsys.readouterr().out


def test_a_download_with_another_digest_is_refused(served, source, target, capsys):
    path = put(source, "Urban/BikeDC.npy", array_bytes(np.zeros((1440, 20, 20), np.int32)))
    said = refusal(capsys, "--download", "BikeDC", "--data_dir", target)
    assert sha256_of(path) in said and DATASETS["BikeDC"].sha256["Urban/BikeDC.npy"] in said
    assert not target.exists()


@pytest.mark.parametrize("folder, reason", [
    ("", "404"), ("/cut", "the connection ended after"), ("/to_http", "it leads to http://127.0.0.1:9"),
    ("/elsewhere", "it leads to https://localhost"), ("/endless", "larger than 1 MiB"),
    ("/large", "larger than 1 MiB"), ("/slow", "it took longer than 0.5 seconds"),
])
def test_a_download_that_goes_wrong_leaves_nothing(served, folder, reason, target, capsys, monkeypatch):
    monkeypatch.setattr(get_data, "LARGEST_FILE", 1 << 20)
    monkeypatch.setattr(get_data, "LONGEST_DOWNLOAD", 0.5 if folder == "/slow" else 60)
    monkeypatch.setattr(get_data, "RELEASE_URL", served + folder)
    said = refusal(capsys, "--download", "CrowdBM", "--data_dir", target)
    assert reason in said and "Urban/CrowdBM.npy" in said and not target.exists()


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
@pytest.mark.usefixtures("hang_ups")
def test_a_download_that_is_ended_leaves_nothing(served, target, monkeypatch, number, status):
    monkeypatch.setattr(Handler, "asked", threading.Event())
    monkeypatch.setattr(get_data, "RELEASE_URL", served + "/slow")
    child = start_child(lambda: get_data.main(
        ["--download", "CrowdBM", "--data_dir", str(target)]))
    assert Handler.asked.wait(60)
    os.kill(child, number)
    assert end_of(child) == status
    assert not target.exists()


def test_the_archive_of_taxi_bj_is_downloaded_and_unpacked(served, source, target, capsys):
    archive_of(source / "Urban/TaxiBJ.zip", ("TaxiBJ.npy", TAXI))
    get_data.main(["--download", "TaxiBJ", "--data_dir", str(target)])
    assert "Urban/TaxiBJ.npy: imported; it could not be verified" in capsys.readouterr().out
    assert (target / "Urban/TaxiBJ.npy").read_bytes() == TAXI


def test_a_page_in_place_of_an_array_is_refused(served, source, target, capsys):
    put(source, "Urban/CrowdBM.npy", b"version https://git-lfs.github.com/spec/v1\n")
    said = refusal(capsys, "--download", "CrowdBM", "--data_dir", target)
    assert "not a whole numpy file" in said and not target.exists()


def test_a_server_that_is_not_trusted_is_refused(served, source, target, capsys, monkeypatch):
    put(source, "Urban/CrowdBM.npy")
    monkeypatch.delenv("SSL_CERT_FILE")
    said = refusal(capsys, "--download", "CrowdBM", "--data_dir", target)
    assert "CERTIFICATE_VERIFY_FAILED" in said and not target.exists()


def test_the_release_has_an_https_address():
    assert get_data.RELEASE_URL.startswith("https://")


@pytest.mark.parametrize("name, reason", [
    ("SolarPower", "not public"), ("Oracle", "generated"), ("NYCFlights", "comes with the project"),
    ("taxibj", "did you mean TaxiBJ"),
])
def test_what_cannot_be_downloaded_is_said_to_be_so(name, reason, target, capsys):
    assert reason in refusal(capsys, "--download", name, "--data_dir", target)


# The commands themselves

def test_a_mistake_at_the_command_line_is_one_line_without_traceback(tmp_path):
    command = [sys.executable, "-m", "scripts.get_data", "--from", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: --from {tmp_path / 'none'}: no such folder\n"


def test_the_embedded_dataset_is_built_from_flights_that_departed(tmp_path):
    row = "2013,{month},{day},{departed},{hour},{dest}\n"
    flights = "".join(row.format(month=1, day=1, departed=517, hour=5, dest="SJU") for _ in range(365))
    flights += row.format(month=12, day=31, departed=2359, hour=23, dest="SJU")
    flights += row.format(month=1, day=1, departed="NA", hour=5, dest="SJU")
    flights += "".join(row.format(month=1, day=1, departed=517, hour=5, dest="BOS") for _ in range(364))
    (tmp_path / "flights.csv").write_text(f"year,month,day,dep_time,hour,dest\n{flights}")
    (tmp_path / "airports.csv").write_text("faa,name,lat,lon\nBOS,Boston,42.4,-71.0\n")
    built = [tmp_path / "one.npz", tmp_path / "two.npz"]
    for path in built:
        build_nycflights.main(["--source", str(tmp_path), "--output", str(path)])
    assert sha256_of(built[0]) == sha256_of(built[1])
    with np.load(built[0], allow_pickle=False) as file:
        assert list(file["node_names"]) == ["SJU"] and file["values"].shape == (8760, 1)
        assert file["values"][[5, -1], 0].tolist() == [365, 1] and file["values"].sum() == 366


def test_the_embedded_dataset_can_be_imported(target):
    get_data.main(["--from", str(DEFAULT_DATA_DIR), "--data_dir", str(target)])
    assert sha256_of(target / "NYCFlights.npz") == DATASETS["NYCFlights"].sha256["NYCFlights.npz"]

"""Data sets fetched from a server on this machine that misbehaves, and verified; all in miniature."""

import dataclasses
import http.server
import io
import json
import re
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from certiqa.data import fetching, verifying
from certiqa.data.fetching import MEMORY, fetch_dataset
from certiqa.data.registry import DATASETS, PUBLISHED
from certiqa.data.verifying import verify_dataset
from certiqa.entry import data as cli
from certiqa.errors import UserError
from certiqa.storage import fetch as downloading
from certiqa.storage.files import sha256

NAMES = ["I01.png", *(f"I01_{kind:02d}_0{level}.png" for kind in (1, 2) for level in range(1, 6))]


def picture(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)).save(file, "png")
    return file.getvalue()


def archive(*more, folder="kadid10k/"):
    file = io.BytesIO()
    rows = "".join(f"{name},I01.png,3.5,0.1\n" for name in NAMES[1:])
    with zipfile.ZipFile(file, "w") as opened:
        for row, name in enumerate(NAMES):
            opened.writestr(f"{folder}images/{name}", picture(row))
        opened.writestr(f"{folder}dmos.csv", f"dist_img,ref_img,dmos,var\n{rows}")
        for name in more:
            opened.writestr(name, b"evil")
    return file.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content``; each request takes the next of ``plan``, what to do otherwise."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.plan, self.asked, self.release = content, [], [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/kadid10k.zip"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, plan = self.server, self.server.plan.pop(0) if self.server.plan else {}
        server.asked.append(self.headers.get("Range"))
        if "to" in plan:
            self.send_response(302)
            self.send_header("Location", plan["to"])
            self.end_headers()
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("ETag", '"1"')
        self.send_header("Content-Type", plan.get("kind", "application/zip"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: plan.get("cut", len(body))])
        self.wfile.flush()
        if "stall" in plan:
            server.release.wait(plan["stall"])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(downloading, "BACKOFF", 0.01)
    server = Server(archive())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def kadid(server, monkeypatch, tmp_path):
    """KADID-10k in miniature, from the server, known to the command line."""
    monkeypatch.setenv("CERTIQA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CERTIQA_DATA", str(tmp_path / "data"))
    part = dataclasses.replace(PUBLISHED["kadid"].parts[0], url=server.url)
    published = dataclasses.replace(PUBLISHED["kadid"], parts=(part,), size=len(NAMES) - 1, references=1)
    monkeypatch.setitem(PUBLISHED, "kadid", published)
    # the loader needs more than one reference photograph
    monkeypatch.setitem(DATASETS, "kadid", lambda split, root: None)
    return published


def left(folder):
    """What lies below a folder beside locks."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix != ".lock")


def test_it_comes_whole_verifies_and_is_not_asked_for_again(kadid, server, tmp_path, capsys):
    server.plan = [{"to": "/moved.zip"}]
    cli.main(["fetch", "kadid"])
    root = tmp_path / "data" / "kadid"
    assert left(root) == sorted([MEMORY, "dmos.csv", "images", *(f"images/{name}" for name in NAMES)])
    assert left(tmp_path / "cache") == ["downloads", "downloads/kadid"], "the archive is not kept"
    assert re.search("12 files, SHA-256 [0-9a-f]{64}", capsys.readouterr().out)
    cli.main(["verify", "kadid", "--all"])
    assert "is as published: 11 in images" in capsys.readouterr().out
    cli.main(["fetch", "kadid"])
    assert "is there already" in capsys.readouterr().out
    assert len(server.asked) == 2


def test_cut_stalled_and_interrupted_it_continues(kadid, server, tmp_path, monkeypatch):
    real = downloading.fetch
    monkeypatch.setattr(fetching, "fetch", lambda *given, **named: real(*given, **named, timeout=0.3, retries=1))
    server.plan = [{"cut": 3000}, {"cut": 2000, "stall": 10}]
    with pytest.raises(UserError, match=r"run the same command again: it continues at 5.0 kB"):
        fetch_dataset(kadid, tmp_path / "data" / "kadid")
    assert not (tmp_path / "data").exists()
    fetch_dataset(kadid, tmp_path / "data" / "kadid", keep=True)
    assert server.asked == [None, "bytes=3000-", "bytes=5000-"]
    assert verify_dataset(kadid, tmp_path / "data" / "kadid") == []
    kept = tmp_path / "cache" / "downloads" / "kadid" / "kadid10k.zip"
    memory = json.loads((tmp_path / "data" / "kadid" / MEMORY).read_text())
    assert memory["all"]["sha256"] == sha256(kept)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive("../outside.txt"), r"its entry '../outside.txt' leads out of the folder"),
        (archive("/etc/outside.txt"), "has an absolute path"),
        (archive()[:-500], "is damaged, cut short or of an unknown kind"),
        (archive(folder="other/deep/"), "has no images and dmos.csv: it is another file than expected"),
    ],
)
def test_a_tampered_archive_is_refused_and_nothing_is_left(kadid, server, tmp_path, capsys, content, message):
    server.content = content
    with pytest.raises(SystemExit, match="1"):
        cli.main(["fetch", "kadid"])
    assert re.search(message, capsys.readouterr().err)
    assert left(tmp_path) == ["cache", "cache/downloads", "cache/downloads/kadid", "data", "data/kadid"]
    server.content = archive()
    cli.main(["fetch", "kadid"])
    assert verify_dataset(kadid, tmp_path / "data" / "kadid") == []


def test_a_web_page_and_another_file_than_before_are_refused(kadid, server, tmp_path):
    root = tmp_path / "data" / "kadid"
    server.plan = [{"kind": "text/html"}]
    with pytest.raises(UserError, match="gave a web page instead of the file"):
        fetch_dataset(kadid, root)
    fetch_dataset(kadid, root)
    (root / "dmos.csv").unlink()
    server.content = archive("kadid10k/new.txt")
    with pytest.raises(UserError, match="is not what was expected: its SHA-256 is expected to be"):
        fetch_dataset(kadid, root)


def test_no_network_is_one_clear_message(kadid, server, tmp_path, capsys, monkeypatch):
    part = dataclasses.replace(kadid.parts[0], url="http://127.0.0.1:9/kadid10k.zip")
    monkeypatch.setitem(PUBLISHED, "kadid", dataclasses.replace(kadid, parts=(part,)))
    real = downloading.fetch
    monkeypatch.setattr(fetching, "fetch", lambda *given, **named: real(*given, **named, retries=0))
    with pytest.raises(SystemExit, match="1"):
        cli.main(["fetch", "kadid"])
    assert re.match(r"certiqa-data: no network to fetch .*put the file yourself at '.*kadid10k.zip'$",
                    capsys.readouterr().err.strip())  # fmt: skip


@pytest.fixture
def fetched(kadid, tmp_path):
    fetch_dataset(kadid, tmp_path / "data" / "kadid")
    return tmp_path / "data" / "kadid"


def test_verify_finds_what_is_wrong(kadid, fetched, capsys):
    (fetched / "images" / NAMES[3]).unlink()
    (fetched / "images" / NAMES[4]).write_bytes(b"\x89PNG")
    with open(fetched / "dmos.csv", "a") as file:
        file.write(f"I81_25_05.png,I01.png,1,1\n{NAMES[2]},I01.png,1,1\n")
    (fetched / "images" / "holiday.png").write_bytes(picture(9))
    (fetched / "images" / "sunset.png").write_bytes(picture(8))
    with pytest.raises(SystemExit, match="1"):
        cli.main(["verify", "kadid"])
    told = capsys.readouterr().err
    for fault in (
        "images has 12 images where 11 are expected",
        f"dmos.csv has 1 images in several rows: {NAMES[2]}",
        f"dmos.csv names 2 images that are not in images: {NAMES[3]}, I81_25_05.png",
        "images has 2 images that dmos.csv does not name: holiday.png, sunset.png",
        "of what was fetched as all, 3 files are missing or changed",
        "1 of 12 images decoded cannot be read: cannot read the image",
    ):
        assert fault in told
    (fetched / "dmos.csv").unlink()
    assert "none of dmos.csv is there" in verify_dataset(kadid, fetched)


def test_tables_of_other_systems_are_read(kadid, fetched):
    text = (fetched / "dmos.csv").read_text().replace(",", ";").replace("\n", "\r\n").replace("I01_01", "i01_01")
    (fetched / "dmos.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (fault,) = verify_dataset(kadid, fetched)
    assert "fetched as all, 1 files are missing or changed: dmos.csv" in fault
    (fetched / "dmos.csv").write_text("name,score\na.png,1\n")
    assert "dmos.csv has no rows with a column dist_img or ref_img" in verify_dataset(kadid, fetched)


def test_missing_data_show_the_tree_and_the_command(kadid, tmp_path, monkeypatch, capsys):
    for command in (["verify", "kadid"], ["prepare", "kadid"], ["verify", "spaq"]):
        with pytest.raises(SystemExit, match="1"):
            cli.main(command)
        told = capsys.readouterr().err
        assert "Expected:" in told
        assert ("certiqa-data fetch kadid" if "kadid" in command else "github.com/h4nwei/SPAQ") in told
    monkeypatch.delenv("CERTIQA_DATA")
    for name, told in (("kadid", "Give --root FOLDER or set CERTIQA_DATA"), ("nips2017", "Kaggle"),
                       ("kadd", "Did you mean 'kadid'?"), ("spaq", "TestImage")):  # fmt: skip
        with pytest.raises(SystemExit, match="1"):
            cli.main(["fetch", name])
        assert told in capsys.readouterr().err
    with pytest.raises(UserError, match="has no part 'some'; there are: all"):
        fetch_dataset(kadid, tmp_path, ["some"])


def test_prepare_makes_the_copies(kadid, fetched, capsys, tmp_path):
    cli.main(["prepare", "kadid", "--resize", "12"])
    assert "11 images prepared" in capsys.readouterr().out
    assert len(list((tmp_path / "cache" / "resized").rglob("*.png"))) == len(NAMES)
    (fetched / "images" / NAMES[4]).write_bytes(b"\x89PNG")
    with pytest.raises(SystemExit, match="1"):
        cli.main(["prepare", "kadid", "--resize", "12"])
    assert "1 images cannot be read" in capsys.readouterr().err


def test_verify_asks_the_loader_too(tmp_path, miniatures):
    root = tmp_path / "kadid10k"
    miniatures.kadid(root, references=12, types=1, levels=2)
    assert verifying._unloadable(PUBLISHED["kadid"], root) == []
    table = next(root.rglob("dmos.csv"))
    table.write_text(table.read_text().replace("dist_img", "somebody"))
    assert "dmos.csv" in verifying._unloadable(PUBLISHED["kadid"], root)[0]

"""``certiqa-weights`` as a user types it."""

import dataclasses
import hashlib
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from certiqa.entry import weights as cli
from certiqa.errors import UserError
from certiqa.metrics import calibration, sources
from certiqa.metrics.calibration import GOLDEN, verify_metric
from certiqa.metrics.sources import WEIGHT_FILES, files_of

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("upstream", ROOT / "tests" / "metrics" / "upstream.py")
upstream = importlib.util.module_from_spec(spec)
spec.loader.exec_module(upstream)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a torch hub where nothing is either."""
    monkeypatch.setenv("CERTIQA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "cache" / "weights"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def server():
    """A local server of bytes by path; returns (address, contents)."""
    contents = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = contents.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", contents
    running.shutdown()


def test_the_docs_show_what_the_command_prints(capsys):
    cli.main(["list", "--markdown"])
    assert capsys.readouterr().out in (ROOT / "docs" / "metrics.md").read_text()


def test_list_says_what_is_there(cache, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    (cache / "p1q2.pth").write_bytes(b"here")
    cli.main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert any("p1q2.pth" in line and str(cache) in line for line in lines)
    assert any("BL_release.pt" in line and line.rstrip(" │").endswith("no") for line in lines)
    assert str(cache) in lines[-1]


def test_sizes_are_those_of_the_networks():
    for file in WEIGHT_FILES:
        if file.filename in ("RN50.pt", "CLIP-IQA+_learned_prompts-603f3273.pth"):
            continue  # CLIP's file holds the text tower too, in half precision
        from certiqa.metrics import load_metric

        count = sum(value.numel() for value in load_metric(file.metric, weights="random").state_dict().values())
        assert file.megabytes == pytest.approx(count * 4e-6, rel=0.02), file


def test_fetch_downloads_checks_and_says_what_only_a_person_can_get(cache, server, monkeypatch, capsys):
    address, contents = server
    body = b"weights" * 1000
    digest = hashlib.sha256(body).hexdigest()
    contents["/metaiqa"] = body

    def served(sha256):
        return tuple(
            dataclasses.replace(file, url=f"{address}/metaiqa", sha256=sha256) if file.metric == "metaiqa" else file
            for file in WEIGHT_FILES
        )

    monkeypatch.setattr(sources, "WEIGHT_FILES", served("00000000"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["fetch", "metaiqa"])
    assert stopped.value.code == 1
    assert "00000000" in capsys.readouterr().err
    assert not (cache / "Metaiqa_livec.pth").exists(), "what is wrong is not kept"

    monkeypatch.setattr(sources, "WEIGHT_FILES", served(digest))
    cli.main(["fetch", "metaiqa"])
    assert (cache / "Metaiqa_livec.pth").read_bytes() == body

    with pytest.raises(SystemExit):
        cli.main(["fetch", "linearity", "spaq", "metaiqa"])
    printed = capsys.readouterr()
    assert "pan.baidu.com" in printed.err
    assert "drive.google.com" in printed.err
    assert str(cache / "BL_release.pt") in printed.err
    assert str(cache / "Metaiqa_livec.pth") in printed.out, "the others are fetched all the same"


def test_without_a_network_the_message_says_where_to_put_the_file(cache, server, monkeypatch):
    address, _ = server
    file = dataclasses.replace(files_of("dbcnn")[0], url=f"{address}/nothing")
    with pytest.raises(
        UserError, match=r"'dbcnn' needs 'DBCNN_KonIQ10k-2de81c0a.pth' \(61 MB\): .*metric.weights=path"
    ):
        file.locate()


def test_files_of_pyiqa_and_clip_are_found_where_they_keep_them(cache, tmp_path):
    hub = Path(torch.hub.get_dir())
    assert tmp_path in hub.parents
    (hub / "pyiqa").mkdir(parents=True)
    (hub / "pyiqa" / "Metaiqa_livec.pth").write_bytes(b"here")
    assert files_of("metaiqa")[0].locate() == hub / "pyiqa" / "Metaiqa_livec.pth"


def test_verify_accepts_what_is_right_and_names_what_is_wrong(cache, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(cli, "PROBES", cli.PROBES[:1])
    upstream.metaiqa(cache / "Metaiqa_livec.pth")
    cli.main(["verify", "metaiqa", "mini"])
    printed = capsys.readouterr().out
    assert re.search(r"metaiqa .*verified", printed)
    assert "scores as pyiqa's own model does" in printed
    assert "scikit_coffee.png scores 4.58049 as known" in printed

    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", "mini", "spaq"])
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert "files are missing: spaq" in printed.err
    assert "certiqa-weights fetch spaq" in printed.out

    upstream.dbcnn(cache / "DBCNN_KonIQ10k-2de81c0a.pth")
    with pytest.raises(SystemExit):
        cli.main(["verify", "dbcnn"])
    printed = capsys.readouterr()
    assert "not as published: dbcnn" in printed.err
    assert "published file 2de81c0a" in printed.out

    (cache / "BL_release.pt").write_bytes(b"<!DOCTYPE html><html>Google Drive - Virus scan warning</html>")
    verdict = verify_metric("spaq", {})
    assert verdict.state == "wrong"
    assert "is a web page" in verdict.notes[-1]


@pytest.mark.full
def test_verify_compares_all_of_pyiqas_models(cache, monkeypatch):
    images = {"probe": torch.rand(3, 64, 64)}
    upstream.dbcnn(cache / "DBCNN_KonIQ10k-2de81c0a.pth")
    upstream.clipiqa_plus(cache / "CLIP-IQA+_learned_prompts-603f3273.pth", cache / "RN50.pt")
    published = {path.name: upstream.sha256(path) for path in cache.iterdir()}
    monkeypatch.setattr(
        sources,
        "WEIGHT_FILES",
        tuple(dataclasses.replace(file, sha256=published.get(file.filename, file.sha256)) for file in WEIGHT_FILES),
    )
    monkeypatch.setattr("certiqa.metrics.clipiqa.RN50", published["RN50.pt"])
    for name in ("dbcnn", "clipiqa_plus"):
        verdict = verify_metric(name, images)
        assert verdict.state == "verified", verdict.notes
        assert "scores as pyiqa's own model does" in verdict.notes
    monkeypatch.setitem(calibration.UPSTREAM, "dbcnn", lambda *_: lambda images: torch.tensor(0.5))
    assert "pyiqa on probe is 0.5" in verify_metric("dbcnn", images).notes[-1]


@pytest.mark.parametrize("name", ["clipiqa_plus", "dbcnn", "metaiqa", "linearity", "spaq"])
def test_the_published_weights_where_they_are(name):
    missing = [file.filename for file in files_of(name) if file.present() is None]
    if missing:
        pytest.skip(f"{name}: {', '.join(missing)} not in the cache")
    verdict = verify_metric(name, cli.probes(name))
    assert verdict.state == "verified", verdict.notes


def test_the_known_scores_are_asked_for():
    assert GOLDEN["linearity"]["1000.JPG"][0] == pytest.approx(10.430, abs=1e-3)
    assert set(cli.PROBES) == GOLDEN["mini"].keys()


def test_unknown_names_are_answered_with_the_nearest(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fetch", "dbcn"])
    assert "Did you mean 'dbcnn'?" in capsys.readouterr().err


@pytest.mark.full
def test_your_own_metric_in_ten_lines_runs_as_the_docs_say(tmp_path, mini_cache):
    text = (ROOT / "docs" / "metrics.md").read_text()
    code = re.search(r"```python\n(from torch import nn.*?)```", text, re.DOTALL).group(1)
    line = re.search(r"python (train\.py metric\._target_=\S+ defense=ms)", text).group(1)
    assert len([row for row in code.splitlines() if row.strip()]) <= 10
    (tmp_path / "my_metric.py").write_text(code)
    script, *options = line.split()
    fast = ["debug=fast", "num_samples=30", "data.limit_test=4", f"paths.outputs={tmp_path / 'outputs'}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *options, *fast],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "undefended" in done.stdout

"""Runs tracked with W&B: commands that start them, the files they leave, and a server for as much as they need."""

import json
import os
import re
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import wandb

ROOT = Path(__file__).parents[2]
TINY = ["data.limit_test=2", "data.eval_batch_size=2", "num_samples=30", "callbacks.gallery.num_images=1"]
KEY = "0123456789" * 4


class WandbFile:
    """A ``.wandb`` file: LevelDB's log format around W&B's own protocol buffers."""

    def __init__(self, path):
        from wandb.proto import wandb_internal_pb2

        data, place, part, self.records = path.read_bytes(), 7, b"", []
        assert data.startswith(b":W&B")
        while place + 7 <= len(data):
            left = 32768 - place % 32768
            if left < 7:  # no room for a header: the block's end is padding
                place += left
                continue
            _, length, kind = struct.unpack("<IHB", data[place : place + 7])
            part += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last part
                self.records.append(wandb_internal_pb2.Record.FromString(part))
                part = b""
        self.kinds = [record.WhichOneof("record_type") for record in self.records]

    def all(self, kind):
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    @property
    def run(self):
        return self.all("run")[0]

    @property
    def config(self):
        return {item.key: json.loads(item.value_json) for part in self.all("config") for item in part.update}

    @property
    def history(self):
        return [{key_of(item): json.loads(item.value_json) for item in row.item} for row in self.all("history")]

    @property
    def summary(self):
        return {key_of(item): json.loads(item.value_json) for part in self.all("summary") for item in part.update}

    @property
    def artifacts(self):
        return {a.type: [Path(entry.path).name for entry in a.manifest.contents] for a in self.all("artifact")}

    @property
    def exit_code(self):
        (end,) = self.all("exit")
        return end.exit_code


def key_of(item):
    return item.key or ".".join(item.nested_key)


def wandb_files(folder):
    wandb.teardown()  # of runs of this process, whose files are complete then
    return [WandbFile(path) for path in sorted(folder.glob("wandb/*run-*/run-*.wandb"))]


def environment(home, **more):
    here = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    folders = {f"WANDB_{name}_DIR": str(home / "wandb-home") for name in ("DATA", "CACHE", "CONFIG")}
    return {**here, **folders, "NETRC": str(home / "netrc"), "OMP_NUM_THREADS": "1", "COLUMNS": "100", **more}


def call(script, *arguments, outputs, expect=0, cwd=ROOT, **more):
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments, f"paths.outputs={outputs}"],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(outputs, **more),
        timeout=300,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def folders(outputs, task):
    return sorted(path for path in (outputs / task).iterdir() if path.is_dir())


class FakeServer:
    """As much of W&B's server as starting a run needs; ``lives`` calls to UpsertBucket, then it is gone."""

    def __init__(self, lives):
        outer = self
        self.operations, self.views = [], []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer = outer.answer(body) if self.path == "/graphql" else {}
                text = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
                if outer.operations.count("UpsertBucket") >= lives:
                    threading.Thread(target=outer.stop).start()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, body):
        asked = json.loads(body)
        operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]
        self.operations.append(operation)
        if operation == "UpsertBucket":
            project = {"id": "P", "name": "certiqa", "entity": {"id": "E", "name": "me"}}
            bucket = {"id": "Qg==", "name": asked["variables"]["name"], "config": "{}", "historyLineCount": 0}
            return {"data": {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}}
        viewer = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        known = {
            "Viewer": {"viewer": viewer},
            "GetDefaultEntity": {"viewer": viewer},
            "RunResumeStatus": {"model": None},
        }
        if operation == "UpsertView2":
            self.views.append(asked["variables"])
            return {"data": {"upsertView": {"view": {"id": "V", "name": asked["variables"]["name"]}, "inserted": True}}}
        if operation in known:
            return {"data": known[operation]}
        return {"data": None, "errors": [{"message": "not here"}]}

"""What README and docs show is executed: Python blocks, and every command, in small.

A block that needs what is not here (a GPU, weights, a network, an hour) has ``<!-- needs: ... -->`` above it;
its commands are still composed.
"""

import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from certiqa.entry import identity
from certiqa.entry.checks import check_job

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
FENCE = re.compile(
    r"(?:<!-- needs: (?P<needs>[^>]*) -->\n+)?^```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    page: Path
    language: str
    text: str
    needs: str | None


def blocks(*languages):
    for page in PAGES:
        for found in FENCE.finditer(page.read_text()):
            if found["language"] in languages:
                yield Block(page, found["language"], found["text"], found["needs"])


def commands():
    """Every command of the pages once, without comments: (page, command, needs)."""
    seen = set()
    for block in blocks("bash", "sh", "console"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and tuple(words) not in seen:
                seen.add(tuple(words))
                yield pytest.param(words, block.needs, id=f"{block.page.name}: {shlex.join(words)}")


@pytest.mark.parametrize(
    "page", [page for page in PAGES[1:] if "```python" in page.read_text()], ids=lambda page: page.name
)
def test_python_blocks_run(page, tmp_path, monkeypatch, mini_cache):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("python"):
        if block.page == page and block.needs is None:
            exec(compile(block.text, str(page), "exec"), names)


def composed(words):
    """Compose what a train.py or evaluate.py command asks for; a sweep's first choice of each."""
    identity.register_resolvers()
    name = "train" if "train" in words[0] else "evaluate"
    overrides = [word for word in words[1:] if not word.startswith("-")]
    if {"-m", "--multirun"} & set(words):
        overrides = [re.sub(r"=([^\[{,]+),.*", r"=\1", word) for word in overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, overrides, return_hydra_config=True)


@pytest.mark.parametrize(("words", "needs"), commands())
def test_every_command_is_one_that_there_is(words, needs):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
        assert set(words[1:]) <= targets
    elif words[0] == "python" and words[1] in ("train.py", "evaluate.py"):
        config = composed(words[1:])
        if needs is None and "=my_" not in " ".join(words):  # a class of the reader's own is not here
            check_job(config)  # no radius beyond what the draws can certify, for one
    elif words[0] in ("certiqa-train", "certiqa-evaluate"):
        assert composed(words)
    elif words[0] == "python" and words[1].startswith("benchmarks/"):
        assert (ROOT / words[1]).is_file()
        text = (ROOT / words[1]).read_text()
        assert all(f'"{word}"' in text for word in words[2:] if word.startswith("--")), "an option that it has not"
    elif words[0].startswith("certiqa-"):
        assert words[0] in scripts
    else:
        assert words[0] in ("export", "pip", "source", "wandb", "apt-get", "squeue", "sbatch", "cd", "tail"), words


SMALL = {
    "data.limit_test": 3,  # what an attack on a ranking needs
    "data.eval_batch_size": 2,
    "num_samples": 50,
    "certification.radii": "[0.03]",
    "certification.radius": 0.03,
    "attack.queries": 10,
    **{f"study.attacks.{name}.{key}": 1 for name in ("ifgsm", "advcf") for key in ("steps", "eot_samples")},
    **{f"study.purifiers.{name}.steps": 1 for name in ("diffpure", "diffpure_unsharp")},
}
SMALL_TRAINING = {"trainer.max_steps": 2, "trainer.val_check_interval": 2, "data.limit_validation": 2}


def in_small(words, config):
    """Return a command's options with what makes it small; a sweep has two values of its first list, one of others."""
    options = {word.split("=")[0]: word for word in words if "=" in word}
    small = {**SMALL, **(SMALL_TRAINING if words[0] == "train.py" else {})}
    if {"certification.radii", "num_samples"} & set(options):  # chosen for one another
        small = {key: value for key, value in small.items() if not key.startswith(("certification.", "num_"))}
    options |= {key: f"{key}={value}" for key, value in small.items() if has(config, key)}
    if "hparams_search" in options:
        options["hydra.sweeper.n_trials"] = "hydra.sweeper.n_trials=2"
    if "trainer.devices" in options:
        options["trainer.devices"] = "trainer.devices=2"
    lists = [key for key, word in options.items() if re.search(r"=[^\[{]*,", word)]
    for place, key in enumerate(lists):
        name, values = options[key].split("=", 1)
        options[key] = f"{name}={','.join(values.split(',')[: 2 if place == 0 else 1])}"
    return [*(word for word in words[1:] if "=" not in word), *options.values()]


@pytest.mark.full
@pytest.mark.parametrize(
    ("words", "needs"),
    [
        case
        for case in commands()
        if case.values[0][:1] == ["python"] and case.values[0][1] in ("train.py", "evaluate.py")
    ],
)
def test_commands_run_in_small(words, needs, tmp_path, mini_cache):
    if needs is not None:
        pytest.skip(f"needs {needs}")
    config = composed(words[1:])
    if missing := what_it_needs(config):
        pytest.skip(f"needs {missing}")
    done = subprocess.run(
        [sys.executable, ROOT / words[1], *in_small(words[1:], config), f"paths.outputs={tmp_path / 'outputs'}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def what_it_needs(config):
    """Return what a command needs that is not here: published weights or data, a GPU, a scheduler."""
    if config.data.name != "mini":
        return f"data set {config.data.name}"
    if not str(config.metric._target_).endswith("MiniMetric"):
        return f"metric {config.metric._target_} and its weights"
    if config.trainer.get("accelerator") == "gpu":
        return "a GPU"
    launcher = str(config.hydra.launcher._target_).lower()
    if "slurm" in launcher:
        return "SLURM"
    return None


def has(config, key):
    node = config
    for part in key.split("."):
        if part not in node:
            return False
        node = node[part]
    return True

"""A real SLURM of one machine, in a folder of its own: daemons, key and socket are gone after the tests."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
SBIN = "/usr/sbin:/sbin"

SLURM_CONF = """
ClusterName=certiqa
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket,cred_expire=10
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
EnforcePartLimits=ALL
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
SlurmctldTimeout=60
SlurmdTimeout=60
KillWait=20
MinJobAge=600
SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=2
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=short Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
PartitionName=long Nodes={host} MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_until(holds, seconds, what):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.fixture(scope="session")
def slurm():
    """Start munged, slurmctld and slurmd; yields the environment in which their commands find them."""
    path = f"{os.environ['PATH']}:{SBIN}"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        pytest.skip(f"no SLURM here: {', '.join(absent)} not found; the Debian packages slurm-wlm and munge bring it")
    if os.geteuid() != 0:
        pytest.skip("the tests' SLURM runs as root")
    home = Path("/tmp") / f"certiqa-slurm-{os.getpid()}-{secrets.token_hex(3)}"  # a socket's path must be short
    home.mkdir(mode=0o755)
    (home / "munge.key").write_bytes(secrets.token_bytes(128))
    (home / "munge.key").chmod(0o400)
    host = socket.gethostname().split(".")[0]
    text = SLURM_CONF.format(host=host, home=home, controller_port=free_port(), node_port=free_port())
    (home / "slurm.conf").write_text(text)
    for name in ("state", "spool"):
        (home / name).mkdir()
    version = subprocess.run(["slurmd", "-V"], env={**os.environ, "PATH": path}, capture_output=True, text=True).stdout
    if tuple(map(int, version.split()[-1].split(".")[:2])) >= (23, 11):
        (home / "cgroup.conf").write_text("CgroupPlugin=disabled\n")  # earlier ones ask for cgroups only when in use
    environment = {**os.environ, "PATH": path, "SLURM_CONF": str(home / "slurm.conf")}
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*command):
        output = (home / f"{command[0]}.out").open("wb")
        daemons.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))

    def logs():
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-6000:]}" for path in home.glob("*.[lo]*"))

    try:
        key = [f"--key-file={home}/munge.key", f"--socket={home}/munge.socket", f"--pid-file={home}/munged.pid"]
        key += [f"--log-file={home}/munged.log", f"--seed-file={home}/munged.seed"]
        start("munged", "--foreground", "--force", *key)
        wait_until(lambda: (home / "munge.socket").exists(), 20, "munged did not start")
        start("slurmctld", "-D", "-f", environment["SLURM_CONF"])
        start("slurmd", "-D", "-f", environment["SLURM_CONF"], "-N", host)

        def idle():
            asked = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
            return "idle" in asked.stdout

        try:
            wait_until(idle, 20, "SLURM's node did not become idle")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{logs()}") from None
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, timeout=30)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        shutil.rmtree(home, ignore_errors=True)

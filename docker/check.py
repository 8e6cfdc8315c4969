"""Run the Dockerfile and the compose file on a machine without a container engine.

    sudo python docker/check.py FOLDER       # Debian with debootstrap and postgresql; 15 GB free

Each stage of the Dockerfile becomes a folder mounted over those of its parents with overlayfs, as
in an image. Its commands run inside with chroot, in a Debian of the base image's release with that
release's Python. Then the services of the compose file start in order, with their commands,
environment, user and health checks; the worker builds a manifest and the trainer trains on it.
FOLDER keeps the stages for the next call: delete it to start from scratch.

Not checked: that the base images exist, networks between containers (all services share the
loopback of this machine, and Debian's PostgreSQL replaces its image) and GPUs.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).parents[1]
PATH = "/usr/local/bin:/usr/bin:/bin"
USER = "12345:12345"  # exists on no machine: a container must work under any user id
SETTINGS = {
    "POSTGRES_PASSWORD": "p@ss/w:rd",
    "PREFECT_AUTH": "me:s@cr/t",
    "LASR_USER": USER,
    "LASR_PHOTOS": "/photos",
}


@dataclass
class Stage:
    """A stage of the Dockerfile: its instructions and the stage it is based on."""

    name: str
    parent: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    command: list[str] = field(default_factory=list)


def read_dockerfile(text: str) -> dict[str, Stage]:
    """Parse a Dockerfile. Returns its stages by name, in order."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text))
    stages: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            parent, _, name = rest.split()
            stages[name] = Stage(name, parent)
        else:
            stages[name].steps.append((word, rest))
    return stages


def interpolate(text: str, settings: dict[str, str]) -> str:
    """Replace ${NAME:-default} and ${NAME:?message}. Raises SystemExit where compose would stop."""

    def value(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if name not in settings and kind == "?":
            sys.exit(f"required variable {name} is missing a value: {rest}")
        return settings.get(name, rest)

    return re.sub(r"\$\{(\w+):([-?])([^}]*)\}", value, text)


class Machine:
    """Builds and mounts stages below one folder."""

    def __init__(self, folder: Path, stages: dict[str, Stage]):
        self.folder, self.stages = folder, stages
        self.debian = folder / "debian"

    def make_debian(self, release: str) -> None:
        """Install a minimal Debian with Python, once."""
        if not self.debian.exists():
            packages = "python3,python3-venv,ca-certificates"
            new = self.debian.with_name("debian.new")
            subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={packages}", release, str(new)],
                check=True,
            )
            new.rename(self.debian)
        if not (self.debian / "usr/local/bin/pip").exists():  # `python` and `pip`, as in the image
            subprocess.run(
                ["chroot", self.debian, "python3", "-m", "venv", "/usr/local"], check=True
            )

    def layers(self, name: str) -> list[Path]:
        """Folders of a stage and its parents, the lowest layer last."""
        if name not in self.stages:
            return [self.debian]
        return [self.folder / "layers" / name, *self.layers(self.stages[name].parent)]

    @contextmanager
    def mounted(self, name: str, volumes: dict[Path, str]) -> Iterator[Path]:
        """Mount a stage and its volumes as the root of a container, and yield that folder."""
        root = self.folder / "mounted" / name
        upper, *lower = self.layers(name)
        work = self.folder / "work" / name
        for folder in (root, upper, work):
            folder.mkdir(parents=True, exist_ok=True)
        layers = f"lowerdir={':'.join(map(str, lower))},upperdir={upper},workdir={work}"
        hosts = self.folder / "hosts"
        hosts.write_text("127.0.0.1 localhost postgres server worker\n")
        outside: dict[Path, str] = {
            hosts: "/etc/hosts", Path("/etc/resolv.conf"): "/etc/resolv.conf",
            Path("/etc/ssl/certs"): "/etc/ssl/certs", Path("/dev"): "/dev",
            Path("/proc"): "/proc", **volumes,
        }  # fmt: skip
        if Path("/etc/pip.conf").exists():  # settings of the package registry
            outside[Path("/etc/pip.conf")] = "/etc/pip.conf"
        with ExitStack() as undo:
            mount(undo, root, "-t", "overlay", "-o", layers, "overlay")
            for source, target in outside.items():
                inside = root / target.lstrip("/")
                if source.is_dir():
                    inside.mkdir(parents=True, exist_ok=True)
                else:
                    inside.parent.mkdir(parents=True, exist_ok=True)
                    inside.touch()
                mount(undo, inside, "--bind", str(source))
            yield root

    def argv(self, root: Path, stage: Stage, command: list[str], user: str) -> list[str]:
        """Return the command line that runs `command` inside, in the stage's working directory."""
        clean = ["env", "-i", f"PATH={PATH}", *(f"{k}={v}" for k, v in stage.environment.items())]
        shell = ["sh", "-c", f'cd {stage.workdir} && exec "$@"', "sh"]
        return ["chroot", f"--userspec={user}", str(root), *clean, *shell, *command]

    def build(self, name: str) -> Stage:
        """Run the instructions of a stage and its parents, RUN only once. Returns the stage."""
        stage = self.stages[name]
        if stage.parent in self.stages:
            parent = self.build(stage.parent)
            stage.environment, stage.workdir = dict(parent.environment), parent.workdir
        done = self.folder / "layers" / f"{name}.done"
        with self.mounted(name, {}) as root:
            for word, rest in stage.steps:
                if word == "ENV":
                    stage.environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
                elif word == "WORKDIR":
                    stage.workdir = rest
                    (root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
                elif word == "COPY":
                    copy(rest.split(), root / stage.workdir.lstrip("/"))
                elif word == "RUN" and not done.exists():
                    print(f"{name}: RUN {rest}", flush=True)
                    command = self.argv(root, stage, ["sh", "-c", rest], "0:0")
                    subprocess.run(command, check=True)
                elif word == "CMD":
                    stage.command = yaml.safe_load(rest)
        done.touch()
        return stage


def mount(undo: ExitStack, target: Path, *options: str) -> None:
    """Mount until `undo` closes."""
    subprocess.run(["mount", *options, str(target)], check=True)
    undo.callback(subprocess.run, ["umount", "--lazy", str(target)], check=True)


def copy(names: list[str], workdir: Path) -> None:
    """Do what COPY does with files and folders of the project."""
    *sources, target = names
    if target.endswith("/"):
        (workdir / target).mkdir(parents=True, exist_ok=True)
    for source in sources:
        if (PROJECT / source).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(PROJECT / source, workdir / target, ignore=ignore, dirs_exist_ok=True)
        else:
            shutil.copy(PROJECT / source, workdir / target)


@contextmanager
def running(argv: list[str], log: Path) -> Iterator[None]:
    """Run a process in the background, with its output in `log`."""
    with open(log, "w") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)  # as `docker stop` does
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_healthy(name: str, check: list[str], log: Path) -> None:
    """Repeat a health check for three minutes. Raises SystemExit with the end of the log."""
    for _ in range(180):
        if subprocess.run(check, capture_output=True).returncode == 0:
            print(f"{name}: healthy", flush=True)
            return
        time.sleep(1)
    sys.exit(f"{name} is not healthy:\n{log.read_text()[-4000:]}")


@contextmanager
def postgresql(folder: Path, service: dict[str, Any]) -> Iterator[None]:
    """Run Debian's PostgreSQL with the service's user, password and database."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    environment = service["environment"]
    home = folder / "postgres"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    (home / "password").write_text(environment["POSTGRES_PASSWORD"])
    subprocess.run(["chown", "-R", "postgres", str(home)], check=True)
    initdb = [str(programs / "initdb"), "-D", str(home / "data"), "--auth=scram-sha-256"]
    initdb += [f"--pwfile={home / 'password'}", "-U", environment["POSTGRES_USER"]]
    subprocess.run(initdb, user="postgres", check=True, capture_output=True, cwd=home)
    serve = [str(programs / "postgres"), "-D", str(home / "data"), "-k", "/tmp", "-p", "5432"]
    with running(
        ["setpriv", "--reuid=postgres", "--clear-groups", *serve], folder / "postgres.log"
    ):
        check = [str(programs / "pg_isready"), *service["healthcheck"]["test"][2:], "-h/tmp"]
        wait_healthy("postgres", check, folder / "postgres.log")
        createdb = [str(programs / "createdb"), "-h/tmp", "-U", environment["POSTGRES_USER"]]
        subprocess.run(
            [*createdb, environment["POSTGRES_DB"]],
            env={"PGPASSWORD": environment["POSTGRES_PASSWORD"]},
            check=True,
        )
        yield


def main(folder: Path) -> None:
    """Build all stages, start all services, build a manifest and train on it."""
    machine = Machine(
        folder.resolve(), read_dockerfile((PROJECT / "docker/Dockerfile").read_text())
    )
    folder.mkdir(parents=True, exist_ok=True)
    machine.make_debian("bookworm")
    services = yaml.safe_load(interpolate((PROJECT / "docker/compose.yaml").read_text(), SETTINGS))[
        "services"
    ]
    data, photos = machine.folder / "data", machine.folder / "photos"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    photos.mkdir(exist_ok=True)
    subprocess.run(["chown", USER, str(data)], check=True)
    sources = {"../data": data, "/photos": photos}

    with ExitStack() as up:
        up.enter_context(postgresql(machine.folder, services["postgres"]))
        containers: dict[str, tuple[Path, Stage]] = {}
        for name in ("server", "worker", "trainer"):
            service = services[name]
            stage = machine.build(service["build"]["target"])
            pairs = [volume.split(":") for volume in service.get("volumes", ())]
            volumes = {sources[pair[0]]: pair[1] for pair in pairs}
            root = up.enter_context(machine.mounted(stage.name, volumes))
            if stage.command[-1] == "--help":
                run(machine, root, stage, stage.command, service["user"])
            stage.environment |= service.get("environment", {})
            containers[name] = root, stage
            if name == "trainer":
                break
            command = service.get("command", stage.command)
            log = machine.folder / f"{name}.log"
            up.enter_context(running(machine.argv(root, stage, command, service["user"]), log))
            check = service["healthcheck"]["test"][1:]
            wait_healthy(name, machine.argv(root, stage, check, service["user"]), log)

        # As in docs/containers.md: photographs, a manifest, a network.
        ask = ["prefect", "deployment", "run", "build-patches", "--watch"]
        ask += ["-p", 'images=["/photos"]', "-p", "profile=offline"]
        run(machine, *containers["worker"], ask, USER)
        train = ["lasr", "train", "--manifest", "data/patches.parquet"]
        train += ["--profile", "offline", "--steps", "2", "--batch-size", "2"]
        run(machine, *containers["trainer"], train, USER)
    print(*sorted(str(path.relative_to(machine.folder)) for path in data.glob("*/*")), sep="\n")


def run(machine: Machine, root: Path, stage: Stage, command: list[str], user: str) -> None:
    """Run a command in a mounted stage. Raises CalledProcessError."""
    print(f"{stage.name}: {shlex.join(command)}", flush=True)
    subprocess.run(machine.argv(root, stage, command, user), check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(Path(sys.argv[1]))

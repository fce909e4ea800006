"""Does the Dockerfile give an image that runs? Builds it and runs it where there is no container engine.

    python .ci/check_image.py [--work FOLDER] [--volume HOST:IMAGE]...

Needs root on Debian's kind of Linux, debootstrap and Debian's mirror. Debian's buildah, in a root of its own, follows
the Dockerfile's own steps; a root that debootstrap makes stands for `python:slim`. The image then runs as its
configuration says, with the kernel's namespaces in place of an engine: read-only root, no network but its loopback, a
user that nobody knows, and the server as PID 1. Uses the standard library alone. Exits non-zero, with the server's
output, when a step fails.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Whose buildah reads today's Dockerfiles, and whose Python the wheels of torch are made for.
BUILDER_SUITE, BASE_SUITE, BASE_PYTHON = "trixie", "bookworm", "3.11"
IMAGE = "localhost/orcinus:cpu"
HEALTHY_WITHIN_S = 180
STOPPED_WITHIN_S = 60

# In a mount namespace of its own: the kernel's file systems and the given pairs (host, builder) appear in the builder.
ENTER_BUILDER = """
set -eu
root=$1; shift
mount --bind "$root" "$root"
for name in proc sys dev; do mount --rbind "/$name" "$root/$name"; done
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$(dirname "$root$2")"; touch "$root$2"; fi
    mount --bind "$1" "$root$2"; shift 2
done
shift
exec chroot "$root" "$@"
"""

# In new mount, PID and network namespaces, as PID 1: what an engine does before it runs the image's command.
ENTER_IMAGE = """
set -eu
root=$1 user=$2 directory=$3; shift 3
ip link set lo up
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
while [ "$1" != -- ]; do
    owner=$(stat -c "mode=%a,uid=%u,gid=%g" "$root$1")
    mount -t tmpfs -o "$owner" tmpfs "$root$1"; shift
done
shift
exec chroot --userspec="$user" --groups= "$root" setpriv --no-new-privs env -i --chdir="$directory" "$@"
"""

# A mount ends with its namespace: what runs is a copy.
COPY_ROOT = 'rm -rf /image && cp --archive "$(buildah mount "$1")" /image'


class ImageError(Exception):
    """A step failed."""


@dataclass(frozen=True)
class Builder:
    """A Debian root with buildah in it, and what of this machine it sees."""

    root: Path
    seen: dict[Path, str]

    def run(self, *command: str) -> str:
        """Run a command there and return its standard output."""
        pairs = [part for host, inside in self.seen.items() for part in (str(host), inside)]
        enter = ["unshare", "--mount", "sh", "-c", ENTER_BUILDER, "builder", str(self.root), *pairs, "--", *command]
        done = subprocess.run(enter, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise ImageError(f"{' '.join(command)} exited {done.returncode}:\n{done.stdout[-4000:]}")
        return done.stdout.strip()

    def buildah(self, *arguments: str) -> str:
        return self.run("buildah", *arguments)


@dataclass(frozen=True)
class Image:
    """The root of a built image, and what its configuration says of running it."""

    root: Path
    config: dict[str, Any]

    @property
    def command(self) -> list[str]:
        return [*self.config["Entrypoint"], *self.config["Cmd"]]

    @property
    def health_check(self) -> list[str]:
        kind, *command = self.config["Healthcheck"]["Test"]
        if kind != "CMD":
            raise ImageError(f"the health check is of the form {kind}, which needs a shell")
        return list(command)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "image", help="where the roots are kept")
    parser.add_argument("--volume", action="append", default=[], metavar="HOST:IMAGE", help="seen by the build's steps")
    arguments = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise ImageError("this needs root and debootstrap (apt-get install debootstrap)")
    work = arguments.work.resolve()
    builder = make_builder(work, arguments.volume)
    image = build(builder, arguments.volume)
    show_sizes(builder, image)
    check_rebuild(builder, arguments.volume)
    service_link = {"ORCINUS_PORT": "tcp://10.0.0.1:8000"}
    for user, extra in ((image.config["User"], {}), ("1000650000:0", service_link)):
        with running(image, user, extra, work / "server.log") as server:
            check_running(image, server, user, extra)


def make_builder(work: Path, volumes: Sequence[str]) -> Builder:
    """Return the builder, after bootstrapping what is not there from an earlier call."""
    tools, base = work / "builder", work / "base"
    bootstrap(tools, BUILDER_SUITE, "buildah", "netavark", "ca-certificates")
    bootstrap(base, BASE_SUITE, "python3", "python3-pip", "ca-certificates")
    for name in ("python", "pip"):
        link = base / "usr/local/bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to(f"/usr/bin/{name}3")
    shutil.copy("/etc/resolv.conf", tools / "etc/resolv.conf")
    seen = {ROOT: "/src", base: "/base", **{Path(v.split(":")[0]): v.split(":")[0] for v in volumes}}
    return Builder(tools, seen)


def bootstrap(folder: Path, suite: str, *packages: str) -> None:
    """Make a minimal Debian root with these packages; apt adds them, as debootstrap knows no virtual packages."""
    done = folder / ".bootstrapped"
    if done.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # In a mount namespace of its own: what debootstrap mounts is gone with it, however it ends.
    command = ["unshare", "--mount", "debootstrap", "--variant=minbase", suite, str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *packages]
    Builder(folder, {}).run("env", "DEBIAN_FRONTEND=noninteractive", *install)
    Builder(folder, {}).run("apt-get", "clean")
    done.touch()


def build(builder: Builder, volumes: Sequence[str]) -> Image:
    """Return the image that the Dockerfile's steps make on the stand-in for its base."""
    builder.run("sh", "-c", "buildah rm --all && buildah rmi --all --force")
    base = builder.buildah("from", "scratch")
    builder.buildah("add", "--quiet", base, "/base", "/")
    builder.buildah("config", "--env", "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", base)
    builder.buildah("commit", "--quiet", "--rm", base, f"docker.io/library/python:{BASE_PYTHON}-slim")
    began = time.monotonic()
    follow_dockerfile(builder, volumes)
    print(f"image: built in {time.monotonic() - began:.0f} s")
    config = json.loads(builder.buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]
    container = builder.buildah("from", "--pull-never", IMAGE)
    builder.run("sh", "-c", COPY_ROOT, "copy", container)
    return Image(builder.root / "image", config)


def follow_dockerfile(builder: Builder, volumes: Sequence[str]) -> str:
    shared = [argument for volume in volumes for argument in ("--volume", f"{volume}:ro")]
    options = ("--pull-never", "--layers", "--isolation=chroot", "--format=docker", *shared)
    # Its own defaults may be more than this machine allows.
    limits = [
        "--ulimit={}={}:{}".format(name, *resource.getrlimit(number))
        for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC))
    ]
    python = f"--build-arg=PYTHON_VERSION={BASE_PYTHON}"
    return builder.buildah("build", *options, *limits, python, "--tag", IMAGE, "/src")


def show_sizes(builder: Builder, image: Image) -> None:
    """Print what the image is made of, as it lies on a disk and as a registry keeps it."""
    builder.buildah("push", "--quiet", "--compression-format=gzip", IMAGE, "oci:/tmp/pushed")
    for name, folder in (("all", ""), ("Python packages and Orcinus", "opt/orcinus")):
        size = subprocess.run(["du", "-sk", str(image.root / folder)], capture_output=True, text=True, check=True)
        print(f"image: {name}: {int(size.stdout.split()[0]) / 1024:.0f} MiB on disk")
    pushed = builder.root / "tmp/pushed"
    index = json.loads((pushed / "index.json").read_text())
    manifest = json.loads((pushed / "blobs/sha256" / index["manifests"][-1]["digest"].split(":")[1]).read_text())
    layers = [layer["size"] / 2**20 for layer in manifest["layers"]]
    print(f"image: layers of {', '.join(f'{size:.1f}' for size in layers)} MiB compressed, {sum(layers):.0f} in all")
    shutil.rmtree(pushed)


def check_rebuild(builder: Builder, volumes: Sequence[str]) -> None:
    """Check that a build of the same sources comes from the cache."""
    began = time.monotonic()
    if "Using cache" not in follow_dockerfile(builder, volumes):
        raise ImageError("a second build used no layer of the first")
    print(f"image: built again from the cache in {time.monotonic() - began:.0f} s")


@dataclass(frozen=True)
class Server:
    """A server in its namespaces: the process that waits for it, and its own number out here."""

    waiting: subprocess.Popen[bytes]
    pid: int

    def enter(self, *options: str) -> list[str]:
        return ["nsenter", "--target", str(self.pid), *options]


@contextmanager
def running(image: Image, user: str, extra: dict[str, str], log: Path) -> Iterator[Server]:
    """Run the image's command in namespaces of its own; afterwards SIGTERM must end it with 0."""
    volumes = list(image.config.get("Volumes") or {})
    inside = [str(image.root), user, image.config["WorkingDir"], *volumes, "--"]
    namespaces = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"]
    command = [*namespaces, "sh", "-c", ENTER_IMAGE, "image", *inside, *environment(image, extra), *image.command]
    with log.open("wb") as output:
        waiting = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        server = Server(waiting, first_child(waiting))
        yield server
        os.kill(server.pid, signal.SIGTERM)
        status = waiting.wait(timeout=STOPPED_WITHIN_S)
        if status != 0:
            raise ImageError(f"after SIGTERM the server, as PID 1, exited {status}, not 0")
        print(f"image: as {user}: SIGTERM ended PID 1 with 0")
    except BaseException:
        print(log.read_text(errors="replace"), file=sys.stderr)
        raise
    finally:
        waiting.kill()
        waiting.wait()


def environment(image: Image, extra: dict[str, str]) -> list[str]:
    given = dict(pair.split("=", 1) for pair in image.config["Env"])
    return [f"{name}={value}" for name, value in {**given, **extra}.items()]


def first_child(process: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + HEALTHY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.05)
    raise ImageError("the namespaces could not be made")


def check_running(image: Image, server: Server, user: str, extra: dict[str, str]) -> None:
    """Check that it gets healthy, answers, has no rights, and cannot write where no volume is."""
    began = time.monotonic()
    within = server.enter("--mount", "--pid", "--net", "--root", *as_user(user))
    check = [*within, "env", "-i", *environment(image, extra), *image.health_check]
    while subprocess.run(check, check=False, stderr=subprocess.DEVNULL).returncode:
        if server.waiting.poll() is not None or time.monotonic() - began > HEALTHY_WITHIN_S:
            raise ImageError(f"as {user}: not healthy within {HEALTHY_WITHIN_S} s")
        time.sleep(0.5)
    print(f"image: as {user}: healthy after {time.monotonic() - began:.1f} s{' with ' + str(extra) if extra else ''}")
    check_rights(server, user)
    for path in (*writable(image), "/tmp"):
        subprocess.run([*within, "touch", f"{path}/probe"], check=True)
    refused = subprocess.run([*within, "touch", "/opt/orcinus/probe"], check=False, capture_output=True, text=True)
    if "Read-only file system" not in refused.stderr:
        raise ImageError(f"the root filesystem can be written: {refused.stderr}")
    ask = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import smoke; smoke.check_server(8000)"
    subprocess.run([*server.enter("--net"), sys.executable, "-c", ask], check=True)


def writable(image: Image) -> list[str]:
    return list(image.config["Volumes"])


def as_user(user: str) -> list[str]:
    uid, gid = user.split(":")
    return ["--setuid", uid, "--setgid", gid]


def check_rights(server: Server, user: str) -> None:
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if ":\t" in line
    )
    numbers = status["NSpid"].split()[-1], status["Uid"].split()[0], status["Gid"].split()[0]
    if numbers != ("1", *user.split(":")):
        raise ImageError(f"the server is process, user and group {numbers}, not 1 and {user}")
    if int(status["CapEff"], 16) or status["NoNewPrivs"].strip() != "1":
        raise ImageError("the server has capabilities")


if __name__ == "__main__":
    try:
        main()
    except (ImageError, subprocess.SubprocessError) as error:
        sys.exit(f"image: {error}")

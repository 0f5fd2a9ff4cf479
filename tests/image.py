"""The container image: built for real, or installed from the very files that it copies."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
BASE: Final = "docker.io/library/python:3.11-slim"
UV: Final = ROOT / ".venv-uv" / "bin" / "uv"

#: What a container engine does, with the tools of any Linux: everything but the home and /tmp is
#: read-only, and the user has no rights. $1 is the root, $2 the home, $3 the user's number.
ENTER: Final = """set -eu
mount --bind "$1" "$1"
mount -t tmpfs tmpfs "$1/tmp"
mount --rbind /dev "$1/dev"
mount --bind /proc "$1/proc"
mount --bind "$2" "$1/var/lib/hrn"
test -z "$4" || { mount -t tmpfs tmpfs "$1/run" && mkdir -p "$1/run/hrn/local-files"; }
test -z "$4" || for name in requests-ca-bundle ssl-cert-file; do cp "$4" "$1/run/hrn/$name"; done
mount -o remount,bind,ro "$1"
root=$1 user=$3
shift 4
exec chroot "$root" setpriv --reuid="$user" --regid="$user" --clear-groups --no-new-privs \
  --bounding-set=-all env -i --chdir=/var/lib/hrn "$@"
"""


@dataclass(frozen=True)
class Shipped:
    """Something that `hrn` runs in.

    Attributes:
        home: folder of HRN_HOME, on this machine.
        environ: variables that it sets.
        health: the command of its health check.
        root: of its file system; None: it is installed on this machine.
        user: number of its user.
    """

    home: Path
    environ: Mapping[str, str]
    health: tuple[str, ...] = ()
    root: Path | None = None
    user: int = 0

    def command(
        self, words: Sequence[str], environ: Mapping[str, str], *, certificates: str = ""
    ) -> list[str]:
        """The command line that runs something in it.

        Args:
            words: what to run.
            environ: variables, over its own; there are no others.
            certificates: a file to mount as compose.yaml does; "" for none.
        """
        variables = [f"{name}={text}" for name, text in {**self.environ, **environ}.items()]
        if self.root is None:
            return ["env", "-i", f"--chdir={self.home}", *variables, *words]
        into = [str(self.root), str(self.home), str(self.user), certificates]
        return ["unshare", "--mount", "sh", "-c", ENTER, "sh", *into, *variables, *words]

    def run(
        self, *words: str, certificates: str = "", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        command = self.command(words, environ, certificates=certificates)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def copied() -> list[str]:
    """The files and folders that the first stage of the Dockerfile copies.

    `.dockerignore` has to let each of them through, and nothing else.
    """
    stage = (ROOT / "Dockerfile").read_text("utf-8").split("\nFROM ")[1]
    sources = [
        source
        for line in re.findall(r"^COPY (.+)$", stage, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in ignore if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert rules[-1] == "**/__pycache__"
    assert sorted(rules[1:-1]) == sorted(f"!{source}" for source in sources)
    return sources


@contextmanager
def installed() -> Iterator[Shipped]:
    """An environment with the image's packages, and a wheel of the files that it copies."""
    with tempfile.TemporaryDirectory(prefix="hrn-installed-") as name:
        folder = Path(name)
        context, env, home = (folder / part for part in ("context", "env", "home"))
        home.mkdir()
        for source in copied():
            target = context / source
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, target)
        environ = {**os.environ, "VIRTUAL_ENV": str(env), "UV_LINK_MODE": "hardlink"}
        lock = context / "requirements" / "serve.txt"
        for words in (
            ["venv", "-q", "--python", sys.executable, str(env)],
            ["pip", "sync", "-q", "--require-hashes", "--only-binary", ":all:", str(lock)],
            ["pip", "install", "-q", "--no-deps", "--no-build-isolation", str(context)],
        ):
            subprocess.run([str(UV), *words], env=environ, check=True, timeout=1200)
        path = f"{env / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin"
        yield Shipped(home, {"PATH": path, "HRN_HOME": str(home), "PYTHONUNBUFFERED": "1"})


@contextmanager
def container() -> Iterator[Shipped]:
    """The image, built by buildah as the Dockerfile says; needs root. Nothing of it stays."""
    with tempfile.TemporaryDirectory(prefix="hrn-image-", dir="/var/tmp") as name:
        folder = Path(name)
        store = [f"--root={folder / 'layers'}", f"--runroot={folder / 'run'}"]
        environ = {**os.environ, "TMPDIR": name}

        def buildah(*words: str) -> str:
            return subprocess.run(
                ["buildah", *store, *words],
                env=environ,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                timeout=1200,
            ).stdout

        try:
            _base(buildah, folder)
            settings = _pip_settings(folder)
            build = ["build", "--pull-never", "--format=docker", "--isolation=chroot", *settings]
            buildah(*build, "--quiet", "--tag=hrn", str(ROOT))
            config = json.loads(buildah("inspect", "--type=image", "hrn"))["Docker"]["config"]
            user, group = config["User"].split(":")
            assert user == group
            home = folder / "home"
            home.mkdir()
            os.chown(home, int(user), int(group))
            yield Shipped(
                home,
                dict(line.split("=", 1) for line in config["Env"]),
                tuple(config["Healthcheck"]["Test"][1:]),
                Path(buildah("mount", buildah("from", "--pull-never", "hrn").strip()).strip()),
                int(user),
            )
        finally:
            buildah("umount", "--all")
            buildah("rm", "--all")
            buildah("rmi", "--all", "--force")


def _base(buildah: Callable[..., str], folder: Path) -> None:
    """The image that ours is built upon, made of Debian's packages where no registry answers."""
    try:
        buildah("pull", "--quiet", BASE)
    except subprocess.CalledProcessError:
        packages = "--include=python3,python3-venv,ca-certificates"
        made = ["mmdebstrap", "--quiet", "--variant=minbase", packages, "bookworm"]
        subprocess.run([*made, str(folder / "base.tar")], check=True, timeout=1200)
        file = folder / "Dockerfile"
        file.write_text(
            "FROM scratch\nADD base.tar /\nRUN ln -s python3 /usr/bin/python\n", "utf-8"
        )
        buildah(
            "build", "--isolation=chroot", "--quiet", f"--tag={BASE}", f"--file={file}", str(folder)
        )
        (folder / "base.tar").unlink()


def _pip_settings(folder: Path) -> list[str]:
    """Where this machine gets its packages, for the build alone: pip.conf and certificates."""
    listed = subprocess.run(  # the environment that `make` fetches uv with has a pip
        [str(UV.with_name("python")), "-m", "pip", "config", "list"],
        check=True, stdout=subprocess.PIPE, text=True,
    timeout=1200).stdout  # fmt: skip
    found = dict(re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    wanted = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout")
    lines = ["[global]", *(f"{name} = {found[name]}" for name in wanted if name in found)]
    mounts = [f"--volume={folder / 'pip.conf'}:/etc/pip.conf:ro"]
    if "cert" in found:
        lines.append("cert = /etc/pip.pem")
        mounts.append(f"--volume={found['cert']}:/etc/pip.pem:ro")
    (folder / "pip.conf").write_text("\n".join(lines) + "\n", "utf-8")
    return mounts

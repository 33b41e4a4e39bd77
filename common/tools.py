"""Running Python that a model wrote: crop tools, plots, sums. In a sandbox or not at all.

    result = run_code("from PIL import Image\\nImage.open('in.png').crop((0, 0, 8, 8)).save('out.png')",
                      {"in.png": data})
    result.ok, result.stdout, result.reason, result.files["out.png"]

The code sees a Python, the libraries in PACKAGES, an empty environment and a folder of its own in memory; of this
machine it sees no file of a user, no process, no network and no variable. Bubblewrap builds that world where it is
installed, else common/sandbox.py with the kernel's namespaces. Inside, both are the same: an unprivileged user, no
capabilities, one process (fork is refused) with at most THREADS threads, limits for time, memory, files and output,
and a filter of system calls. Before the first call a probe tries to break every one of these walls (`self_check`);
if one of them gives way, or on a system other than Linux, no code is run and a SightRLError says what to install.

What it does not guard against: faults of the kernel (the code makes system calls to the kernel of this machine, so
whoever holds an exploit for it is out; a virtual machine is the answer to that), side channels (caches, timing, the
load of the machine), and the code's reading the system's libraries and the Python that it runs with. What comes back
is a stranger's: names, text and files can be anything, pictures can be built to exhaust a decoder (`open_picture`
refuses those), and none of it may be run.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
import platform
import re
import resource
import secrets
import shutil
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from common import sandbox
from common.errors import SightRLError

if TYPE_CHECKING:
    from PIL.Image import Image

# What generated code may import besides the standard library, as names in site-packages; what is missing is left out.
PACKAGES = ("numpy", "numpy.libs", "PIL", "pillow.libs", "scipy", "scipy.libs", "matplotlib", "mpl_toolkits", "sympy",
            "mpmath", "contourpy", "kiwisolver", "cycler", "fontTools", "packaging", "pyparsing", "dateutil",
            "six.py")  # fmt: skip
THREADS = 16  # of the code and its guard together
OPEN_FILES = 64
MOST_FILES, MOST_INODES = 256, 4096  # returned; existing at any time
GRACE = 60.0  # seconds until a sandbox that neither answers nor ends is killed from outside
FOLDER = f"{sandbox.BOX}/work"
SITE = "/site"
ENVIRONMENT = {"HOME": f"{sandbox.BOX}/tmp", "TMPDIR": f"{sandbox.BOX}/tmp", "PYTHONPATH": f"{FOLDER}:{SITE}",
               "LANG": "C.UTF-8", "MPLBACKEND": "Agg", "MPLCONFIGDIR": f"{sandbox.BOX}/matplotlib",
               "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What a piece of code did.

    ok: it ended by itself with status 0. stdout, stderr: what it wrote, without control characters but line ends and
    tabs. reason: "" if ok, else half a sentence. files: name -> content of the regular files in its folder that are
    new or changed; names are relative but otherwise whatever the code liked: never use one as a path unchecked.
    """

    ok: bool
    stdout: str = ""
    stderr: str = ""
    reason: str = ""
    files: dict[str, bytes] = field(default_factory=dict)


def run_code(code: str, files: Mapping[str, bytes] | None = None, seconds: float = 10.0, memory_mb: int = 512,
             output_bytes: int = 64_000, disk_mb: int = 64) -> Result:  # fmt: skip
    """Run Python in a sandbox of its own and wait for it.

    files: name -> content, put into the code's working folder before. seconds: of the clock, from the start of the
    code, and of processor time, all threads together (rounded up, and one more). memory_mb: address space; numpy
    needs about 150, matplotlib 300. output_bytes: of standard output and of standard error each. disk_mb: everything
    in its folder together, which is memory too. Code that exceeds time or output is killed; memory and disk fail
    inside it, as MemoryError and OSError.
    Whatever the code does ends in a Result. Raises SightRLError if no code can be run safely on this machine, and for
    names of files or limits that make no sense.
    """
    try:
        way = isolation()
        fonts = font_list(way) if "matplotlib" in code else {}
        return run_in(way, code, files or {}, seconds, memory_mb, output_bytes, disk_mb, fonts)
    except NotIsolated as error:
        raise refusal(str(error)) from None


def run_many(codes: Sequence[str], files: Sequence[Mapping[str, bytes] | None] | None = None,
             workers: int | None = None, **limits: float) -> list[Result]:  # fmt: skip
    """run_code for many pieces of code, several at a time; results in their order.

    files: one mapping per code. workers: at the same time; default: the processors. limits: as for run_code. All of
    them together can use workers * (memory_mb + disk_mb) of memory.
    """
    isolation()
    jobs = list(zip(codes, files if files is not None else [None] * len(codes), strict=True))
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as threads:
        return list(threads.map(lambda job: run_code(*job, **limits), jobs))


def open_picture(data: bytes, most_pixels: int = 16_000_000) -> Image | None:
    """A picture from a file of a Result as RGB; None if it is not a PNG or JPEG or has too many pixels."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            return picture.convert("RGB") if math.prod(picture.size) <= most_pixels else None
    except Exception:  # PIL raises nearly anything for a damaged file
        return None


# ---------------------------------------------------------------- one call


@functools.cache
def font_list(way: str) -> dict[str, bytes]:
    """matplotlib's list of fonts, which every sandbox would make again: half a second, and a warning to read."""
    code = "import matplotlib.font_manager, os, shutil; shutil.copytree(os.environ['MPLCONFIGDIR'], 'made')"
    made = run_in(way, code, {}, 10 * GRACE, 1024, 64_000, 64)
    return {name.replace("made/", "../matplotlib/"): content for name, content in made.files.items()}


def run_in(way: str, code: str, files: Mapping[str, bytes], seconds: float, memory_mb: int, output_bytes: int,
           disk_mb: int, further: Mapping[str, bytes] | None = None) -> Result:  # fmt: skip
    """run_code in a sandbox made by "bwrap" or "namespaces". further: files anywhere, of ours and not of a stranger."""
    check_names(files)
    if not all(0 < limit < 1e9 for limit in (seconds, memory_mb, output_bytes, disk_mb)):
        raise SightRLError("the limits of a sandbox (seconds, memory_mb, output_bytes, disk_mb) must be above 0.")
    contents = {"../code.py": code.encode("utf-8", "surrogatepass"), **(further or {}), **files}
    data = request(contents, seconds, memory_mb, output_bytes, disk_mb)
    answer, complaint = exchange(way, data, seconds + GRACE)
    ready, _, answer = answer.partition(b"\n")
    if ready != b"ready":
        raise NotIsolated(f"{way}: {last_line(complaint) or 'it does not start'}")
    return as_result(answer, files, seconds, output_bytes, disk_mb)


def exchange(way: str, data: bytes, seconds: float) -> tuple[bytes, bytes]:
    """What a new sandbox answers to a request, and what it says on standard error; after that it is gone.

    A sandbox that takes longer than that counts as one that started and was lost.
    """
    try:
        process = subprocess.Popen(command(way), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env={}, cwd="/", start_new_session=True)  # fmt: skip
    except OSError as error:
        raise NotIsolated(f"{way}: {error}") from None
    with process:
        try:
            return process.communicate(data, timeout=seconds)
        except subprocess.TimeoutExpired:
            return b"ready\n", b""
        finally:  # however this ends: with the outermost process all others die
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def check_names(files: Mapping[str, bytes]) -> None:
    for name in files:
        parts, raw = name.split("/"), name.encode("utf-8", "replace")
        inside = not {"", ".", ".."} & set(parts) and "\0" not in name
        if not inside or len(parts) > 8 or len(raw) > 200 or raw.decode() != name:
            raise SightRLError(f"{name!r} is no name for a file of a sandbox; use a short relative one like a/b.png.")


def request(contents: Mapping[str, bytes], seconds: float, memory_mb: int, output_bytes: int, disk_mb: int) -> bytes:
    """What the guard reads: a line of JSON, then the bytes of all files."""
    disk, processor = int(disk_mb * 2**20), math.ceil(seconds) + 1
    hard = {resource.RLIMIT_AS: int(memory_mb * 2**20), resource.RLIMIT_FSIZE: disk, resource.RLIMIT_NOFILE: OPEN_FILES,
            resource.RLIMIT_NPROC: THREADS, resource.RLIMIT_CORE: 0, resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_MSGQUEUE: 0, resource.RLIMIT_NICE: 0, resource.RLIMIT_RTPRIO: 0,
            resource.RLIMIT_SIGPENDING: 64}  # fmt: skip
    limits = [[kind, most, most] for kind, most in hard.items()]
    limits.append([resource.RLIMIT_CPU, processor, processor + 1])
    header = {"user": own_user(), "python": python(), "arguments": ["-s", "-B", f"{sandbox.BOX}/code.py"],
              "environment": ENVIRONMENT, "limits": limits, "seconds": seconds, "output": int(output_bytes),
              "disk": disk, "most_files": MOST_FILES, "most_inodes": MOST_INODES,
              "files": [[name, len(content)] for name, content in contents.items()]}  # fmt: skip
    return b"".join([json.dumps(header).encode(), b"\n", *contents.values()])


def own_user() -> int:
    """A number for the user that root becomes in a sandbox: in the upper half of those this system has, by chance."""
    ranges = [[int(n) for n in line.split()] for line in Path("/proc/self/uid_map").read_text().splitlines()]
    first, _, count = max(ranges, key=lambda numbers: numbers[2])
    return first + count // 2 + secrets.randbelow(max(count // 2 - 2, 1))


def as_result(answer: bytes, files: Mapping[str, bytes], seconds: float, output_bytes: int, disk_mb: int) -> Result:
    line, _, rest = answer.partition(b"\n")
    try:
        about = json.loads(line)
        sizes = [*about["texts"], *(size for _, size in about["files"])]
        parts, start = [], 0
        for size in sizes:
            parts.append(rest[start : start + size])
            start += size
        if start != len(rest):
            raise ValueError("cut off")
    except (ValueError, KeyError, TypeError):
        return Result(False, reason="the sandbox ended before the code did")
    left = {name: part for (name, _), part in zip(about["files"], parts[2:], strict=True)}
    new = {name: content for name, content in left.items() if files.get(name) != content}
    reason = explain(about["stopped"], about["status"], seconds, output_bytes, disk_mb)
    return Result(not reason, clean(parts[0]), clean(parts[1]), reason, new)


def explain(stopped: str, status: int, seconds: float, output_bytes: int, disk_mb: int) -> str:
    """Half a sentence on how the code ended; "" if well."""
    limits = {"time": f"stopped after {seconds:g} seconds", "output": f"wrote more than {output_bytes} bytes",
              "files": f"left more than {MOST_FILES} files or {disk_mb} MB"}  # fmt: skip
    if stopped:
        return limits.get(stopped, stopped)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        return limits["time"]
    return "" if code == 0 else f"killed by signal {-code}" if code < 0 else f"ended with status {code}"


def clean(text: bytes) -> str:
    """Text that can be printed anywhere: bad UTF-8 and control characters become U+FFFD, but for line ends and tabs.

    >>> clean(b"a\\x1b[2Jb\\r\\nc\\xff\\td")
    'a\\ufffd[2Jb\\nc\\ufffd\\td'
    """
    lines = text.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", lines)


def last_line(text: bytes) -> str:
    return (clean(text[-2000:]).strip().splitlines() or [""])[-1][:300]


# ---------------------------------------------------------------- the world of the code


@functools.cache
def command(way: str) -> list[str]:
    """The command line that starts a sandbox."""
    script = str(Path(sandbox.__file__).resolve())
    if way == "namespaces":
        return [python(), "-I", "-S", script, json.dumps(world())]
    found = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--new-session", "--unshare-pid", "--unshare-net",
             "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox", "--cap-drop", "ALL",
             "--cap-add", "CAP_SYS_ADMIN"]  # to mount the box; the guard gives it up first  # fmt: skip
    if os.geteuid() == 0:
        found += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        found += ["--unshare-user", "--uid", str(sandbox.NOBODY), "--gid", str(sandbox.NOBODY)]
    for source, target in world():
        found += [word for parent in new_folders(target) for word in ("--perms", "0755", "--dir", parent)]
        kind = "--dev-bind" if target.startswith("/dev/") else "--ro-bind"
        found += ["--symlink", source[2:], target] if source.startswith("->") else []
        found += ["--tmpfs", target, "--remount-ro", target] if not source else []
        found += [kind, source, target] if source.startswith("/") else []
    return [*found, "--ro-bind", script, "/guard.py", "--remount-ro", "/", "--chdir", "/",
            python(), "-I", "-S", "/guard.py"]  # fmt: skip


def new_folders(target: str) -> list[str]:
    """The folders above a target that are not in a folder of the machine; bubblewrap would hide them from the code."""
    shown = [Path(other) for source, other in world() if source.startswith("/") and other != target]
    parents = [parent for parent in reversed(Path(target).parents) if str(parent) != "/"]
    return [str(parent) for parent in parents if not any(parent.is_relative_to(folder) for folder in shown)]


def python() -> str:
    """The interpreter itself, not the link or the copy in a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@functools.cache
def world() -> list[list[str]]:
    """[source, target] of all that the code can see, in order; "" is an empty folder, "->x" a link to x."""
    base = Path(sys.base_prefix)
    folders = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", f"{base}/lib", f"{base}/lib64",
               sysconfig.get_path("stdlib")]  # fmt: skip
    found: dict[str, str] = {}  # target -> source
    for folder in folders:
        if os.path.islink(folder) and folder in folders[:4]:
            found[folder] = f"->{os.readlink(folder)}"
        elif os.path.isdir(folder) and not any(Path(folder).is_relative_to(t) for t in found):
            found[folder] = folder
    found |= {name: name for name in ("/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/urandom", python())}
    found |= {folder: "" for folder in site.getsitepackages([str(base)]) if os.path.isdir(folder)}
    found |= {f"{SITE}/{name}": str(path) for name in PACKAGES if (path := package(name))}
    found |= {"/tmp": f"->{sandbox.BOX}/tmp", sandbox.BOX: ""}
    return [[source, target] for target, source in found.items() if source[:1] != "/" or os.path.exists(source)]


def package(name: str) -> Path | None:
    """Where a package lies, without importing it."""
    places = (Path(folder, name) for folder in sys.path if folder.endswith("-packages"))
    return next((place.resolve() for place in places if place.exists()), None)


# ---------------------------------------------------------------- whether to trust it


class NotIsolated(Exception):
    """A sandbox could not be made; the text says where and why."""


def refusal(why: str) -> SightRLError:
    return SightRLError(
        f"model-written code is not run on this machine because it could not be isolated ({why}); use Linux 5.14 or "
        "newer, install bubblewrap (apt-get install bubblewrap), and allow user namespaces (Ubuntu: sysctl "
        "kernel.apparmor_restrict_unprivileged_userns=0; Docker: --security-opt seccomp=unconfined)."
    )


def isolation() -> str:
    """ "bwrap" or "namespaces": the first way to make a sandbox that holds here, checked once per process.

    Raises SightRLError if there is none.
    """
    with _checking:
        if not _trusted:
            _trusted.append(first_that_holds())
        return _trusted[0]


_trusted: list[str] = []
_checking = threading.Lock()


def first_that_holds() -> str:
    if platform.system() != "Linux" or platform.machine() not in sandbox.MACHINES:
        raise refusal(f"there are no namespaces on {platform.system()} for {platform.machine()}")
    problems = []
    for way in ("bwrap", "namespaces"):
        if way == "bwrap" and not shutil.which("bwrap"):
            problems.append("bwrap: not installed")
            continue
        try:
            broken = self_check(way)
        except NotIsolated as error:
            problems.append(str(error))
            continue
        if not broken:
            return way
        problems.append(f"{way}: no wall around {', '.join(broken)}")
    raise refusal("; ".join(problems))


def self_check(way: str) -> list[str]:
    """Walls of a sandbox that give way to common/sandbox_probe.py; [] if it holds.

    What the probe tries to reach is really there: a secret file, a listening port, an abstract socket, a variable.
    """
    disk_mb, memory_mb, name = 4, 256, secrets.token_hex(8)
    with (
        tempfile.NamedTemporaryFile() as secret,
        socket.create_server(("127.0.0.1", 0)) as port,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        secret.write(b"secret")
        secret.flush()
        abstract.bind(f"\0{name}")
        abstract.listen()
        host = {"secret": secret.name, "port": port.getsockname()[1], "abstract": name, "variable": "PATH",
                "threads": THREADS, "memory_mb": memory_mb, "disk_mb": disk_mb, "inodes": MOST_INODES}  # fmt: skip
        probe = (Path(__file__).parent / "sandbox_probe.py").read_text()
        result = run_in(way, probe, {"host.json": json.dumps(host).encode()}, GRACE, memory_mb, 64_000, disk_mb)
    try:
        return [str(wall) for wall in json.loads(result.stdout)]
    except ValueError:
        why = last_line(result.stderr.encode()) or result.reason
        raise NotIsolated(f"{way}: the check did not run: {why}") from None

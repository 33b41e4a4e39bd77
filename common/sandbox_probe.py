"""Run in a new sandbox before it is trusted: tries every wall, prints a JSON list of those that gave way.

Its folder has host.json with what there is to reach outside, see tools.self_check. A wall is tried twice where there
are two: the network by its namespace (abstract sockets, which the filter allows) and by the filter.
"""

import ctypes
import json
import os
import resource
import socket
import struct
import sys
import sysconfig
import threading
from pathlib import Path

HOST = json.loads(Path("host.json").read_text())


def is_reached(family: int, address: object) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as line:
        line.settimeout(5)
        line.connect(address)
    return True


def is_writable(path: str) -> bool:
    return not os.statvfs(path).f_flag & os.ST_RDONLY


def forks() -> bool:
    child = os.fork()
    if child == 0:
        os._exit(0)
    return True


def has_capabilities() -> bool:
    sets = ctypes.create_string_buffer(24)
    ctypes.CDLL(None).capget(struct.pack("Ii", 0x20080522, 0), sets)
    return any(sets.raw)


def starts_threads() -> bool:
    """More than allowed; fewer than two is no working limit either."""
    started, wait = 0, threading.Event()
    try:
        while started <= HOST["threads"]:
            threading.Thread(target=wait.wait, daemon=True).start()
            started += 1
    except RuntimeError:
        pass
    wait.set()
    return not 2 <= started < HOST["threads"]


def fills_memory() -> bool:
    try:
        return len(bytearray(HOST["memory_mb"] << 20)) > 0
    except MemoryError:
        return False


def fills_disk() -> bool:
    for n in range(HOST["disk_mb"] + 1):  # in pieces: one large file has a limit of its own
        Path(f"large{n}").write_bytes(bytes(1 << 20))
    return True


def makes_files() -> bool:
    os.mkdir("many")
    for n in range(HOST["inodes"] + 1):
        os.mknod(f"many/{n}")
    return True


def raises_limit() -> bool:
    resource.setrlimit(resource.RLIMIT_NPROC, (HOST["threads"] + 1,) * 2)
    return True


C = ctypes.CDLL(None)
WALLS = {
    "files of the machine": lambda: Path(HOST["secret"]).read_text() != "",
    "folders of the machine": lambda: bool({"proc", "sys", "home", "old", "var"} & set(os.listdir("/"))),
    "writing to the root": lambda: is_writable("/"),
    "writing to the libraries": lambda: is_writable(sysconfig.get_path("stdlib")),
    "environment": lambda: HOST["variable"] in os.environ,
    "network": lambda: is_reached(socket.AF_INET, ("127.0.0.1", HOST["port"])),
    "network namespace": lambda: is_reached(socket.AF_UNIX, "\0" + HOST["abstract"]),
    "virtual sockets": lambda: socket.socket(40, socket.SOCK_STREAM).fileno() >= 0,
    "process namespace": lambda: os.getpid() > 64,
    "host namespace": lambda: socket.gethostname() != "sandbox",
    "user": lambda: 0 in (os.getuid(), os.geteuid(), os.getgid()),
    "capabilities": has_capabilities,
    "no new privileges": lambda: C.prctl(39, 0, 0, 0, 0) != 1,
    "system call filter": lambda: C.prctl(21, 0, 0, 0, 0) != 2,
    "processes": forks,
    "mounts": lambda: C.mount(b"none", b"/box/tmp", b"tmpfs", 0, None) == 0,
    "memory": fills_memory,
    "disk": fills_disk,
    "number of files": makes_files,
    "threads": starts_threads,  # not before memory and disk: they take memory
    "limits": raises_limit,  # not before threads: it may lower theirs
    "core dumps": lambda: resource.getrlimit(resource.RLIMIT_CORE) != (0, 0),
}


def gives_way(wall: str) -> bool:
    try:
        return WALLS[wall]()
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    print(json.dumps([wall for wall in WALLS if gives_way(wall)]))
    sys.stdout.flush()
    os._exit(0)  # without waiting for threads

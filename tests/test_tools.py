"""Generated code in its sandbox: attempts to break out, to starve the machine and to fake a result, one test each.

An attempt is a body that raises if it is contained and ends quietly if it got through. Those that do no harm are also
run without a sandbox, where they must get through: an attempt that could not succeed anywhere would prove nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import re
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import textwrap
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from common import sandbox, tools
from common.errors import SightRLError

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 120  # for code that should end by itself, on a machine that does much else
IS_ROOT = os.geteuid() == 0


def ways() -> dict[str, str]:
    """Way to make a sandbox -> "" if it works here, else why not."""
    if platform.system() != "Linux" or platform.machine() not in sandbox.MACHINES:
        return dict.fromkeys(("bwrap", "namespaces"), "the sandbox is made for Linux")
    found = {}
    for way in ("bwrap", "namespaces"):
        try:
            found[way] = ", ".join(tools.self_check(way))
        except tools.NotIsolated as error:
            found[way] = str(error)
    return found


WAYS = ways()


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> str:
    if WAYS[request.param]:
        pytest.skip(WAYS[request.param])
    monkeypatch.setattr(tools, "_trusted", [request.param])
    return request.param


def run(code: str, files: dict[str, bytes] | None = None, **limits) -> tools.Result:
    return tools.run_code(textwrap.dedent(code), files, **{"seconds": SECONDS, "disk_mb": 8} | limits)


def running() -> set[int]:
    """Processes of this machine that run code of a sandbox."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"/box/code.py" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
    return found


def wait_until(condition, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


# ---------------------------------------------------------------- attempts to break out


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """What there is to reach on this machine: files, sockets, a variable, this process, an open file."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "secret").write_text("secret")
    name, variable = f"sightrl-{os.getpid()}", "SIGHTRL_TEST_SECRET"
    descriptor = os.open(folder / "open", os.O_WRONLY | os.O_CREAT)
    os.set_inheritable(descriptor, True)
    os.environ[variable] = "secret"
    with (
        socket.create_server(("127.0.0.1", 0)) as port,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as path,
    ):
        for server, address in ((abstract, f"\0{name}"), (path, str(folder / "socket"))):
            server.bind(address)
            server.listen(64)
        yield {"folder": str(folder), "secret": str(folder / "secret"), "port": port.getsockname()[1],
               "abstract": name, "pid": os.getpid(), "variable": variable, "root": str(ROOT),
               "descriptor": descriptor, "packages": sysconfig.get_path("purelib"),
               "home": [str(p) for p in Path.home().iterdir() if not p.is_dir()]}  # fmt: skip
    del os.environ[variable]
    os.close(descriptor)


# Before every attempt, in the sandbox and outside.
BEFORE = """
import ctypes, errno, json, os, sys
{imports}
HOST = json.load(open("host.json"))
C = ctypes.CDLL(None, use_errno=True)
def check(answer):
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer
def call(x86, arm, *args):
    number = x86 if os.uname().machine == "x86_64" else arm
    return check(C.syscall(number, *args))
def attempt():
{body}
try:
    attempt()
    print("ESCAPED")
except BaseException as error:
    print("contained", type(error).__name__, errno.errorcode.get(getattr(error, "errno", None), ""))
"""

# name -> (what stops it, body). "as root": gets through outside only for root. "never": not tried outside, where it
# would do harm or where nothing to reach exists everywhere.
ATTEMPTS = {
    # files
    "read_passwd": ("FileNotFoundError", 'open("/etc/passwd").read()'),
    "read_a_secret": ("FileNotFoundError", 'open(HOST["secret"]).read()'),
    "read_the_home_folder": ("FileNotFoundError", """
        found = [name for name in HOST["home"] if os.path.lexists(name)]
        if not found: raise FileNotFoundError"""),
    "list_the_temporary_folder": ("FileNotFoundError", 'os.listdir(HOST["folder"])'),
    "read_this_repository": ("FileNotFoundError", 'open(HOST["root"] + "/README.md").read()'),
    "import_this_repository": ("ModuleNotFoundError", 'sys.path.insert(0, HOST["root"]); import common.errors'),
    "import_other_packages": ("ModuleNotFoundError", 'sys.path.insert(0, HOST["packages"]); import pytest'),
    "write_elsewhere": ("FileNotFoundError", 'open(HOST["folder"] + "/written", "w").write("x")'),
    "write_to_the_root": ("OSError EROFS never", 'open("/written", "w")'),
    "write_to_the_library": ("PermissionError|OSError EROFS never", 'open(os.__file__, "a")'),
    "change_the_interpreter": ("PermissionError|OSError EROFS never", """
        os.chmod(os.path.realpath(sys.executable), 0o777)"""),
    "write_to_the_packages": ("OSError EROFS never", 'open("/site/numpy/x.py", "w")'),
    "shared_memory_folder": ("FileNotFoundError", """
        path = f"/dev/shm/{HOST['abstract']}"
        open(path, "w").close(); os.remove(path)"""),
    "devices_of_the_machine": ("FileNotFoundError", """
        names = ("mem", "kmsg", "tty", "ptmx", "vda", "sda", "kvm", "full", "shm", "fd")
        found = [name for name in names if os.path.lexists("/dev/" + name)]
        if not found: raise FileNotFoundError"""),
    "make_a_device": ("PermissionError as root", """
        os.mknod("disk", stat.S_IFBLK | 0o600, os.makedev(7, 0)); os.remove("disk")"""),
    "symlink_out": ("FileNotFoundError", 'os.symlink(HOST["secret"], "link"); open("link").read()'),
    "hard_link_out": ("FileNotFoundError", 'os.link(HOST["secret"], "hard"); os.remove("hard")'),
    "hard_link_to_the_library": ("OSError EXDEV never", 'os.link(os.__file__, "hard")'),
    "climb_up": ("FileNotFoundError", """
        os.chdir("../" * 40)
        open(HOST["secret"].lstrip("/")).read()"""),
    "chroot_and_climb": ("PermissionError as root", """
        os.mkdir("jail"); os.chroot("jail"); os.chdir("../" * 40)"""),
    "mount": ("PermissionError never", 'check(C.mount(b"none", b"/box/tmp", b"tmpfs", 0, None))'),
    "remount_writable": ("PermissionError never", 'check(C.mount(b"none", b"/", None, 32 | 4096, None))'),
    "uncover_what_lies_below": ("PermissionError never", 'check(C.umount2(b"/box", 2))'),
    "pivot_root": ("PermissionError never", 'check(C.pivot_root(b".", b"."))'),
    "open_by_handle": ("PermissionError never", "call(304, 265, 3, bytes(64), 0)"),
    "new_mount_interface": ("PermissionError never", "call(430, 430, b'proc', 0)"),
    "setuid_file": ("PermissionError", """
        open("run", "w").write("#!/bin/sh\\necho ESCAPED\\n"); os.chmod("run", 0o4755)
        os.execv("./run", ["run"])"""),
    "core_pattern": ("FileNotFoundError never", 'open("/proc/sys/kernel/core_pattern", "w")'),
    # who it is, and what is told about the machine
    "become_root": ("PermissionError|OSError EINVAL as root", "os.setuid(0)"),
    "leave_the_groups": ("PermissionError as root", "os.setgroups([0])"),
    "secrets_in_the_environment": ("KeyError", 'os.environ[HOST["variable"]]'),
    "environment_of_the_parent": ("FileNotFoundError", """open(f"/proc/{HOST['pid']}/environ", "rb").read()"""),
    "memory_of_the_parent": ("FileNotFoundError", """open(f"/proc/{os.getppid()}/mem", "rb").close()"""),
    "root_of_the_parent": ("FileNotFoundError", """open(f"/proc/{HOST['pid']}/root" + HOST["secret"]).read()"""),
    "own_capabilities": ("PermissionError as root", """
        data = ctypes.create_string_buffer(24)
        check(C.capget(struct.pack("Ii", 0x20080522, 0), data))
        if not any(data.raw): raise PermissionError"""),
    "new_user_namespace": ("PermissionError", "check(C.unshare(0x10000000))"),
    "other_namespace": ("PermissionError never", "check(C.setns(0, 0))"),
    "host_name": ("PermissionError never", 'check(C.sethostname(b"mine", 4))'),
    "clock": ("PermissionError never", "time.clock_settime(time.CLOCK_REALTIME, time.time())"),
    "kernel_log": ("PermissionError as root", "check(C.klogctl(10, None, 0))"),
    "kernel_keys": ("PermissionError never", "call(250, 219, 0, -3, 1)"),
    "kernel_programs": ("PermissionError never", "call(321, 280, 0, bytes(64), 64)"),
    "performance_counters": ("PermissionError never", "call(298, 241, bytes(128), 0, -1, -1, 0)"),
    "io_uring": ("PermissionError never", "call(425, 425, 4, bytes(256))"),
    "userfaultfd": ("PermissionError never", "call(323, 282, 1)"),
    "unknown_system_call": ("OSError ENOSYS never", "call(9999, 9999)"),
    "system_calls_of_another_kind": ("OSError ENOSYS never", "call(0x40000000 + 57, 9999)"),
    # other processes
    "fork": ("PermissionError", "os.fork() or os._exit(0)"),
    "fork_bomb": ("PermissionError never", """
        for _ in range(200):
            if os.fork() == 0: time.sleep(600)"""),
    "daemon": ("PermissionError", """
        if os.fork() == 0:
            os.setsid()
            os.fork() or time.sleep(1)
            os._exit(0)"""),
    "subprocess": ("PermissionError", 'subprocess.run([sys.executable, "-c", "1"], check=True)'),
    "spawn": ("PermissionError", 'os.waitpid(os.posix_spawn(sys.executable, [sys.executable, "-c", "1"], {}), 0)'),
    "shell": ("PermissionError", """
        if os.system("exit 0") != 0: raise PermissionError"""),
    "fork_past_the_library": ("PermissionError", "call(56, 220, signal.SIGCHLD, 0, 0, 0, 0) or os._exit(0)"),
    "clone3": ("OSError ENOSYS", """
        call(435, 435, struct.pack("11Q", *[0] * 4, signal.SIGCHLD, *[0] * 6), 88) or os._exit(0)"""),
    "threads": ("RuntimeError", """
        wait = threading.Event()
        threads = []
        try:
            for _ in range(200):
                threads.append(threading.Thread(target=wait.wait)); threads[-1].start()
        finally:
            wait.set()"""),
    "see_the_parent": ("PermissionError", 'os.kill(HOST["pid"], 0)'),
    "signal_the_guard": ("PermissionError never", "os.kill(os.getppid(), signal.SIGKILL)"),
    "signal_everyone": ("PermissionError never", "os.kill(-1, signal.SIGKILL)"),
    "signal_the_group": ("PermissionError", "os.killpg(0, 0)"),
    "signal_with_a_descriptor": ("PermissionError", 'os.pidfd_open(HOST["pid"])'),
    "signal_with_a_value": ("PermissionError never", "call(129, 138, os.getppid(), signal.SIGKILL, bytes(128))"),
    "trace_the_guard": ("PermissionError never", "check(C.ptrace(16, os.getppid(), None, None))"),
    "be_traced": ("PermissionError", "check(C.ptrace(0, 0, None, None))"),
    "memory_of_the_guard": ("PermissionError never", "call(310, 270, os.getppid(), None, 0, None, 0, 0)"),
    "limits_of_the_guard": ("PermissionError", "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)"),
    "raise_a_limit": ("ValueError never", """
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
        resource.setrlimit(resource.RLIMIT_NOFILE, (61, 61))"""),
    "lift_the_memory_limit": ("ValueError never", "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))"),
    "priority": ("PermissionError as root", "os.nice(-1)"),
    "real_time": ("PermissionError never", "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"),
    # network and messages
    "loopback": ("PermissionError", 'socket.create_connection(("127.0.0.1", HOST["port"])).close()'),
    "datagram": ("PermissionError", """
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", HOST["port"]))"""),
    "names": ("gaierror", 'socket.getaddrinfo("localhost", 80)'),
    "abstract_socket": ("ConnectionRefusedError", """
        socket.socket(socket.AF_UNIX).connect("\\0" + HOST["abstract"])"""),
    "socket_file": ("FileNotFoundError", 'socket.socket(socket.AF_UNIX).connect(HOST["folder"] + "/socket")'),
    "other_families": ("PermissionError", """
        opened = []
        for family in (2, 10, 16, 17, 38, 40, 44):  # IP, IPv6, netlink, packet, algorithms, virtual machines, XDP
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
                with contextlib.suppress(OSError): opened.append(socket.socket(family, kind))
        if not opened: raise PermissionError"""),
    "socket_pairs": ("PermissionError never", "socket.socketpair(2, socket.SOCK_STREAM)"),
    "inherited_descriptors": ("OSError EBADF", 'os.write(HOST["descriptor"], b"x")'),
    "any_descriptor": ("OSError EBADF never", """
        written = []
        for number in range(3, 4096):
            with contextlib.suppress(OSError): written.append(os.write(number, b"x"))
        if not written: raise OSError(errno.EBADF, "")"""),
    "type_into_the_terminal": ("OSError never", """
        for number in (0, 1, 2):
            with contextlib.suppress(OSError): return fcntl.ioctl(number, 0x5412, b"x")
        raise OSError"""),
    "shared_memory": ("PermissionError", "os.close(os.memfd_create('x'))"),
    "shared_segments": ("PermissionError never", "check(C.shmget(0, 4096, 0o1600))"),
    "message_queues": ("PermissionError never", 'check(C.mq_open(b"/x", 64 | 2, 0o600, None))'),
    "wait_for_input": ("EOFError never", "input()"),
}  # fmt: skip


MODULES = ("contextlib", "fcntl", "resource", "signal", "socket", "stat", "struct", "subprocess", "threading", "time")


def attempt(name: str) -> str:
    body = textwrap.indent(textwrap.dedent(ATTEMPTS[name][1]), "    ")
    imports = "\n".join(f"import {module}" for module in MODULES if f"{module}." in body)
    return BEFORE.replace("{body}", body).replace("{imports}", imports)


@pytest.mark.parametrize("name", ATTEMPTS)
def test_contained(way, host, name):
    before = set(os.listdir(host["folder"])), running()
    result = run(attempt(name), {"host.json": json.dumps(host).encode()})
    wanted = ATTEMPTS[name][0].replace("as root", "").replace("never", "").strip()
    assert result.ok, result
    assert re.match(f"contained ({wanted})", result.stdout), result
    assert set(os.listdir(host["folder"])) == before[0] and os.fstat(host["descriptor"]).st_size == 0
    assert (Path(host["folder"]) / "secret").read_text() == "secret"
    assert wait_until(lambda: not running() - before[1])


@pytest.mark.skipif(platform.system() != "Linux", reason="the attempts are made for Linux")
@pytest.mark.parametrize("name", [name for name in ATTEMPTS if "never" not in ATTEMPTS[name][0]])
def test_the_attempt_gets_through_without_a_sandbox(host, name, tmp_path):
    if "as root" in ATTEMPTS[name][0] and not IS_ROOT:
        pytest.skip("gets through as root only")
    (tmp_path / "host.json").write_text(json.dumps({**host, "folder": str(tmp_path)}))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        command = [tools.python(), "-s", "-S", "-c", attempt(name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path,
                              pass_fds=[host["descriptor"]])  # fmt: skip
    os.truncate(host["descriptor"], 0)
    assert "ESCAPED" in done.stdout, done


# ---------------------------------------------------------------- attempts to starve the machine, to crash, to stay

MB = 1 << 20
# name -> (code, options of run_code, how it must end: a pattern in "<reason>|<last line of standard error>")
STARVING = {
    "endless_loop": ("while True: pass", {"seconds": 2}, "stopped after 2 seconds"),
    "endless_sleep": ("import time; time.sleep(1e6)", {"seconds": 1}, "stopped after 1 seconds"),
    "deaf": ("""
        import signal, time
        for number in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(number, signal.SIG_IGN)
        time.sleep(1e6)""", {"seconds": 2}, "stopped after 2 seconds"),
    "stopped_process": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", {"seconds": 1}, "stopped after"),
    "closes_its_output_and_stays": ("""
        import os, time
        for number in range(64):
            try: os.close(number)
            except OSError: pass
        time.sleep(1e6)""", {"seconds": 2}, "stopped after"),
    "thread_that_stays": ("""
        import threading, time
        threading.Thread(target=time.sleep, args=(1e6,)).start()""", {"seconds": 2}, "stopped after"),
    "wait_for_a_pipe": ("import os; os.mkfifo('p'); open('p')", {"seconds": 1}, "stopped after"),
    "endless_output": ("while True: print('x' * 1000)", {}, "wrote more than 64000 bytes"),
    "endless_errors": ("import sys\nwhile True: sys.stderr.write('x' * 1000)", {}, "wrote more than 64000 bytes"),
    "one_long_line": ("print('x' * 10**8)", {}, "wrote more than 64000 bytes"),
    "memory": ("bytearray(1 << 30)", {}, "MemoryError"),
    "memory_in_small_pieces": ("x = []\nwhile True: x.append(bytes(100_000))", {"memory_mb": 128}, "MemoryError"),
    "memory_shared": ("import mmap; mmap.mmap(-1, 1 << 30)", {}, "Cannot allocate memory"),
    "memory_of_a_mapped_file": ("""
        import mmap, os
        for n in range(100):
            os.truncate(os.open(str(n), os.O_CREAT | os.O_RDWR), 1 << 22)
            mapped = mmap.mmap(os.open(str(n), os.O_RDWR), 1 << 22)
            mapped[:] = bytes(1 << 22)""", {}, "killed by signal 7"),  # the file has no room in the box
    "recursion": ("def f(): f()\nf()", {}, "RecursionError"),
    "number_of_digits": ("10 ** 10 ** 10", {"seconds": 2, "memory_mb": 128}, "stopped after|MemoryError"),
    "large_file": ("open('x', 'wb').write(bytes(9 << 20))", {}, "File too large|No space left"),
    "sparse_file": ("open('x', 'wb').truncate(1 << 40)", {}, "File too large"),
    "disk_in_pieces": ("for n in range(9): open(str(n), 'wb').write(bytes(1 << 20))", {}, "No space left"),
    "disk_of_the_other_folder": ("for n in range(9): open(f'/tmp/{n}', 'wb').write(bytes(1 << 20))", {}, "No space"),
    "many_files": ("import os\nfor n in range(10_000): os.mknod(str(n))", {}, "files or .* MB|No space left"),
    "deep_folders": ("import os\nwhile True: os.mkdir('d'); os.chdir('d')", {}, "No space left"),
    "open_files": ("x = [open('x', 'w') for _ in range(1000)]", {}, "Too many open files"),
    "zip_bomb": ("""
        import zlib
        reader = zlib.decompressobj()
        data = open("bomb", "rb").read()
        with open("x", "wb") as file:
            while data:
                file.write(reader.decompress(data, 1 << 20)); data = reader.unconsumed_tail""",
        {}, "File too large|No space left"),
    "zip_bomb_in_memory": ("""
        import zlib
        zlib.decompress(open("bomb", "rb").read())""", {"memory_mb": 64}, "MemoryError"),
    "crash": ("import ctypes; ctypes.string_at(1)", {}, "killed by signal 11"),
    "abort": ("import os; os.abort()", {}, "killed by signal 6"),
    "kills_itself": ("import os; os.kill(os.getpid(), 9)", {}, "killed by signal 9"),
    "status": ("import os; os._exit(77)", {}, "ended with status 77"),
    "status_of_a_failed_start": ("import os; os._exit(127)", {}, "ended with status 127"),
    "exit_with_words": ("raise SystemExit('over')", {}, "status 1.*over"),
    "syntax": ("print('", {}, "SyntaxError"),
    "lone_surrogate": ("print('\udc80')", {}, "SyntaxError"),
    "endless_line": ("(" * 100_000, {}, "wrote more than"),
    "replaces_itself": ("import os, sys; os.execv(sys.executable, [sys.executable, '-c', '1/0'])", {}, "ZeroDivision"),
    "signal_to_the_guard_by_a_file": ("""
        import fcntl, os, socket, signal
        a, b = socket.socketpair()
        fcntl.fcntl(a, fcntl.F_SETOWN, os.getppid()); fcntl.fcntl(a, 10, signal.SIGKILL)
        fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC)
        b.send(b"x")
        raise SystemExit(3)""", {}, "status 3|the sandbox ended before the code did"),
}  # fmt: skip


@pytest.mark.parametrize("name", STARVING)
def test_bounded(way, name):
    code, options, ending = STARVING[name]
    before = running()
    result = run(code, {"bomb": zlib.compress(bytes(100 * MB), 1)} if "bomb" in name else {}, **options)
    lines = result.stderr.strip().splitlines() or [""]
    assert not result.ok and re.search(ending, f"{result.reason}|{lines[-1]}"), result
    assert len(result.stdout) <= 64_000 and len(result.stderr) <= 64_000
    assert sum(map(len, result.files.values())) <= 8 * MB and len(result.files) <= tools.MOST_FILES
    assert wait_until(lambda: not running() - before)


def test_every_limit_is_in_force_and_hard(way):
    code = """
        import json, resource as r
        print(json.dumps({name: r.getrlimit(getattr(r, name)) for name in dir(r) if name.startswith("RLIMIT")}))"""
    limits = json.loads(run(code, seconds=90.5, memory_mb=300, disk_mb=7).stdout)
    fixed = {"AS": 300 * MB, "FSIZE": 7 * MB, "CORE": 0, "NOFILE": 64, "NPROC": 16, "MEMLOCK": 0, "MSGQUEUE": 0,
             "NICE": 0, "RTPRIO": 0}  # fmt: skip
    assert {name: limits[f"RLIMIT_{name}"] for name in fixed} == {name: [most] * 2 for name, most in fixed.items()}
    assert limits["RLIMIT_CPU"] == [92, 93]


# ---------------------------------------------------------------- attempts to fake a result


def test_text_and_files_come_back(way):
    code = """
        import os, sys
        print(open("in.txt").read(), os.getcwd(), dict(os.environ) == dict(os.environ), __name__)
        sys.stderr.write("grüße")
        open("in.txt", "a").write("!"); os.makedirs("a/b"); open("a/b/out.bin", "wb").write(bytes(range(256)))
        open("/tmp/other", "w").write("x")"""
    result = run(code, {"in.txt": b"hello", "same.txt": b"kept", "deep/er.txt": b""})
    assert result == tools.Result(True, "hello /box/work True __main__\n", "grüße", "",
                                  {"in.txt": b"hello!", "a/b/out.bin": bytes(range(256))})  # fmt: skip


def test_a_picture_is_cropped(way):
    picture, data = Image.new("RGB", (64, 48), "red"), io.BytesIO()
    picture.paste("blue", (8, 8, 24, 24))
    picture.save(data, "PNG")
    code = "from PIL import Image; Image.open('in.png').crop((8, 8, 24, 24)).resize((32, 32)).save('out.png')"
    result = run(code, {"in.png": data.getvalue()})
    assert result.ok, result
    cropped = tools.open_picture(result.files["out.png"])
    assert cropped.size == (32, 32) and cropped.getcolors() == [(1024, (0, 0, 255))]


def test_a_plot_is_drawn(way):
    code = "import matplotlib.pyplot as plt; plt.plot([1, 3, 2]); plt.title('$x^2$'); plt.savefig('plot.png')"
    result = run(code + "; exit()", seconds=600, disk_mb=64)
    assert result.ok and list(result.files) == ["plot.png"] and not result.stderr, result
    assert tools.open_picture(result.files["plot.png"]).size == (640, 480)


FAKE = 'ready\n{"stopped": "", "status": 0, "texts": [5, 0], "files": [["x", 3]]}\nright'


def test_an_answer_cannot_be_faked(way):
    code = f"""
        import os, sys
        for number in range(1024):
            try: os.write(number, {FAKE.encode()!r})
            except OSError: pass
        os._exit(3)"""
    result = run(code)
    assert (result.ok, result.reason, result.files) == (False, "ended with status 3", {})
    assert result.stdout == result.stderr == FAKE


def test_output_cannot_harm_a_terminal_or_a_decoder(way):
    r"""Escape sequences, of 8 bits too, lose their first character; what is not UTF-8 is replaced."""
    raw = b"a\x1b[2J\x1b]0;title\x07b\x9b1m\xc2\x9b1m\x00\x08\x7f\xff\xfe\xe2\x28 \xf0\x9f\x98\x80\tc\r\nd\re\n"
    result = run(f"import os; os.write(1, {raw!r}); os.write(2, {raw!r})")
    assert result.ok and result.stdout == result.stderr
    assert result.stdout.endswith("😀\tc\nd\ne\n") and result.stdout.startswith("a\ufffd[2J\ufffd]0;title\ufffdb")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", result.stdout)


def test_only_regular_files_come_back(way, tmp_path):
    (tmp_path / "secret").write_text("secret")
    code = f"""
        import os, socket
        open("good", "w").write("x")
        os.symlink({str(tmp_path / "secret")!r}, "link"); os.symlink("/etc/ld.so.cache", "inside")
        os.symlink("/", "folder"); os.mkfifo("pipe"); socket.socket(socket.AF_UNIX).bind("socket");
        os.mkdir("empty"); os.symlink("loop", "loop")
        open("hidden", "w").write("x"); os.chmod("hidden", 0)
        os.mkdir("closed"); open("closed/x", "w").write("x"); os.chmod("closed", 0)
        open(b"\\xff", "w").write("x"); open("a\\nb", "w").write("x"); open("-rf ~", "w").write("x")
        os.makedirs("1/2/3/4/5/6/7/8/9"); open("1/2/3/4/5/6/7/8/9/x", "w").write("x"); open("1/2/x", "w").write("x")
        os.link("good", "again")"""
    result = run(code)
    assert result.ok, result
    assert result.files == dict.fromkeys(["good", "again", "a\nb", "-rf ~", "1/2/x"], b"x")


@pytest.mark.parametrize("other", ["os.symlink('/', '/box/work')", "os.mkdir('/box/work')", "os.mkfifo('/box/work')"])
def test_the_folder_is_replaced(way, other):
    result = run(f"import os; open('mine', 'w').write('x'); os.rename('/box/work', '/box/old'); {other}")
    assert result.ok and result.files == {"mine": b"x"}, result


def test_the_folder_is_removed(way):
    assert run("import os, shutil; shutil.rmtree('/box', ignore_errors=True); print('done')").stdout == "done\n"


def test_a_result_is_replaced_by_something_else(way):
    for other in ("os.symlink('/etc/ld.so.cache', 'out')", "os.mkfifo('out')", "os.mkdir('out')"):
        result = run(f"import os; os.remove('out'); {other}", {"out": b"x"})
        assert result.ok and result.files == {}, result


def test_too_much_comes_back(way):
    many = run("for n in range(300): open(f'{n:03}', 'w').write('x')")
    assert not many.ok and many.reason == "left more than 256 files or 8 MB" and len(many.files) == 256
    large = run("for n in range(200): open(f'{n:03}', 'wb').truncate(1 << 20)")  # takes no room in the box
    assert not large.ok and large.reason == "left more than 256 files or 8 MB" and len(large.files) == 8


def test_files_that_do_not_fit_or_do_not_fit_together(way):
    assert run("", {"x": bytes(9 * MB)}).reason.startswith("its files do not fit")
    assert run("", {"x": b"", "x/y": b""}).reason.startswith("its files do not fit")
    assert run("").ok and run("#" * 5_000_000).ok
    assert run("print(1)\0").stdout in ("", "1\n")  # as the version of Python has it


CUT_OFF = [b"", b"\n", b"{}\n", b"[]\n", b"null\n", FAKE.encode()[6:40], FAKE.encode()[6:] + b"12"]


@pytest.mark.parametrize("answer", CUT_OFF)
def test_an_answer_that_is_cut_off_is_no_result(answer, monkeypatch):
    monkeypatch.setattr(tools, "exchange", lambda way, data, seconds: (b"ready\n" + answer, b""))
    lost = tools.Result(False, reason="the sandbox ended before the code did")
    assert tools.run_in("namespaces", "", {}, 1, 1, 1, 1) == lost
    monkeypatch.setattr(tools, "exchange", lambda way, data, seconds: (FAKE.encode() + b"123", b""))
    assert tools.run_in("namespaces", "", {}, 1, 1, 1, 1) == tools.Result(True, "right", "", "", {"x": b"123"})


def test_calls_leave_nothing_for_each_other(way):
    code = "import os, tempfile; print(os.listdir('.'), os.listdir('/tmp')); open('x', 'w'); open('/tmp/x', 'w')"
    assert [run(code).stdout for _ in range(2)] == ["[] []\n"] * 2


# ---------------------------------------------------------------- many at a time, and the end of the caller


def test_many_at_a_time(way):
    """Results in their order; nobody sees another one's files, or counts against another one's threads."""
    code = """
        import os, threading
        wait = threading.Event()
        threads = [threading.Thread(target=wait.wait) for _ in range(10)]
        for thread in threads: thread.start()
        print(open("own").read(), sorted(os.listdir("."))); wait.set()"""
    files = [{"own": str(n).encode()} for n in range(8)]
    results = tools.run_many([textwrap.dedent(code)] * 8, files, workers=4, seconds=SECONDS)
    assert [result.stdout for result in results] == [f"{n} ['own']\n" for n in range(8)], results
    assert tools.run_many([]) == []


@pytest.mark.parametrize(
    "number, call",
    [(signal.SIGKILL, "run_many([code] * 2, workers=2, seconds=600)"), (signal.SIGINT, "run_code(code, seconds=600)")],
)
def test_the_code_ends_with_its_caller(way, number, call):
    before, script = (
        running(),
        f"""
from common import tools
tools._trusted.append({way!r})
code = "import time; time.sleep(600)"
tools.{call}
""",
    )
    caller = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.DEVNULL)
    assert wait_until(lambda: len(running() - before) == (2 if "many" in call else 1))
    caller.send_signal(number)
    assert caller.wait(SECONDS) == -number
    assert wait_until(lambda: not running() - before)


# ---------------------------------------------------------------- whether to trust it

# (what a kernel or a mistake might leave out of common/sandbox.py, the wall that the check must miss)
FAULTS = {
    "filter": ("    install_filter(os.uname().machine, os.getpid())", "    pass", "system call filter"),
    "limits": ("resource.setrlimit(kind, (soft, hard))", "pass", "threads"),
    "inodes": ("nr_inodes={header['most_inodes']},", "", "number of files"),
    "size": ("size={header['disk']},", "", "disk"),
    "bind": ("    set_read_only(target, device, recursive=True)", "    pass", "writing to the libraries"),
    "root": ('    set_read_only("/", device=False, recursive=False)', "    pass", "writing to the root"),
    "old root": ('    os.rmdir("/old")', "    pass", "folders of the machine"),
    "host name": ('"sethostname", b"sandbox", 7', '"sethostname", b"other", 5', "host namespace"),
}  # fmt: skip


def sandbox_with_a_fault(monkeypatch, tmp_path, old: str, new: str) -> None:
    text = Path(sandbox.__file__).read_text()
    assert text.count(old) == 1
    (tmp_path / "sandbox.py").write_text(text.replace(old, new))
    monkeypatch.setattr(sandbox, "__file__", str(tmp_path / "sandbox.py"))
    monkeypatch.setattr(tools, "command", tools.command.__wrapped__)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_missing_wall_is_noticed(fault, monkeypatch, tmp_path):
    if WAYS["namespaces"]:
        pytest.skip(WAYS["namespaces"])
    sandbox_with_a_fault(monkeypatch, tmp_path, *FAULTS[fault][:2])
    assert FAULTS[fault][2] in tools.self_check("namespaces")


def test_without_privileges_a_namespace_for_users_is_made(monkeypatch, tmp_path):
    """Root is made to go the way of everybody else; the one wall it lacks there is that threads of root are free."""
    if WAYS["namespaces"]:
        pytest.skip(WAYS["namespaces"])
    sandbox_with_a_fault(monkeypatch, tmp_path, '        call("unshare", flags)\n', "        raise PermissionError\n")
    assert tools.self_check("namespaces") == (["threads"] if IS_ROOT else [])


@pytest.mark.parametrize("option, wall", [("--unshare-net", "network namespace"),
                                          ("--unshare-pid", "process namespace")])  # fmt: skip
def test_a_missing_wall_of_bubblewrap_is_noticed(option, wall, monkeypatch):
    if WAYS["bwrap"]:
        pytest.skip(WAYS["bwrap"])
    words = [word for word in tools.command("bwrap") if word != option]
    monkeypatch.setattr(tools, "command", lambda way: words)
    assert wall in tools.self_check("bwrap")


@pytest.mark.parametrize("old, new", [
    ('    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)', "    pass"),
    ('    call("prctl", PR_SET_SECCOMP, 2, program, 0, 0)', '    call("prctl", PR_SET_SECCOMP, 9, program, 0, 0)'),
    ("    call(\"mount\", b\"tmpfs\", BOX.encode()", "    call(\"mount\", b\"none\", b\"/nowhere\""),
    ("| NEW_PID | NEW_NET\n", "| NEW_PID\n"),
    ("| NEW_PID | NEW_NET\n", "| NEW_NET\n"),
    ("| NEW_IPC | NEW_PID", "| NEW_PID"),
    ("| NEW_PID | NEW_NET\n", "| NEW_PID | NEW_NET\n    global call; call = lambda *a: 0\n"),  # everything is ignored
])  # fmt: skip
def test_a_failing_step_runs_nothing(old, new, monkeypatch, tmp_path):
    if WAYS["namespaces"]:
        pytest.skip(WAYS["namespaces"])
    sandbox_with_a_fault(monkeypatch, tmp_path, old, new)
    with pytest.raises(tools.NotIsolated):
        tools.self_check("namespaces")


def test_code_is_refused_where_nothing_isolates(monkeypatch):
    monkeypatch.setattr(tools, "_trusted", [])
    monkeypatch.setattr(tools.shutil, "which", lambda name: None)
    monkeypatch.setattr(tools, "command", lambda way: ["false"])
    for call in (lambda: tools.run_code("print(1)"), lambda: tools.run_many(["print(1)"])):
        with pytest.raises(SightRLError, match="bwrap: not installed; namespaces: .*apt-get install") as caught:
            call()
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(tools, "self_check", lambda way: ["network"])
    with pytest.raises(SightRLError, match="no wall around network"):
        tools.run_code("print(1)")


@pytest.mark.parametrize("system, machine", [("Darwin", "arm64"), ("Linux", "riscv64"), ("Windows", "AMD64")])
def test_code_is_refused_on_other_systems(system, machine, monkeypatch):
    monkeypatch.setattr(tools, "_trusted", [])
    monkeypatch.setattr(tools.platform, "system", lambda: system)
    monkeypatch.setattr(tools.platform, "machine", lambda: machine)
    monkeypatch.setattr(tools, "command", None)
    with pytest.raises(SightRLError, match=f"no namespaces on {system} for {machine}"):
        tools.run_code("print(1)")


def test_code_is_refused_in_a_container_without_namespaces():
    """As in Docker's default: unshare is forbidden to the whole process."""
    if platform.system() != "Linux" or platform.machine() not in sandbox.MACHINES:
        pytest.skip("the filter is made for Linux")
    script = """
import os, struct
from common import sandbox, tools
column = sandbox.MACHINES[os.uname().machine][0]
steps = [(sandbox.LOAD, 0, 0, 0), (sandbox.EQUAL, 0, 1, sandbox.NUMBERS["unshare"][column]),
         (sandbox.RETURN, 0, 0, sandbox.EPERM), (sandbox.RETURN, 0, 0, sandbox.ALLOW)]
sandbox.filter_program = lambda machine, process: b"".join(struct.pack("HBBI", *step) for step in steps)
sandbox.call("prctl", sandbox.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
sandbox.install_filter("", 0)
tools.shutil.which = lambda name: None
try:
    tools.run_code("print(1)")
except tools.SightRLError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert re.fullmatch("model-written code is not run on this machine.*unshare: Operation not permitted.*\n",
                        done.stdout), done  # fmt: skip


NAMESPACES_WORK = """
import ctypes, os
C = ctypes.CDLL(None)
flags = 0x20000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000
works = C.unshare(flags if os.geteuid() == 0 else flags | 0x10000000) == 0
works = works and C.mount(b"none", b"/", None, 16384 | 1 << 18, None) == 0
print(works and C.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0)
"""


def test_it_holds_here_or_says_why_not():
    """The other tests skip where no sandbox can be made; this one does not let them skip because of a mistake."""
    if platform.system() == "Linux" and platform.machine() in sandbox.MACHINES:
        done = subprocess.run([sys.executable, "-S", "-c", NAMESPACES_WORK], capture_output=True, text=True)
        assert not WAYS["namespaces"] or done.stdout != "True\n", WAYS
    if all(WAYS.values()):
        with pytest.raises(SightRLError, match="model-written code is not run on this machine"):
            tools.isolation()
        pytest.skip("no way to isolate code here: " + "; ".join(WAYS.values()))
    assert tools.isolation() in [way for way, problem in WAYS.items() if not problem]


# ---------------------------------------------------------------- what needs no sandbox


BAD_NAMES = ["", "/etc/x", "../x", "a/../x", "a//b", "./x", "a\0b", "x" * 300, "/".join("a" * 9), "\udc80", "\ud800"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_leave_the_folder(name):
    with pytest.raises(SightRLError, match="is no name for a file of a sandbox"):
        tools.run_in("namespaces", "", {name: b""}, 1, 1, 1, 1)


@pytest.mark.parametrize("limits", [(0, 1, 1, 1), (float("nan"), 1, 1, 1), (1, -1, 1, 1), (1, 1, 1, float("inf"))])
def test_limits_that_make_no_sense(limits):
    with pytest.raises(SightRLError, match="must be above 0"):
        tools.run_in("namespaces", "", {}, *limits)


def test_system_calls_have_the_numbers_of_the_kernel():
    """Where the kernel's headers are installed."""
    tables = {}
    for column, name in enumerate(("x86_64-linux-gnu/asm/unistd_64.h", "asm-generic/unistd.h")):
        if (path := Path("/usr/include", name)).exists():
            found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())
            tables[column] = {name: int(number) for name, number in found}
    if not tables:
        pytest.skip("no headers of the kernel here")
    wanted = {**sandbox.NUMBERS, **sandbox.SOCKETS, **sandbox.OWN, "clone": sandbox.CLONE, "clone3": sandbox.CLONE3}
    for column, table in tables.items():
        for name, numbers in wanted.items():
            assert table.get(name, numbers[column]) == numbers[column], name
            assert numbers[column] is None or name in table or numbers[column] > max(table.values()), name


def steps_to(program: bytes, number: int, argument: int, architecture: int) -> int:
    """What the filter returns for a system call: an interpreter of the few instructions it uses."""
    steps = list(struct.iter_unpack("HBBI", program))
    data, value, at = {0: number, 4: architecture, 16: argument}, 0, 0
    while True:
        code, on_true, on_false, k = steps[at]
        if code == sandbox.RETURN:
            return k
        if code == sandbox.LOAD:
            value, at = data[k], at + 1
        else:
            holds = {sandbox.EQUAL: value == k, sandbox.GREATER: value > k, sandbox.ANY_BIT: value & k != 0}[code]
            at += 1 + (on_true if holds else on_false)


@pytest.mark.parametrize("machine", sandbox.MACHINES)
def test_the_filter_decides_as_documented(machine):
    """Also for the processor that this machine does not have."""
    column, architecture = sandbox.MACHINES[machine]
    program = sandbox.filter_program(machine, process=5)
    decide = lambda number, argument=0: steps_to(program, number, argument, architecture)  # noqa: E731
    refused = {n[column] for n in sandbox.NUMBERS.values()}
    conditional = {n[column] for n in (*sandbox.SOCKETS.values(), *sandbox.OWN.values(), sandbox.CLONE, sandbox.CLONE3)}
    for number in range(sandbox.NEWEST + 1):
        if number not in conditional:
            assert decide(number) == (sandbox.EPERM if number in refused else sandbox.ALLOW), number
    assert decide(sandbox.NEWEST + 1) == decide(sandbox.CLONE3[column]) == sandbox.ENOSYS
    assert [decide(sandbox.CLONE[column], flags) for flags in (17, 0x10F00)] == [sandbox.EPERM, sandbox.ALLOW]
    for numbers in sandbox.SOCKETS.values():
        assert [decide(numbers[column], f) for f in (1, 2, 40)] == [sandbox.ALLOW, sandbox.EPERM, sandbox.EPERM]
    for name, numbers in sandbox.OWN.items():
        assert decide(numbers[column], 5) == sandbox.ALLOW and decide(numbers[column], 6) == sandbox.EPERM
        assert decide(numbers[column], 0) == (sandbox.ALLOW if name == "prlimit64" else sandbox.EPERM)
    assert steps_to(program, 1, 0, 0x40000003) == sandbox.KILL  # 32-bit calls have other numbers


def picture_file(size: tuple[int, int], kind: str, mode: str = "1") -> bytes:
    data = io.BytesIO()
    Image.new(mode, size).save(data, kind)
    return data.getvalue()


def test_pictures_that_would_exhaust_a_decoder():
    good = picture_file((40, 30), "PNG", "P")
    assert tools.open_picture(good).size == (40, 30) and tools.open_picture(good).mode == "RGB"
    assert tools.open_picture(picture_file((8000, 8000), "PNG")) is None  # 8 kB that become 192 MB
    for bad in (good[:60], b"", b"%!PS-Adobe-3.0 EPSF\n", picture_file((4, 4), "GIF"), picture_file((4, 4), "TIFF")):
        assert tools.open_picture(bad) is None

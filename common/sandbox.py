"""What runs around a piece of generated code: the inner half of common/tools.py, a script of the standard library.

    python -I -S sandbox.py '[[source, target], ...]'   # makes the namespaces itself, then guards the code
    bwrap ... python -I -S sandbox.py                   # bubblewrap made them; only guards the code

Three processes: the outermost one waits (`enclose`, or bubblewrap itself), the guard is alone with the code in a
world of its own (`guard`), the code runs as a nobody with limits and a filter of system calls (`become_code`).
On standard input the guard reads a line of JSON (see `tools.request`) and the bytes of all files; on standard output
it writes `ready`, runs the code, and writes a line of JSON and the bytes of what the code left behind. Any failure
before `ready` ends with a line on standard error and status 1: without every wall in place nothing runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import stat
import struct
import sys
import time

BOX = "/box"  # all that the code can write to, in memory: work (its folder), tmp, and its own text
NOBODY = 65534
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
NEW_NS, NEW_CGROUP, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = (
    0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)  # fmt: skip
MOUNT_SETATTR, AT_RECURSIVE = 442, 0x8000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 4, 22, 38, 47

LIBC = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: int | bytes | None) -> int:
    """A function of the C library; a negative answer is an OSError with the function's name."""
    given = [ctypes.c_ulong(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in args]
    answer = getattr(LIBC, name)(*given)
    if answer < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return answer


# ---------------------------------------------------------------- a world of its own


def enclose(binds: list[list[str]]) -> int:
    """Namespaces for users (unless privileged), files, processes, network, hosts and IPC; the guard inside them.

    binds: (source, target) pairs that exist in the new root, read-only; an empty source is an empty folder, one
    that starts with -> a link. Returns the guard's exit status, 1 if it was killed.
    """
    os.umask(0o022)
    flags = NEW_NS | NEW_CGROUP | NEW_UTS | NEW_IPC | NEW_PID | NEW_NET
    user, group = os.geteuid(), os.getegid()
    own = namespaces()
    try:
        call("unshare", flags)
    except PermissionError:
        call("unshare", flags | NEW_USER)
        maps = {"setgroups": "deny", "uid_map": f"{NOBODY} {user} 1", "gid_map": f"{NOBODY} {group} 1"}
        for name, text in maps.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    if shared := own & namespaces():
        raise OSError(f"the kernel made no new namespace: {', '.join(sorted(shared))}")
    call("sethostname", b"sandbox", 7)
    build_root(binds)
    guarding = os.fork()
    if guarding == 0:
        status = 1
        try:
            status = guard() if os.getpid() == 1 else complain("the kernel made no new namespace for processes")
        except Exception as error:
            complain(f"{type(error).__name__}: {error}")
        finally:
            os._exit(status)
    os.close(0), os.close(1)
    return max(os.waitstatus_to_exitcode(os.waitpid(guarding, 0)[1]), 0)


def namespaces() -> set[str]:
    """The namespaces of this process, like net:[4026531840]; that for processes is its children's only."""
    return {os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "cgroup", "uts", "ipc", "net")}


def build_root(binds: list[list[str]]) -> None:
    """A root folder in memory that holds the binds and nothing else, then read-only; the old root is gone."""
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    call("mount", b"tmpfs", b"/tmp", b"tmpfs", MS_NOSUID | MS_NODEV, b"size=1m,mode=755")
    os.mkdir("/tmp/old")
    os.chdir("/tmp")
    call("pivot_root", b".", b"old")
    os.chdir("/")
    for source, target in binds:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if source.startswith("->"):
            os.symlink(source[2:], target)
        elif source:
            bind(f"/old{source}", target)
        else:
            os.makedirs(target, exist_ok=True)
            call("mount", b"tmpfs", target.encode(), b"tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, b"size=4k")
    call("umount2", b"/old", MNT_DETACH)
    os.rmdir("/old")
    set_read_only("/", device=False, recursive=False)


def bind(source: str, target: str) -> None:
    device = stat.S_ISCHR(os.stat(source).st_mode)
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    call("mount", source.encode(), target.encode(), None, MS_BIND | MS_REC, None)
    set_read_only(target, device, recursive=True)


def set_read_only(target: str, device: bool, recursive: bool) -> None:
    """No writing and no setuid at the target and, if recursive, in everything mounted below it. Needs Linux 5.12."""
    attributes = MS_RDONLY | MS_NOSUID | (0 if device else MS_NODEV)  # the same bits as MOUNT_ATTR_*
    text = struct.pack("QQQQ", attributes, 0, 0, 0)
    at_cwd = -100 & (1 << 64) - 1
    call("syscall", MOUNT_SETATTR, at_cwd, target.encode(), AT_RECURSIVE if recursive else 0, text, len(text))


# ---------------------------------------------------------------- the guard


def guard() -> int:
    """Read a request from descriptor 0, run its code, write the answer to descriptor 1."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    header, contents = read_request()
    make_box(header)
    drop_privileges(header["user"])
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of user forgets it
    stopped, status, texts, left = "", 0, [b"", b""], {}
    try:
        os.chdir(f"{BOX}/work")
        for name, content in contents.items():
            write_file(name, content)
    except OSError as error:
        stopped = f"its files do not fit: {error.strerror}"
    write_all(1, b"ready\n")
    if not stopped:
        stopped, status, texts = run(header)
        left, cut = collect(header["most_files"], header["disk"])
        stopped = stopped or cut
    sizes = [[name, len(content)] for name, content in left.items()]
    answer = {"stopped": stopped, "status": status, "texts": [len(text) for text in texts], "files": sizes}
    write_all(1, b"".join([json.dumps(answer).encode(), b"\n", *texts, *left.values()]))
    return 0


def read_request() -> tuple[dict, dict[str, bytes]]:
    with os.fdopen(os.dup(0), "rb") as pipe:
        header = json.loads(pipe.readline())
        contents = {name: pipe.read(size) for name, size in header["files"]}
    if [len(content) for content in contents.values()] != [size for _, size in header["files"]]:
        raise OSError("the request ends too early")
    return header, contents


def make_box(header: dict) -> None:
    """The only place that can be written to: in memory, with a limit for bytes and one for files."""
    owner = f"uid={header['user']},gid={header['user']}" if os.getuid() == 0 else ""
    limits = f"size={header['disk']},nr_inodes={header['most_inodes']},mode=700,{owner}".rstrip(",")
    call("mount", b"tmpfs", BOX.encode(), b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, limits.encode())


def drop_privileges(user: int) -> None:
    """Root becomes a user that nobody else is; all capabilities go, none can come back; no one may look inside.

    user: a number of its own makes the limit of threads count this code alone (root is exempt from that limit).
    """
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    call("prctl", PR_CAP_AMBIENT, 4, 0, 0, 0)
    version_3 = struct.pack("Ii", 0x20080522, 0)
    call("capset", version_3, bytes(24))
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    os.mkdir(f"{BOX}/work")
    os.mkdir(f"{BOX}/tmp")


def write_file(name: str, content: bytes) -> None:
    if os.path.dirname(name):
        os.makedirs(os.path.dirname(name), exist_ok=True)
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    write_all(file, content)
    os.close(file)


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def run(header: dict) -> tuple[str, int, list[bytes]]:
    """(why it was stopped or "", status as of waitpid, [standard output, standard error]) of the request's code."""
    pipes = [os.pipe(), os.pipe()]
    arguments = [header["python"], *header["arguments"]]
    code = os.fork()
    if code == 0:
        try:
            become_code([writing for _, writing in pipes], header["limits"])
            os.execve(arguments[0], arguments, header["environment"])
        except BaseException as error:
            os.write(2, f"the code could not be started: {error}\n".encode())
        finally:
            os._exit(127)
    for _, writing in pipes:
        os.close(writing)
    readings = [reading for reading, _ in pipes]
    stopped, texts = watch(code, readings, header["seconds"], header["output"])
    return stopped, os.waitpid(code, 0)[1], texts


def watch(code: int, readings: list[int], seconds: float, most: int) -> tuple[str, list[bytes]]:
    """Read what the code writes until it ends, or until it took too long or wrote too much; it is dead after that."""
    texts, ended, poll = {reading: b"" for reading in readings}, os.pidfd_open(code), select.poll()
    for descriptor in (*readings, ended):
        poll.register(descriptor, select.POLLIN)
    end, stopped = time.monotonic() + seconds, ""
    while not stopped:
        left = end - time.monotonic()
        ready = [descriptor for descriptor, _ in poll.poll(max(left, 0) * 1000)]
        if left <= 0:
            stopped = "time"
        elif ready == [ended]:
            break
        for reading in set(ready) - {ended}:
            data = os.read(reading, 65536)
            texts[reading] += data
            if not data:
                poll.unregister(reading)
            if len(texts[reading]) > most:
                stopped = "output"
    os.kill(code, signal.SIGKILL)  # nobody waited for it yet, so the number is still its own
    return stopped, [text[:most] for text in texts.values()]


def collect(most_files: int, most_bytes: int, depth: int = 8) -> tuple[dict[str, bytes], str]:
    """(name -> content of the regular files in this folder, "files" if there are too many of them or too much).

    Nothing runs any more, so nothing changes meanwhile. Links, pipes, sockets, folders nested deeper than `depth`,
    names that are not UTF-8 and what cannot be read are left out.
    """
    found, total = {}, 0
    for path, folders, names in os.walk("."):
        folders[:] = sorted(folders) if path.count("/") < depth else []
        for whole in sorted(os.path.join(path, name) for name in names):
            with contextlib.suppress(OSError), open(whole, "rb", opener=open_as_it_is) as file:
                about = os.fstat(file.fileno())
                if not stat.S_ISREG(about.st_mode) or not is_text(whole):
                    continue
                total += about.st_size
                if len(found) >= most_files or total > most_bytes:
                    return found, "files"
                found[whole.removeprefix("./")] = file.read(about.st_size)
    return found, ""


def open_as_it_is(path: str, flags: int) -> int:
    """Without following a link, without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def is_text(name: str) -> bool:
    return name.encode("utf-8", "replace") == os.fsencode(name)


# ---------------------------------------------------------------- the code


def become_code(outputs: list[int], limits: list[list[int]]) -> None:
    """Turn this process into one that may run anything: no way in, two pipes out, limits, filter."""
    os.setsid()
    for number, descriptor in enumerate([os.open("/dev/null", os.O_RDONLY), *outputs]):
        os.dup2(descriptor, number)
    os.closerange(3, 65536)
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP) and signal.getsignal(number) is not None:
            signal.signal(number, signal.SIG_DFL)
    for kind, soft, hard in limits:
        resource.setrlimit(kind, (soft, hard))
    install_filter(os.uname().machine, os.getpid())


# Number of each system call on x86-64 and on 64-bit ARM; None where it does not exist. Below: what is refused.
NUMBERS = {
    # another process, another program's memory, another namespace
    "fork": (57, None), "vfork": (58, None), "unshare": (272, 97), "setns": (308, 268), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "kcmp": (312, 272), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "move_pages": (279, 239),
    "migrate_pages": (256, 238), "personality": (135, 92), "modify_ldt": (154, None),
    # mounts
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "open_tree": (428, 428),
    "move_mount": (429, 429), "mount_setattr": (442, 442), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    # memory and messages that no limit of a process counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192), "mq_open": (240, 180),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # doors of the kernel that have been forced before
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "vmsplice": (278, 75),
    # the machine
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "acct": (163, 89), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162),
    "iopl": (172, None), "ioperm": (173, None), "syslog": (103, 116), "vhangup": (153, 58),
    "lookup_dcookie": (212, 18),
}  # fmt: skip
# Allowed only with these values of the first argument, written as a function of the code's process.
CLONE, CLONE3, NEWEST = (56, 220), (435, 435), 462
CLONE_THREAD, AF_UNIX = 0x10000, 1
SOCKETS = {"socket": (41, 198), "socketpair": (53, 199)}  # first argument: the family
OWN = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}  # first argument: the process
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x50026
LOAD, EQUAL, GREATER, ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06  # of classic BPF, 32 bits


def filter_program(machine: str, process: int) -> bytes:
    """The filter as classic BPF, 8 bytes an instruction. A call that is not named here is allowed.

    One process: clone must make a thread, fork does not exist, clone3 (whose flags no filter can read) is unknown,
    so that the C library falls back on clone. Sockets: only within the box. Signals and limits: only its own.
    """
    column, architecture = MACHINES[machine]
    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    program += [(GREATER, 0, 1, NEWEST), (RETURN, 0, 0, ENOSYS)]  # newer than this table, or of another kind (x32)
    program += [(EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, ENOSYS)]
    for numbers in NUMBERS.values():
        if numbers[column] is not None:
            program += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, EPERM)]
    program += first_argument(CLONE[column], ANY_BIT, [CLONE_THREAD])
    for numbers in SOCKETS.values():
        program += first_argument(numbers[column], EQUAL, [AF_UNIX])
    for name, numbers in OWN.items():
        program += first_argument(numbers[column], EQUAL, [process, 0] if name == "prlimit64" else [process])
    return b"".join(struct.pack("HBBI", *step) for step in [*program, (RETURN, 0, 0, ALLOW)])


def first_argument(number: int, test: int, values: list[int]) -> list[tuple[int, int, int, int]]:
    """Steps that refuse a call unless its first argument (its lower half) passes the test with one of the values."""
    tests = [(test, len(values) - i, 0, value) for i, value in enumerate(values)]  # jump to the last step
    body = [(LOAD, 0, 0, 16), *tests, (RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW)]
    return [(EQUAL, 0, len(body), number), *body]


def install_filter(machine: str, process: int) -> None:
    text = filter_program(machine, process)
    steps = ctypes.create_string_buffer(text, len(text))
    program = struct.pack("HxxxxxxQ", len(text) // 8, ctypes.addressof(steps))
    call("prctl", PR_SET_SECCOMP, 2, program, 0, 0)


def complain(text: str) -> int:
    print(text, file=sys.stderr, flush=True)
    return 1


def main() -> int:
    try:
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        return enclose(json.loads(sys.argv[1])) if len(sys.argv) > 1 else guard()
    except Exception as error:
        return complain(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.exit(main())

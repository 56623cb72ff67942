"""Runs a program again in private network, mount, PID and IPC namespaces, and clears up behind it, however it ends.

All file systems of the machine can be made read-only inside. What is left outside is a cgroup, whose name begins with the
program's prefix and ends with its process id; it is removed in the end, or by the next run when this one was killed.

What would surprise: the program is started twice. The second time, inside, it finds `CGROUP` in its environment, and is a
child of the PID 1 that `be_init` makes of it.
"""

import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import time

# Says that this is inside, and which cgroup the containers belong in.
CGROUP = "PODSPAN_TEST_CGROUP"
CGROUPS = pathlib.Path("/sys/fs/cgroup")


def is_inside():
    return CGROUP in os.environ


def run_inside(prefix, timeout, **environment):
    """The exit status of this program's second run, once all that it started has ended. Without a timeout: None."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    program = sys.argv[0]
    cgroup = f"{prefix}{os.getpid()}"
    remove_cgroups_of_the_dead(prefix)
    environment |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", CGROUP: cgroup}
    unshare = ["unshare", "--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
    inside = subprocess.Popen([*unshare, os.path.realpath(program), *sys.argv[1:]], env=environment, preexec_fn=die_with_parent)
    try:
        return inside.wait(timeout)
    except subprocess.TimeoutExpired:
        return f"{program}: not done after {timeout} s"
    finally:
        inside.kill()
        inside.wait()
        remove_cgroups(cgroup)


def die_with_parent():
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def remove_cgroups(name):
    """In the hierarchy of version 2 and in every one of version 1, as soon as the last process in there has ended."""
    deadline = time.monotonic() + 5
    for top in [CGROUPS / name, *CGROUPS.glob(f"*/{name}")]:
        for directory, _, _ in os.walk(top, topdown=False):
            while (problem := removal_problem(directory)) and time.monotonic() < deadline:
                time.sleep(0.05)
            if problem:
                print(f"{directory} stays: {problem}", file=sys.stderr)


def removal_problem(directory):
    try:
        os.rmdir(directory)
    except OSError as error:
        return error.strerror


def remove_cgroups_of_the_dead(prefix):
    """Those of runs that were killed before they could."""
    for name in {top.name for pattern in ("", "*/") for top in CGROUPS.glob(f"{pattern}{prefix}*")}:
        if not os.path.exists(f"/proc/{name.removeprefix(prefix)}"):
            remove_cgroups(name)


def be_init(work):
    """PID 1 inside, while `work`, whose result is the exit status, is done by a child: what others leave is ours to reap."""
    worker = os.fork()
    if worker == 0:
        status = work()
        sys.stdout.flush()
        os._exit(status)
    while True:
        pid, status = os.wait()
        if pid == worker:
            return 0 if status == 0 else 1

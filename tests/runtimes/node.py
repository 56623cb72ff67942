"""The node that a runtime runs on: its mounts, its plugins, its uplink, what lies outside, and witnesses.

`ip -j` and `nft` are the witnesses, never our own code. Things of somebody else's are on the node from the start, and
every case ends with the proof that they are still there.

    outside  192.0.2.2  ── uplink0 ──  node  192.0.2.1      (2001:db8::2, 2001:db8::1)
"""

import concurrent.futures
import ctypes
import functools
import json
import os
import pathlib
import shutil
import socket
import socketserver
import subprocess
import threading
import time
import unittest

from image import write_image

# The cgroup that all containers belong in; `run` removes it.
CGROUP = "/" + os.environ["PODSPAN_RUNTIMES_CGROUP"]
# All that the tests make is under it, on tmpfs.
HOME = pathlib.Path("/run/node")
IMAGE_ARCHIVE = HOME / "web.tar"
# CNI's executables, as /opt/cni/bin on a real node.
PLUGINS = HOME / "plugins"
# Debian's containernetworking-plugins, and those of them that the runtimes run here.
REFERENCE_PLUGINS = pathlib.Path("/usr/lib/cni")
REFERENCE_NAMES = ["bandwidth", "bridge", "firewall", "host-local", "loopback", "portmap", "tuning"]
OUTSIDE = "/run/netns/outside"
NODE_ADDRESSES = ["192.0.2.1", "2001:db8::1"]
OUTSIDE_ADDRESSES = ["192.0.2.2", "2001:db8::2"]
FOREIGN_TABLE = "table inet foreign { chain input { type filter hook input priority 0; policy accept; }; }"
# How long anything may take before it counts as hanging, in seconds.
PATIENCE = 20
LIBC = ctypes.CDLL(None, use_errno=True)


def prepare(executables, reference):
    """Turns the namespaces that we are alone in into a node."""
    protect_the_machine()
    for directory in ["/run/lock", "/run/netns", PLUGINS]:
        pathlib.Path(directory).mkdir(parents=True)
    install_plugins(executables / "podspan-cni", reference)
    write_image(IMAGE_ARCHIVE)

    run("ip netns add outside")
    run("ip link add uplink0 type veth peer name uplink0 netns outside")
    run("ip link set lo up")
    run("ip -n outside link set lo up")
    for namespace, addresses in (("", NODE_ADDRESSES), ("-n outside", OUTSIDE_ADDRESSES)):
        run(f"ip {namespace} addr add {addresses[0]}/24 dev uplink0")
        run(f"ip {namespace} addr add {addresses[1]}/64 dev uplink0 nodad")
        run(f"ip {namespace} link set uplink0 up")
    run("ip link add foreign0 up type bridge")
    run("ip addr add 198.51.100.1/24 dev foreign0")
    run("ip link add pod0 type veth peer name pod1")
    run("ip route add 203.0.113.0/24 via 198.51.100.2 proto static")
    restart_firewall()


def protect_the_machine():
    """What a runtime writes where it should not fails."""
    set_read_only("/", True)
    for kernels_own in ("/proc", "/sys"):
        set_read_only(kernels_own, False)
    # podman keeps its locks in /dev/shm, and unpacks in /var/tmp.
    for directory in ("/run", "/var/lib", "/var/tmp", "/dev/shm"):
        run(f"mount -t tmpfs -o mode=755 tmpfs {directory}")


def set_read_only(path, is_read_only):
    """A mount and all below it, in this mount namespace only: mount_setattr(2), which mount(8) of Debian 12 lacks."""
    SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
    set_and_clear = (MOUNT_ATTR_RDONLY, 0) if is_read_only else (0, MOUNT_ATTR_RDONLY)
    attributes = (ctypes.c_uint64 * 4)(*set_and_clear)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    if LIBC.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, attributes, size) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)


def install_plugins(podspan_cni, reference):
    """The names that `podspan-cni install` links are ours, the rest the reference plugins'; with `reference` all are."""
    run([podspan_cni, "install", PLUGINS])
    for name in REFERENCE_NAMES:
        if reference:
            (PLUGINS / name).unlink(missing_ok=True)
        if not (PLUGINS / name).exists():
            shutil.copy2(REFERENCE_PLUGINS / name, PLUGINS)


def restart_firewall():
    """What a restart of nftables.service does: all rules go, whosever they are, and the administrator's come back."""
    run(["nft", f"flush ruleset; {FOREIGN_TABLE}"])


class Case(unittest.TestCase):
    """One case on the node. What is somebody else's survives it."""

    longMessage = True

    def tearDown(self):
        self.assertEqual(ip("addr show foreign0")[0]["addr_info"][0]["local"], "198.51.100.1")
        self.assertEqual(ip("link show pod0")[0]["ifname"], "pod0")
        self.assertEqual(ip("route show 203.0.113.0/24")[0]["gateway"], "198.51.100.2")
        self.assertEqual(ip("route show default"), [])
        run("nft list chain inet foreign input")

    def assert_served(self, by, address, port=80, netns=None, seen_from=None):
        """Asked in `netns` (the node's without one), `by` answers at `address`, and saw the asker at `seen_from`."""
        name, seen = fetch(address, port, netns)
        self.assertEqual(name, by, f"who answers at {address} port {port}, asked in {netns or 'the node'}")
        if seen_from is not None:
            self.assertEqual(seen, seen_from, f"asker of {address} port {port} in {netns or 'the node'}")

    def assert_closed(self, address, port, netns=None):
        """Nobody listens there."""
        with self.assertRaises(ConnectionRefusedError, msg=f"{address} port {port} answers"):
            within(netns, lambda: socket.create_connection((address, port), timeout=PATIENCE).close())

    def assert_ports_lead_to(self, web, neighbour):
        """8080, 8081 on one address, and 5353 over UDP lead to it: from outside, the node, a neighbour and itself."""
        for node_address, outside in zip(NODE_ADDRESSES, OUTSIDE_ADDRESSES):
            self.assert_served(web.name, node_address, 8080, netns=OUTSIDE, seen_from=outside)
            self.assert_served(web.name, node_address, 8080)
            self.assert_served(web.name, node_address, 8080, netns=neighbour.netns)
            self.assert_served(web.name, node_address, 8080, netns=web.netns)
        self.assert_served(web.name, "127.0.0.1", 8080)
        self.assert_served(web.name, NODE_ADDRESSES[0], 8081, netns=OUTSIDE)
        self.assert_closed("127.0.0.1", 8081)
        self.assert_closed(NODE_ADDRESSES[1], 8081, netns=OUTSIDE)
        with Answering(web.netns, 53, socket.SOCK_DGRAM):
            asker = seen_by(NODE_ADDRESSES[0], 5353, OUTSIDE, socket.SOCK_DGRAM)
            self.assertEqual(asker, OUTSIDE_ADDRESSES[0])

    def assert_ports_closed(self):
        for node_address in NODE_ADDRESSES:
            self.assert_closed(node_address, 8080, netns=OUTSIDE)
        self.assert_closed(NODE_ADDRESSES[0], 8081, netns=OUTSIDE)

    def assert_soon(self, predicate, what):
        deadline = time.monotonic() + PATIENCE
        while not predicate():
            self.assertLess(time.monotonic(), deadline, f"not within {PATIENCE} s: {what}")
            time.sleep(0.02)


def run(command):
    """A command's output; fails with all that it said."""
    words = command.split() if isinstance(command, str) else [str(word) for word in command]
    # Files, not pipes: what a runtime leaves running would hold these open.
    with open(os.memfd_create("stdout"), "w+") as stdout, open(os.memfd_create("stderr"), "w+") as stderr:
        process = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, timeout=60)
        stdout.seek(0), stderr.seek(0)
        if process.returncode != 0:
            said = (stdout.read() + stderr.read()).strip()
            raise AssertionError(f"{' '.join(words)}: exit status {process.returncode}\n{said}")
        return stdout.read()


def ip(command, netns=None):
    output = within(netns, lambda: run(f"ip -j {command}"))
    return json.loads(output or "[]")


def links(netns=None):
    return {link["ifname"]: link for link in ip("link show", netns)}


def addresses(interface, netns=None):
    """The global addresses of an interface that are in use, IPv4 first."""
    infos = ip(f"addr show {interface}", netns)[0]["addr_info"]
    return [info["local"] for info in infos if info["scope"] == "global" and not info.get("tentative")]


def ports_of(bridge):
    return [name for name, link in links().items() if link.get("master") == bridge]


def addresses_in(directory):
    """Those that have an owner on disk: the files named by an address, sorted."""
    names = [file.name for file in directory.iterdir()] if directory.exists() else []
    return sorted(name for name in names if name.count(".") == 3 or ":" in name)


def ruleset():
    """All of nftables, and so all of iptables, without counters."""
    return run("nft -s list ruleset")


def within(netns, function):
    """The function's result, from a thread in another network namespace; children of the thread are there too."""
    if netns is None:
        return function()

    def enter_and_call():
        CLONE_NEWNET = 0x40000000
        with open(netns) as namespace:
            if LIBC.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise AssertionError(f"enter {netns}: {os.strerror(ctypes.get_errno())}")
        return function()

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(enter_and_call).result()


def fetch(address, port=80, netns=None):
    """(who answered, whom they saw), over HTTP, as soon as the server has started."""
    request = functools.partial(within, netns, functools.partial(ask, address, port))
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return request()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def ask(address, port):
    try:
        with socket.create_connection((address, port), timeout=PATIENCE) as connection:
            connection.sendall(b"GET /cgi-bin/who HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
    except OSError as error:
        error.strerror = f"{error.strerror or error}: {address} port {port}"
        raise
    name, _, seen = answer.split("\r\n\r\n")[-1].strip().splitlines()[-1].partition(" saw ")
    return name, seen.removeprefix("[").removesuffix("]").removeprefix("::ffff:")


class Answer(socketserver.BaseRequestHandler):
    """The asker's address."""

    def handle(self):
        answer = self.client_address[0].encode()
        if isinstance(self.request, socket.socket):
            self.request.sendall(answer)
        else:
            self.request[1].sendto(answer, self.client_address)


class Answering:
    """While it is entered: something in a namespace that answers what it hears with the asker's address."""

    def __init__(self, netns, port, kind=socket.SOCK_STREAM):
        class Server({socket.SOCK_STREAM: socketserver.TCPServer, socket.SOCK_DGRAM: socketserver.UDPServer}[kind]):
            address_family = socket.AF_INET6
            allow_reuse_address = True

        self.server = within(netns, lambda: Server(("::", port), Answer))

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,)).start()

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def seen_by(address, port, netns=None, kind=socket.SOCK_STREAM):
    """The asker's address as an `Answering` at that address sees it."""

    def question():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, kind) as connection:
            connection.settimeout(PATIENCE)
            connection.connect((address, port))
            if kind == socket.SOCK_DGRAM:
                connection.send(b"?")
            return connection.recv(64).decode().removeprefix("::ffff:")

    return within(netns, question)

"""The node that a runtime runs on: its mounts, its plugins, its uplink, what lies outside, and witnesses.

`ip -j` and `nft` are the witnesses, never our own code. Things of somebody else's are on the node from the start, and
every case ends with the proof that they are still there.

    outside  192.0.2.2  ── uplink0 ──  node  192.0.2.1      (2001:db8::2, 2001:db8::1)
"""

import os
import pathlib
import shutil
import socket
import time
import unittest

import isolation
from image import write_image
from machine import PATIENCE, Answering, addresses, fetch, ip, links, run, seen_by, set_read_only, within

# The cgroup that all containers belong in; it is removed in the end.
CGROUP = "/" + os.environ[isolation.CGROUP]
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


def ports_of(bridge):
    return [name for name, link in links().items() if link.get("master") == bridge]


def addresses_in(directory):
    """Those that have an owner on disk: the files named by an address, sorted."""
    names = [file.name for file in directory.iterdir()] if directory.exists() else []
    return sorted(name for name in names if name.count(".") == 3 or ":" in name)


def ruleset():
    """All of nftables, and so all of iptables, without counters."""
    return run("nft -s list ruleset")

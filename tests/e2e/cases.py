"""What all cases share: one cluster, made once, and the proof after each that nothing of somebody else's was touched."""

import socket
import time
import unittest

import machine
from cluster import Cluster
from control_plane import kubernetes
from kube import wait_for
from machine import fetch
from podspan import Podspan


class the:
    """The one cluster that the cases run on, and what the command line asked for."""

    cluster = None
    podspan = None
    options = None


def prepare(options, image):
    the.options = options
    the.cluster = Cluster(kubernetes())
    the.cluster.proxy_mode = options.proxy_mode
    the.cluster.start()
    the.podspan = Podspan(the.cluster, image)
    the.podspan.install()
    the.cluster.wait_until_ready()


class Case(unittest.TestCase):
    """One case on the cluster. It leaves no pod behind, and what is somebody else's survives it."""

    longMessage = True

    def setUp(self):
        self.cluster, self.podspan, self.api = the.cluster, the.podspan, the.cluster.api
        self.nodes = self.cluster.nodes

    def tearDown(self):
        if not self.cluster.api_is_there:
            # The case failed meanwhile.
            self.cluster.start_api_server()
        for kind in ("NetworkPolicy", "Service", "Deployment", "Pod"):
            for each in self.api.list(kind):
                if each["metadata"]["name"] != "kubernetes":
                    self.api.delete(kind, each["metadata"]["name"])
        wait_for(lambda: not self.api.list("Pod"), "all pods are gone")
        for node in self.nodes:
            machine.within(node.netns, lambda: machine.assert_foreign_is_there(self))

    def pods(self, **nodes_by_name):
        """Pods by their names, on those nodes, ready."""
        pods = [self.cluster.create_pod(name, node) for name, node in nodes_by_name.items()]
        return [pod.wait_until_ready() for pod in pods]

    def assert_served(self, by, address, port=80, netns=None, seen_from=None):
        """Asked in `netns` (outside without one), `by` answers at `address`, and saw the asker at `seen_from`."""
        name, seen = fetch(address, port, netns)
        self.assertEqual(name, by, f"who answers at {address} port {port}, asked in {netns or 'outside'}")
        if seen_from is not None:
            self.assertEqual(seen, seen_from, f"asker of {address} port {port} in {netns or 'outside'}")


    def assert_closed(self, address, port, netns=None):
        """Nobody listens there."""
        with self.assertRaises(ConnectionRefusedError, msg=f"{address} port {port} answers"):
            machine.within(netns, lambda: socket.create_connection((address, port), timeout=20).close())

    def assert_only_running_pods_have_addresses(self):
        """On disk and in the kernel: the addresses of pods that are gone are free again."""
        running = {node.name: set() for node in self.nodes}
        for each in self.api.list("Pod"):
            if not each["spec"].get("hostNetwork"):
                running[each["spec"]["nodeName"]] |= {ip["ip"] for ip in each["status"].get("podIPs", [])}
        for node in self.nodes:
            wait_for(lambda: self.podspan.addresses(node) == running[node.name],
                     f"exactly the running pods of {node.name} have addresses",
                     lambda: f"on disk {sorted(self.podspan.addresses(node))}, running {sorted(running[node.name])}")
            veths = [link for link in machine.ports_of("podspan0", node.netns)]
            self.assertEqual(len(veths), len(running[node.name]) // 2, f"ports of podspan0 on {node.name}")

    def subnets(self, node):
        return self.api.read("Node", node.name)["spec"]["podCIDRs"]


class TimedResult(unittest.TextTestResult):
    """Says how long each case took."""

    def startTest(self, test):
        self.began = time.monotonic()
        super().startTest(test)

    def addError(self, test, error):
        super().addError(test, error)
        the.cluster.explain()

    def addFailure(self, test, error):
        super().addFailure(test, error)
        the.cluster.explain()

    def addSuccess(self, test):
        self.stream.write(f"{time.monotonic() - self.began:.1f} s, ")
        super().addSuccess(test)

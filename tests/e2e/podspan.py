"""Podspan on the cluster's nodes: installed, upgraded, its agents found and killed."""

import pathlib
import shutil

import machine
from kube import wait_for

EXECUTABLES = pathlib.Path("/run/e2e/podspan")


class Podspan:
    """The agent run directly on each node, with a nodes file that is written from the API."""

    def __init__(self, cluster):
        self.cluster = cluster

    def install(self):
        for node in self.cluster.nodes:
            self.install_on(node)

    def install_on(self, node):
        for name in ("podspan", "podspan-cni"):
            shutil.copy2(EXECUTABLES / name, node.path("/usr/local/bin"))
        node.run("/usr/local/bin/podspan-cni install /opt/cni/bin")
        node.path("/etc/podspan/agent.toml").write_text(f'node = "{node.name}"\n')
        self.write_nodes_file(node)
        self.start_agent(node)

    def write_nodes_file(self, node):
        lines = []
        for each in self.cluster.nodes:
            if not self.cluster.api.read("Node", each.name):
                continue
            wait_for(lambda: self.cluster.api.read("Node", each.name)["spec"].get("podCIDRs"), f"{each.name} has a subnet")
            cidrs = self.cluster.api.read("Node", each.name)["spec"]["podCIDRs"]
            lines += ["[[nodes]]", f'name = "{each.name}"', f"addresses = {each.addresses}", f"pod_cidrs = {cidrs}", ""]
        draft = node.path("/etc/podspan/nodes.toml.new")
        draft.write_text("\n".join(lines))
        draft.rename(node.path("/etc/podspan/nodes.toml"))

    def nodes_changed(self):
        for node in self.cluster.nodes:
            self.write_nodes_file(node)

    def boot_again(self, node):
        self.start_agent(node)

    def kill_agent(self, node):
        node.daemons["podspan"].kill()
        self.start_agent(node)

    def wait_for_agent(self, node):
        """It runs."""

    def wait_for_subnets(self, node, subnets):
        wait_for(lambda: all(cidr in node.path("/etc/cni/net.d/10-podspan.conflist").read_text() for cidr in subnets),
                 f"the conflist of {node.name} has {subnets}")

    def start_agent(self, node):
        node.start("podspan", "/usr/local/bin/podspan", "agent")

    def addresses(self, node):
        """Those that have an owner on the node's disk."""
        return set(machine.addresses_in(node.path("/run/podspan/ipam/podspan")))

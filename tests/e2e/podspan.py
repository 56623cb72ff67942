"""Podspan on the cluster, as an operator installs it: from its manifest and its image. Its agents found, killed, upgraded."""

import os
import pathlib
import re
import shutil
import signal
import subprocess

import machine
from kube import wait_for

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MANIFEST = ROOT / "deploy/podspan.yaml"
NAMESPACE = "kube-system"
NAME = "podspan"
UNINSTALL = ROOT / "deploy/uninstall.yaml"
PROGRAMS = ("podspan", "podspan-cni")
PLUGIN = "/opt/cni/bin/podspan-cni"
CONFLIST = "/etc/cni/net.d/10-podspan.conflist"
# A file for each address that has an owner.
ALLOCATIONS = "/run/podspan/ipam/podspan"


class Podspan:
    """`image` is an OCI archive that bears the name in the manifest."""

    def __init__(self, cluster, image):
        self.cluster, self.api = cluster, cluster.api
        self.reference = re.search(r'image: "(.*)"', MANIFEST.read_text())[1]
        self.next_reference = f"{self.reference}-next"
        next_image = self.make_next(cluster.home / "next")
        # What the plugin's file holds on each node, by the version that is installed.
        self.plugins = {self.reference: (ROOT / "bin/podspan-cni").read_bytes(),
                        self.next_reference: (next_image.parent / "podspan-cni").read_bytes()}
        for node in cluster.nodes:
            node.load(image)
            node.load(next_image)

    def make_next(self, place):
        """What an upgrade brings: programs that do the same and are others, so that every agent and plugin is replaced."""
        place.mkdir()
        for name in PROGRAMS:
            shutil.copy(ROOT / "bin" / name, place)
            with open(place / name, "ab") as program:
                program.write(b"the next version")
        image = place / "image.tar"
        subprocess.run([ROOT / "tools/image", place, image, self.next_reference], check=True,
                       env=os.environ | {"TMPDIR": str(place)})
        return image

    def install(self):
        self.cluster.kubectl("apply", "-f", MANIFEST)
        self.wait_until_rolled_out()

    def change_image(self, reference):
        self.cluster.kubectl("set", "image", f"daemonset/{NAME}", f"*={reference}", "--namespace", NAMESPACE)
        self.wait_until_rolled_out()
        images = {container["image"] for pod in self.pods() for container in pod["spec"]["containers"]}
        if images != {reference}:
            raise AssertionError(f"agents of {images} run, not of {reference}")
        for node in self.cluster.nodes:
            if node.path(PLUGIN).read_bytes() != self.plugins[reference]:
                raise AssertionError(f"the plugin of {node.name} is not that of {reference}")

    def uninstall(self):
        """As Helm does it: what the agents had is gone before the nodes are clean."""
        self.cluster.kubectl("apply", "-f", UNINSTALL)
        self.cluster.kubectl("delete", "serviceaccount", NAME, "--namespace", NAMESPACE)
        self.wait_until_rolled_out()

    def wait_until_rolled_out(self):
        def is_complete():
            document = self.api.read("DaemonSet", NAME, NAMESPACE)
            status = document["status"]
            counts = [status.get(key, 0) for key in ("updatedNumberScheduled", "numberReady", "desiredNumberScheduled")]
            return (status.get("observedGeneration") == document["metadata"]["generation"]
                    and counts == [len(self.cluster.nodes)] * 3 == [len(self.pods())] * 3)

        wait_for(is_complete, "an agent is ready on every node", self.explain)

    def pods(self):
        return self.api.list("Pod", f"app.kubernetes.io/name={NAME}", NAMESPACE)

    def explain(self):
        return "\n".join(f"{pod['spec'].get('nodeName')}: {pod['status']}" for pod in self.pods())

    def agent(self, node):
        """The agent's process on the node, as seen from here; none while it does not run."""
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_text().split("\0")
                is_there = os.readlink(process / "ns/net") == os.readlink(node.netns)
            except OSError:
                # It ended meanwhile.
                continue
            if is_there and words[0].endswith("/podspan") and words[1:2] == ["agent"]:
                return int(process.name)
        return None

    def kill_agent(self, node):
        os.kill(wait_for(lambda: self.agent(node), f"an agent runs on {node.name}", self.explain), signal.SIGKILL)

    def wait_for_agent(self, node):
        wait_for(lambda: self.agent(node), f"an agent runs on {node.name} again", self.explain)

    def wait_for_subnets(self, node, subnets):
        conflist = node.path(CONFLIST)
        wait_for(lambda: conflist.exists() and all(subnet in conflist.read_text() for subnet in subnets),
                 f"the conflist of {node.name} has {subnets}", self.explain)

    def addresses(self, node):
        """Those that have an owner on the node's disk."""
        return set(machine.addresses_in(node.path(ALLOCATIONS)))

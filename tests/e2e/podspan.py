"""Podspan on the cluster, as an operator installs it: from its manifest and its image. Its agents found, killed, upgraded."""

import os
import pathlib
import re
import signal

import machine
from kube import wait_for

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MANIFEST = ROOT / "deploy/podspan.yaml"
NAMESPACE = "kube-system"
NAME = "podspan"
CONFLIST = "/etc/cni/net.d/10-podspan.conflist"
# A file for each address that has an owner.
ALLOCATIONS = "/run/podspan/ipam/podspan"


class Podspan:
    """`image` is an OCI archive that bears the name in the manifest."""

    def __init__(self, cluster, image):
        self.cluster, self.api = cluster, cluster.api
        self.reference = re.search(r'image: "(.*)"', MANIFEST.read_text())[1]
        self.next_reference = f"{self.reference}-next"
        for node in cluster.nodes:
            node.load(image)
            # What an upgrade brings has the same content here, and yet every agent and plugin is replaced.
            node.run(f"ctr --namespace k8s.io images tag {self.reference} {self.next_reference}")

    def install(self):
        self.cluster.kubectl("apply", "-f", MANIFEST)
        self.wait_until_rolled_out()

    def change_image(self, reference):
        self.cluster.kubectl("set", "image", f"daemonset/{NAME}", f"*={reference}", "--namespace", NAMESPACE)
        self.wait_until_rolled_out()
        images = {container["image"] for pod in self.pods() for container in pod["spec"]["containers"]}
        if images != {reference}:
            raise AssertionError(f"agents of {images} run, not of {reference}")

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

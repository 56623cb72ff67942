"""How long a pod sandbox takes for whoever asks containerd for it, with each network and with none.

Two containerds run, one with Podspan's plugins and one with the reference plugins; all else is the same. Every round asks
each contestant in turn for one sandbox, and begins with another one. The host's network needs no plugin: what is left is
containerd's and runc's own time. Nothing is asserted: it prints tables, and a person judges.
"""

import concurrent.futures
import os
import statistics
import time

import node
from containerd import Containerd, sandbox_config

ROUNDS = 20
BURST_ROUNDS = 5
# Rounds before those, which warm caches and are not counted.
WARM_UP = 1
BURST, AT_ONCE = 16, 8
# After each removal, in seconds: the kernel tears namespaces down in the background, which holds the next one up.
PAUSE = 0.15
PORT_MAPPINGS = {"portMappings": True}


def podspan(bridge, subnet, **more):
    return {"type": "podspan-cni", "bridge": bridge, "ipam": {"ranges": [[{"subnet": subnet}]]}} | more


def reference(bridge, subnet, **more):
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]]}
    return {"type": "bridge", "bridge": bridge, "isDefaultGateway": True, "hairpinMode": True, "ipam": ipam} | more


class Contestant:
    def __init__(self, name, containerd, plugins, host_port=False, host_network=False):
        self.name, self.containerd = name, containerd
        self.host_port, self.host_network = host_port, host_network
        self.conflist = {"cniVersion": "1.0.0", "name": plugins[0]["bridge"], "plugins": plugins}
        self.run, self.stop, self.burst = [], [], []

    def prepare(self):
        self.containerd.set_conflist(self.conflist)

    def config(self, number):
        ports = [{"container_port": 80, "host_port": 8000 + number}] if self.host_port else []
        network = "NODE" if self.host_network else "POD"
        linux = {"cgroup_parent": node.CGROUP, "security_context": {"namespace_options": {"network": network}}}
        # On the host's network a sandbox has the host's name too.
        return sandbox_config(f"pod{number}", port_mappings=ports, linux=linux, hostname="")

    def start(self, number):
        return self.containerd.client.RunPodSandbox(config=self.config(number)).pod_sandbox_id

    def end(self, sandbox):
        self.containerd.client.StopPodSandbox(pod_sandbox_id=sandbox)

    def remove(self, sandbox):
        self.containerd.client.RemovePodSandbox(pod_sandbox_id=sandbox)

    def one(self):
        """The milliseconds of one sandbox's start and stop."""
        started = time.perf_counter()
        sandbox = self.start(0)
        runs = time.perf_counter()
        self.run.append(1000 * (runs - started))
        runs = time.perf_counter()
        self.end(sandbox)
        self.stop.append(1000 * (time.perf_counter() - runs))
        self.remove(sandbox)

    def many(self):
        """The milliseconds until all of a burst run."""
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as workers:
            started = time.perf_counter()
            sandboxes = list(workers.map(self.start, range(BURST)))
            self.burst.append(1000 * (time.perf_counter() - started))
            list(workers.map(self.end, sandboxes))
            list(workers.map(self.remove, sandboxes))


def main():
    ours, theirs = Containerd("ours", node.PLUGINS), Containerd("theirs", node.REFERENCE_PLUGINS)
    contestants = [
        Contestant("the host's network", ours, [podspan("none", "10.0.0.0/24")], host_network=True),
        Contestant("podspan-cni", ours, [podspan("ours1", "10.1.1.0/24")]),
        Contestant("reference", theirs, [reference("theirs1", "10.2.1.0/24")]),
        Contestant("podspan-cni, masquerading", ours, [podspan("ours2", "10.1.2.0/24", ipMasq=True)]),
        Contestant("reference, masquerading", theirs, [reference("theirs2", "10.2.2.0/24", ipMasq=True)]),
        Contestant("podspan-cni, masquerading and a host port", ours,
                   [podspan("ours3", "10.1.3.0/24", ipMasq=True, capabilities=PORT_MAPPINGS)], host_port=True),
        Contestant("reference, masquerading and a host port", theirs,
                   [reference("theirs3", "10.2.3.0/24", ipMasq=True), {"type": "portmap", "capabilities": PORT_MAPPINGS}],
                   host_port=True),
    ]
    interleave(contestants, Contestant.one, ROUNDS)
    interleave(contestants, Contestant.many, BURST_ROUNDS)
    ours.kill()
    theirs.kill()
    report(contestants)


def interleave(contestants, measure, rounds):
    for number in range(WARM_UP + rounds):
        turn = number % len(contestants)
        for contestant in contestants[turn:] + contestants[:turn]:
            contestant.prepare()
            measure(contestant)
            time.sleep(PAUSE)


def report(contestants):
    print(f"{ROUNDS} rounds, {BURST_ROUNDS} for a burst; milliseconds, median and (first quartile).")
    print("Load averages:", *os.getloadavg())
    print(f"\n| | RunPodSandbox | StopPodSandbox | {BURST} sandboxes, {AT_ONCE} at a time |")
    print("|---|---|---|---|")
    for contestant in contestants:
        print("|", " | ".join([contestant.name, *map(cell, (contestant.run, contestant.stop, contestant.burst))]), "|")


def cell(samples):
    counted = samples[WARM_UP:]
    return f"{statistics.median(counted):.0f} ({statistics.quantiles(counted, n=4)[0]:.0f})"

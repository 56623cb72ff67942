"""Pod sandboxes of containerd: on a network of podspan-cni, and on one under the reference plugins' names."""

import concurrent.futures
import json
import os
import pathlib
import signal

import node
from containerd import Containerd, Pod
from node import NODE_ADDRESSES, OUTSIDE

PORTS = [
    {"container_port": 80, "host_port": 8080},
    {"container_port": 80, "host_port": 8081, "host_ip": NODE_ADDRESSES[0]},
    {"container_port": 53, "host_port": 5353, "protocol": "UDP"},
]
PORT_MAPPINGS = {"portMappings": True}
BANDWIDTH = {"bandwidth": True}

# What the agent writes.
PODSPAN = {
    "cniVersion": "1.0.0",
    "cniVersions": ["1.0.0", "1.1.0"],
    "name": "pods",
    "plugins": [
        {
            "type": "podspan-cni",
            "bridge": "podspan0",
            "isDefaultGateway": True,
            "mtu": 1500,
            "capabilities": {"bandwidth": True, "ips": True, "mac": True, "portMappings": True},
            "ipam": {"ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]]},
        },
    ],
}
# What a node without Podspan has.
REFERENCE = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isDefaultGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.244.2.0/24"}], [{"subnet": "fd00:10:244:2::/64"}]],
            },
        },
        {"type": "portmap", "capabilities": PORT_MAPPINGS},
        {"type": "firewall"},
        {"type": "bandwidth", "capabilities": BANDWIDTH},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
    ],
}


def by_another(plugin):
    """What the agent writes, but another plugin of the chain has the capabilities."""
    [first] = PODSPAN["plugins"]
    return PODSPAN | {"plugins": [{key: first[key] for key in first if key != "capabilities"}, plugin]}


def setUpModule():
    global containerd
    containerd = Containerd("containerd", node.PLUGINS)


def tearDownModule():
    containerd.kill()


class OnOneNetwork:
    """The cases; which network it is, the classes below say."""

    def setUp(self):
        self.log_before = containerd.log.stat().st_size
        containerd.set_conflist(self.conflist)

    def tearDown(self):
        containerd.remove_all_sandboxes()
        self.assert_nothing_left()
        super().tearDown()

    def run(self, result=None):
        problems = len(result.failures) + len(result.errors)
        super().run(result)
        if len(result.failures) + len(result.errors) > problems:
            lines = containerd.log.read_bytes()[self.log_before:].decode().splitlines()
            print(f"\ncontainerd's log during {self.id()}:", *lines[-40:], sep="\n  ")

    def pod(self, name, **config):
        return Pod(containerd.client, name, **config)

    def restart_containerd(self, while_down=lambda: None):
        """What a crash of containerd and its unit's Restart= do."""
        containerd.kill()
        while_down()
        containerd.start()
        containerd.wait_for_conflist(self.conflist)

    def taken(self):
        return node.addresses_in(self.directory)

    def assert_nothing_left(self, *traces):
        """No address, no veth, no file of CNI's, and none of these words in nftables."""
        attachments = self.directory / "attachments"
        self.assertEqual(self.taken(), [])
        self.assertEqual(list(attachments.iterdir()) if attachments.exists() else [], [])
        self.assertEqual(node.ports_of(self.bridge), [])
        self.assertEqual([name for name in node.links() if name.startswith(("veth", "bwp", "ifb"))], [])
        self.assertEqual(list(pathlib.Path("/var/lib/cni/results").glob("*")), [])
        rules = node.ruleset()
        for trace in traces:
            self.assertNotIn(trace, rules)

    def assert_pods_reach_each_other(self, *pods):
        for asker in pods:
            for server in pods:
                for own, address in zip(asker.addresses(), server.addresses()):
                    self.assert_served(server.name, address, netns=asker.netns, seen_from=own)

    def assert_node_reaches(self, pod):
        # The reference bridge plugin leaves duplicate address detection on for the bridge.
        self.assert_soon(lambda: node.addresses(self.bridge) == self.gateways, "the bridge has its addresses")
        for gateway, address in zip(self.gateways, pod.addresses()):
            self.assert_served(pod.name, address, seen_from=gateway)

    def test_a_sandbox_has_an_address_of_each_family(self):
        pod = self.pod("web")
        self.assertEqual(len(pod.addresses()), 2)
        self.assertEqual(node.addresses("eth0", pod.netns), pod.addresses())
        self.assertEqual(self.taken(), sorted(pod.addresses()))
        for address in pod.addresses():
            self.assertEqual((self.directory / address).read_text().split(), [pod.id, "eth0"])
        self.assert_node_reaches(pod)
        # containerd asks the loopback plugin for this.
        loopback = node.ip("addr show lo", pod.netns)[0]
        self.assertIn("UP", loopback["flags"])
        self.assertIn("127.0.0.1", [info["local"] for info in loopback["addr_info"]])

    def test_sandboxes_talk(self):
        self.assert_pods_reach_each_other(self.pod("web"), self.pod("db"))

    def test_removal_frees_the_address_and_the_veth(self):
        web, db = self.pod("web"), self.pod("db")
        traces = [web.id, db.id, *web.addresses(), *db.addresses()]
        web.stop()
        self.assertEqual(self.taken(), sorted(db.addresses()))
        self.assertEqual(len(node.ports_of(self.bridge)), 1)
        web.stop()
        containerd.client.RemovePodSandbox(pod_sandbox_id=web.id)
        containerd.client.RemovePodSandbox(pod_sandbox_id=web.id)
        self.assert_node_reaches(db)
        db.remove()
        self.assert_nothing_left(*traces)

    def test_many_at_once_have_each_an_address(self):
        with concurrent.futures.ThreadPoolExecutor(8) as workers:
            pods = list(workers.map(lambda number: self.pod(f"web{number}"), range(16)))
            expected = sorted(address for pod in pods for address in pod.addresses())
            self.assertEqual(len(set(expected)), 32)
            self.assertEqual(self.taken(), expected)
            for pod in pods:
                self.assert_node_reaches(pod)
            list(workers.map(Pod.remove, pods))
        self.assert_nothing_left(*expected)

    def test_sandboxes_survive_a_restart_of_containerd(self):
        web, db = self.pod("web"), self.pod("db")
        before = web.addresses(), db.addresses()
        self.restart_containerd(while_down=lambda: self.assert_served("web", before[0][0], netns=db.netns))
        self.assertEqual((web.addresses(), db.addresses()), before)
        self.assert_pods_reach_each_other(web, db)
        late = self.pod("late")
        self.assertTrue(set(late.addresses()).isdisjoint(before[0] + before[1]))
        self.assert_pods_reach_each_other(web, late)
        for pod in (web, db, late):
            pod.remove()
        self.assert_nothing_left()

    def test_a_sandbox_that_died_with_containerd_is_freed_afterwards(self):
        web = self.pod("web")
        self.restart_containerd(while_down=lambda: os.kill(web.pid, signal.SIGKILL))
        web.remove()
        self.assert_nothing_left()

    def test_a_sandbox_is_removed_after_its_namespace(self):
        web = self.pod("web")
        os.kill(web.pid, signal.SIGKILL)
        node.run(["umount", web.netns])
        pathlib.Path(web.netns).unlink()
        # The kernel takes the pod's end away, and with it the host's, when it gets round to it.
        self.assert_soon(lambda: not node.ports_of(self.bridge), "the namespace's veth is gone")
        web.remove()
        self.assert_nothing_left()

    def test_a_sandbox_is_removed_after_its_veth_and_the_bridge(self):
        web = self.pod("web")
        for link in (*node.ports_of(self.bridge), self.bridge):
            node.run(f"ip link del {link}")
        web.remove()
        self.assert_nothing_left()
        self.assert_node_reaches(self.pod("again"))

    def test_an_address_is_not_leaked_by_a_sandbox_that_could_not_start(self):
        with self.assertRaisesRegex(AssertionError, "RunPodSandbox: .*nonsense"):
            self.pod("web", linux={"cgroup_parent": node.CGROUP, "sysctls": {"kernel.nonsense": "1"}})
        self.assert_nothing_left()

    def test_host_ports_lead_to_the_sandbox(self):
        for conflist in self.with_port_mappings():
            with self.subTest(conflist=json.dumps(conflist)):
                containerd.set_conflist(conflist)
                web, db = self.pod("web", port_mappings=PORTS), self.pod("db")
                self.assert_ports_lead_to(web, neighbour=db)
                containerd.kill()
                containerd.start()
                containerd.wait_for_conflist(conflist)
                self.assert_served("web", NODE_ADDRESSES[0], 8080, netns=OUTSIDE)
                traces = [web.id, db.id, *web.addresses(), *db.addresses(), "8080", "8081", "5353"]
                web.remove()
                self.assert_ports_closed()
                db.remove()
                self.assert_nothing_left(*traces)

    def test_bandwidth_of_the_sandbox_is_limited(self):
        annotations = {"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "16M"}
        for conflist in self.with_bandwidth():
            with self.subTest(conflist=json.dumps(conflist)):
                containerd.set_conflist(conflist)
                web = self.pod("web", annotations=annotations)
                buckets = [qdisc for qdisc in json.loads(node.run("tc -j qdisc show")) if qdisc["kind"] == "tbf"]
                self.assertEqual(sorted(each["options"]["rate"] for each in buckets), [1_000_000, 2_000_000])
                self.assert_node_reaches(web)
                web.remove()
                self.assert_nothing_left()


class NetworkOfPodspan(OnOneNetwork, node.Case):
    """What the agent writes."""

    conflist = PODSPAN
    bridge = "podspan0"
    gateways = ["10.244.1.1", "fd00:10:244:1::1"]
    directory = pathlib.Path("/run/podspan/ipam/pods")

    def with_port_mappings(self):
        yield PODSPAN
        yield by_another({"type": "portmap", "capabilities": PORT_MAPPINGS})

    def with_bandwidth(self):
        yield PODSPAN
        yield by_another({"type": "bandwidth", "capabilities": BANDWIDTH})

    def test_the_veth_says_whose_it_is(self):
        pod = self.pod("web")
        aliases = [node.links()[veth].get("ifalias") for veth in node.ports_of("podspan0")]
        self.assertEqual(aliases, [f"podspan:pods/{pod.id}/eth0"])

    def test_the_node_is_ready_while_there_is_a_conflist(self):
        self.assertTrue(containerd.is_network_ready())
        (containerd.conf_dir / "10-podspan.conflist").unlink()
        self.assert_soon(lambda: not containerd.is_network_ready(), "NetworkReady is false without a conflist")
        containerd.set_conflist(PODSPAN)
        self.assert_soon(containerd.is_network_ready, "NetworkReady is true again")


class NetworkOfReferenceNames(OnOneNetwork, node.Case):
    """What a node without Podspan has, unchanged."""

    conflist = REFERENCE
    bridge = "cni0"
    gateways = ["10.244.2.1", "fd00:10:244:2::1"]
    directory = pathlib.Path("/var/lib/cni/networks/pods")

    def with_port_mappings(self):
        yield REFERENCE

    def with_bandwidth(self):
        yield REFERENCE

    def test_sysctls_are_set(self):
        somaxconn = pathlib.Path("/proc/sys/net/core/somaxconn")
        self.assertEqual(node.within(self.pod("web").netns, somaxconn.read_text), "500\n")

"""Two nodes go over from another network to ours, one after the other, while their pods talk.

The other network is made by the reference plugins themselves, as flannel and kindnet have them called, and by `ip`, as flannel's
and kindnet's daemons do what is between nodes. Pods that were there before keep addresses, links and connections; those that
come afterwards talk with them.

    a1, a2 ── node a  192.168.7.1 ─┐
                                   ├─ segment
    b1, b2 ── node b  192.168.7.2 ─┘
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

import machine
import node
from machine import ip, run, within

NODES = {"a": 1, "b": 2}
# The greatest loss of a ping that runs while both nodes go over.
BOUND = 2


def setUpModule():
    run("ip link add segment0 up type bridge")


def tearDownModule():
    run("ip link del segment0")


class Pod:
    def __init__(self, node, name):
        self.node, self.name, self.netns = node, name, f"/run/netns/{name}"
        run(f"ip netns add {name}")
        run(f"ip -n {name} link set lo up")

    def cni(self, command, conf, previous=None):
        """The plugin's answer; `conf` is one plugin's configuration, with the network's name."""
        ours = node.PLUGINS / conf["type"]
        plugin = ours if conf["type"] == "podspan-cni" else node.REFERENCE_PLUGINS / conf["type"]
        environment = {"CNI_COMMAND": command, "CNI_CONTAINERID": self.name, "CNI_NETNS": self.netns, "CNI_IFNAME": "eth0",
                       "CNI_PATH": str(node.REFERENCE_PLUGINS)}
        given = json.dumps(conf | ({"prevResult": previous} if previous else {}))
        process = within(self.node.netns, lambda: subprocess.run(plugin, input=given, env=environment, capture_output=True, text=True))
        assert process.returncode == 0, f"{command} of {self.name} by {conf['type']}: {process.stdout}{process.stderr}"
        return json.loads(process.stdout or "null")

    def attach(self, conf):
        self.result = self.cni("ADD", conf)
        self.address = self.result["ips"][0]["address"].split("/")[0]
        return self

    def reaches(self, other):
        run(f"ip netns exec {self.name} ping -c 1 -W 5 {other.address}")


class Node:
    """A namespace on the segment, with the directories that a node has for itself."""

    def __init__(self, name, number):
        self.name, self.number, self.netns = name, number, f"/run/netns/{name}"
        self.home = node.HOME / f"migration-{name}"
        self.conflists, self.addresses = self.home / "net.d", self.home / "networks"
        self.conflists.mkdir(parents=True)
        self.config = self.home / "agent.toml"
        self.pods = []
        run(f"ip netns add {name}")
        run(f"ip -n {name} link set lo up")
        run(f"ip link add {name}-port up master segment0 type veth peer name eth0 netns {name}")
        run(f"ip -n {name} link set eth0 up")
        run(f"ip -n {name} addr add 192.168.7.{number}/24 dev eth0")
        self.sysctl("net/ipv4/ip_forward", 1)
        for which in ("all", "default", "eth0"):
            self.sysctl(f"net/ipv4/conf/{which}/rp_filter", 0)

    def sysctl(self, key, value):
        within(self.netns, lambda: pathlib.Path("/proc/sys", key).write_text(str(value)))

    def ip(self, command):
        return ip(command, self.netns)

    def run(self, command):
        return run(f"ip netns exec {self.name} {command}")

    def pod(self, name):
        self.pods.append(Pod(self, name))
        return self.pods[-1]

    def configure(self, more=""):
        entries = "".join(
            f'[[nodes]]\nname = "{name}"\naddresses = ["192.168.7.{number}"]\npod_cidrs = ["10.244.{number}.0/24"]\n'
            for name, number in NODES.items()
        )
        (self.home / "nodes.toml").write_text(entries)
        self.config.write_text(f'node = "{self.name}"\nnodes_file = "{self.home}/nodes.toml"\n'
                               f'conflist = "{self.conflists}/10-podspan.conflist"\n{more}')

    def podspan(self, *words):
        """(exit status, what was printed)."""
        executable = pathlib.Path(os.environ["PODSPAN_BIN"]) / "podspan"
        command = [executable, *words, "--config", self.config]
        process = within(self.netns, lambda: subprocess.run(command, capture_output=True, text=True))
        return process.returncode, process.stdout + process.stderr

    def conf(self):
        """What a runtime gives the first plugin of the first conflist."""
        loaded = sorted(path for path in self.conflists.iterdir() if path.suffix in (".conf", ".conflist", ".json"))
        conflist = json.loads(loaded[0].read_text())
        return {"cniVersion": conflist["cniVersion"], "name": conflist["name"]} | conflist["plugins"][0]

    def everything(self):
        """All that a look must not change."""
        files = {path: path.read_bytes() for path in self.home.rglob("*") if path.is_file() and path.name != "lock"}
        return files, self.ip("addr show"), self.ip("route show")

    def remove(self):
        for pod in self.pods:
            run(f"ip netns del {pod.name}")
        run(f"ip netns del {self.name}")
        run(f"ip link del {self.name}-port")
        run(["rm", "-r", self.home])


class Agent:
    def __init__(self, on):
        executable = pathlib.Path(os.environ["PODSPAN_BIN"]) / "podspan"
        self.log = open(on.home / "log", "w+")
        command = [executable, "agent", "--config", on.config]
        self.process = within(on.netns, lambda: subprocess.Popen(command, stderr=self.log))

    def said(self):
        return os.pread(self.log.fileno(), 1 << 20, 0).decode()

    def stop(self):
        self.process.terminate()
        self.process.wait(machine.PATIENCE)
        self.log.close()


class Ping:
    """A packet every 10 ms, as long as it is entered."""

    def __init__(self, source, target):
        command = ["ip", "netns", "exec", source.name, "ping", "-q", "-i", "0.01", "-W", "5", target.address]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def stop(self):
        """(sent, lost)."""
        self.process.send_signal(signal.SIGINT)
        said = self.process.communicate(timeout=machine.PATIENCE)[0]
        sent, received = map(int, re.search(r"(\d+) packets transmitted, (\d+) received", said).groups())
        # One may be on its way when it is stopped.
        return sent, max(0, sent - received - 1)


class Connection:
    """TCP between two pods."""

    def __init__(self, source, target):
        self.listener = within(target.netns, lambda: socket.create_server((target.address, 7777)))
        connect = lambda: socket.create_connection((target.address, 7777), timeout=machine.PATIENCE)
        self.here = within(source.netns, connect)
        self.there, _ = self.listener.accept()
        self.there.settimeout(machine.PATIENCE)

    def carries(self):
        self.here.sendall(b"still there")
        return self.there.recv(64) == b"still there"

    def close(self):
        for each in (self.here, self.there, self.listener):
            each.close()


class Migration:
    """Every case, for one other network; a class below says how that is made."""

    def setUp(self):
        self.nodes, self.agents = {}, []
        self.addCleanup(self.remove_all)
        for name, number in NODES.items():
            self.nodes[name] = Node(name, number)
        for each in self.nodes.values():
            conf, conflist = self.network(each)
            (each.conflists / self.CONFLIST).write_text(json.dumps(conflist))
            for number in (1, 2):
                each.pod(f"{each.name}{number}").attach(conf)
            each.configure()
        self.between_nodes()
        self.a, self.b = self.nodes.values()

    def remove_all(self):
        for agent in self.agents:
            agent.stop()
        for each in self.nodes.values():
            each.remove()

    def between_nodes(self):
        for here, there in (self.nodes.values(), reversed(self.nodes.values())):
            here.run(f"ip route add 10.244.{there.number}.0/24 via 192.168.7.{there.number}")

    def finish(self):
        pass

    def ipam(self, each, *routes):
        return {"type": "host-local", "dataDir": str(each.addresses), "ranges": [[{"subnet": f"10.244.{each.number}.0/24"}]],
                "routes": [{"dst": route} for route in routes]}

    def start_agents(self):
        for each in self.nodes.values():
            self.agents.append(Agent(each))

    def go_over(self, each):
        status, said = each.podspan("migrate", "--apply")
        self.assertEqual(status, 0, said)
        return said

    def test_both_nodes_go_over_while_pods_talk(self):
        (a1, a2), (b1, b2) = self.a.pods, self.b.pods
        for here, there in ((a1, b1), (b2, a2), (a1, a2)):
            here.reaches(there)
        for each in self.nodes.values():
            before = each.everything()
            status, said = each.podspan("migrate")
            self.assertEqual(status, 1, said)
            self.assertIn("ip route replace 10.244.", said)
            self.assertNotIn("IN THE WAY", said)
            self.assertEqual(each.everything(), before, "it only says what it would do")

        connection = Connection(a1, b1)
        pings = [Ping(a1, b1), Ping(b2, a2)]
        for each in self.nodes.values():
            self.go_over(each)
            time.sleep(0.5)
        self.finish()
        self.start_agents()
        for each in self.nodes.values():
            self.assert_soon(lambda: each.podspan("plan")[0] == 0, f"{each.name} is right: {each.podspan('plan')[1]}")
        time.sleep(0.5)
        for ping in pings:
            sent, lost = ping.stop()
            print(f"{type(self).__name__}: {lost} of {sent} packets lost", end="; ")
            self.assertGreater(sent, 20)
            self.assertLessEqual(lost, BOUND)
        self.assertTrue(connection.carries())
        connection.close()
        for pod in (a1, a2, b1, b2):
            self.assertEqual(machine.addresses("eth0", pod.netns), [pod.address])
        self.assertEqual({route["protocol"] for each in self.nodes.values() for route in each.ip("route show 10.244.0.0/16")
                          if "gateway" in route}, set())
        for each in self.nodes.values():
            self.assertEqual(each.podspan("migrate", "--apply"), (0, "# nothing to migrate\n# done\n"))
            self.assertTrue((each.conflists / f"{self.CONFLIST}.podspan-migrated").exists())

    def test_new_pods_get_free_addresses_and_talk_with_old_ones_which_can_go(self):
        for each in self.nodes.values():
            self.go_over(each)
        (a1, a2), (b1, b2) = self.a.pods, self.b.pods
        new, far = (each.pod(f"{each.name}-new").attach(each.conf()) for each in self.nodes.values())
        taken = [pod.address for pod in (a1, a2, b1, b2, new, far)]
        self.assertEqual(len(set(taken)), len(taken), taken)
        for here in (new, a1):
            for there in (a2, b1, far, new):
                if here is not there:
                    here.reaches(there)
        b2.reaches(new)

        ports = len(self.a.ip("link show type veth"))
        # The runtime kept the result of the plugin that attached it.
        a1.cni("DEL", self.a.conf(), a1.result)
        self.assertEqual(len(self.a.ip("link show type veth")), ports - 1)
        self.assertNotIn("eth0", machine.links(a1.netns))
        network = self.a.addresses / self.a.conf()["name"]
        self.assertEqual(node.addresses_in(network), sorted([a2.address, new.address]))
        a1.cni("DEL", self.a.conf())
        for there in (a2, b1):
            new.reaches(there)
        # An old pod whose namespace is gone: its veth pair went with it, and its address is freed.
        run(f"ip netns del {a2.name}")
        self.a.pods.remove(a2)
        a2.cni("DEL", self.a.conf(), a2.result)
        self.assertEqual(node.addresses_in(network), [new.address])
        new.cni("DEL", self.a.conf())
        self.assertEqual(node.addresses_in(network), [])

    def test_what_could_not_work_is_in_the_way(self):
        self.a.configure()
        nodes = self.a.home / "nodes.toml"
        nodes.write_text(nodes.read_text().replace("10.244.1.0/24", "10.245.1.0/24"))
        before = self.a.everything()
        status, said = self.a.podspan("migrate", "--apply")
        self.assertEqual(status, 1)
        self.assertIn("pods have addresses outside of this node's pod CIDRs (10.245.1.0/24): 10.244.1.2, 10.244.1.3", said)
        status, said = self.a.podspan("migrate", "--apply", "--from", self.OTHER)
        self.assertEqual(status, 2)
        self.assertIn(f"is that of {type(self).__name__}, not of", said)
        status, said = self.a.podspan("migrate", "--finish")
        self.assertEqual(status, 2)
        self.assertIn("has not gone over", said)
        self.assertEqual(self.a.everything(), before)


class Bridge(Migration, node.Case):
    CONFLIST, OTHER = "20-pods.conflist", "flannel"

    def network(self, each):
        conf = {"cniVersion": "0.4.0", "name": "pods", "type": "bridge", "bridge": "br-pods", "isDefaultGateway": True,
                "hairpinMode": True, "ipam": self.ipam(each)}
        plugin = {key: value for key, value in conf.items() if key not in ("cniVersion", "name")}
        return conf, {"cniVersion": "0.4.0", "name": "pods", "plugins": [plugin]}


class Kindnet(Migration, node.Case):
    CONFLIST, OTHER = "10-kindnet.conflist", "bridge"

    def network(self, each):
        conf = {"cniVersion": "0.3.1", "name": "kindnet", "type": "ptp", "ipMasq": False, "mtu": 1500,
                "ipam": self.ipam(each, "0.0.0.0/0")}
        plugin = {key: value for key, value in conf.items() if key not in ("cniVersion", "name")}
        return conf, {"cniVersion": "0.3.1", "name": "kindnet", "plugins": [plugin, {"type": "portmap"}]}


class Flannel(Migration, node.Case):
    CONFLIST, OTHER = "10-flannel.conflist", "kindnet"

    def network(self, each):
        """What the flannel plugin makes of its own few words: the bridge plugin's configuration."""
        delegate = {"hairpinMode": True, "isDefaultGateway": True}
        ipam = self.ipam(each, "10.244.0.0/16")
        conf = {"cniVersion": "0.3.1", "name": "cbr0", "type": "bridge", "ipMasq": False, "mtu": 1450, "ipam": ipam} | delegate
        own = {"type": "flannel", "delegate": delegate, "ipam": {"dataDir": str(each.addresses)}}
        return conf, {"cniVersion": "0.3.1", "name": "cbr0", "plugins": [own, {"type": "portmap"}]}

    def between_nodes(self):
        mac = lambda each: f"0e:00:00:00:07:0{each.number}"
        for each in self.nodes.values():
            each.run(f"ip link add flannel.1 address {mac(each)} type vxlan id 1 dev eth0 local 192.168.7.{each.number} "
                     "dstport 8472 nolearning")
            each.run("ip link set flannel.1 up mtu 1450")
            each.run(f"ip addr add 10.244.{each.number}.0/32 dev flannel.1")
            each.sysctl("net/ipv4/conf/flannel.1/rp_filter", 0)
        for here, there in (self.nodes.values(), reversed(self.nodes.values())):
            remote = f"10.244.{there.number}.0"
            here.run(f"ip neigh add {remote} lladdr {mac(there)} dev flannel.1 nud permanent")
            here.run(f"bridge fdb append {mac(there)} dev flannel.1 dst 192.168.7.{there.number}")
            here.run(f"ip route add {remote}/24 via {remote} dev flannel.1 onlink")

    def finish(self):
        for each in self.nodes.values():
            # As its daemon does.
            for rule in ("-N FLANNEL-POSTRTG", "-A POSTROUTING -j FLANNEL-POSTRTG", "-A POSTROUTING -d 203.0.113.9 -j ACCEPT",
                         "-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE"):
                each.run(f"iptables -t nat {rule}")
            status, said = each.podspan("migrate", "--finish")
            steps = ["ip link del flannel.1",
                     "nft delete chain ip nat FLANNEL-POSTRTG # and the jump to it from POSTROUTING"]
            self.assertEqual((status, said.splitlines()[:2]), (1, steps))
            status, said = each.podspan("migrate", "--finish", "--apply")
            self.assertEqual(status, 0, said)
            self.assertEqual(each.ip("link show type vxlan"), [])
            left = each.run("iptables -t nat -S")
            self.assertNotIn("FLANNEL", left)
            self.assertIn("-A POSTROUTING -d 203.0.113.9/32 -j ACCEPT", left)

    def test_an_agent_that_is_there_before_changes_nothing_of_the_other_network_s(self):
        """As a DaemonSet brings it to all nodes, its names in the configuration already."""
        for each in self.nodes.values():
            each.configure(f'network = "cbr0"\nbridge = "cni0"\ndata_dir = "{each.addresses}"\n')
        self.start_agents()
        for agent in self.agents:
            self.assert_soon(lambda: "somebody else's route is there" in agent.said(), agent.said())
        (a1, _), (b1, _) = self.a.pods, self.b.pods
        a1.reaches(b1)
        self.assertEqual(self.a.ip("route show 10.244.2.0/24")[0]["dev"], "flannel.1")
        self.assertEqual(self.a.ip("link show cni0")[0]["mtu"], 1450)
        ping = Ping(a1, b1)
        for each in self.nodes.values():
            self.assertNotIn("set network", self.go_over(each))
            time.sleep(0.3)
        self.finish()
        sent, lost = ping.stop()
        self.assertLessEqual(lost, BOUND, f"of {sent}")
        for each, agent in zip(self.nodes.values(), self.agents):
            self.assert_soon(lambda: each.podspan("plan")[0] == 0, agent.said())

    def test_a_tunnel_that_is_in_use_is_not_removed(self):
        self.go_over(self.a)
        self.a.run("ip route add 10.244.9.0/24 via 10.244.9.0 dev flannel.1 onlink")
        status, said = self.a.podspan("migrate", "--finish", "--apply")
        self.assertEqual(status, 1)
        self.assertIn("10.244.9.0/24 leads through flannel.1 and would be lost", said)
        self.assertTrue(self.a.ip("link show flannel.1"))

    def test_a_strict_reverse_path_is_in_the_way(self):
        self.a.sysctl("net/ipv4/conf/flannel.1/rp_filter", 1)
        status, said = self.a.podspan("migrate", "--apply")
        self.assertEqual(status, 1)
        self.assertIn("sysctl -w net/ipv4/conf/flannel.1/rp_filter=2", said)
        self.assertEqual(self.a.ip("route show 10.244.2.0/24")[0]["dev"], "flannel.1")
        self.a.sysctl("net/ipv4/conf/flannel.1/rp_filter", 2)
        self.go_over(self.a)

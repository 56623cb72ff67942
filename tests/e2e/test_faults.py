"""What goes wrong, and what is changed, on a running cluster. Datagrams that are under way meanwhile are counted."""

import time

import machine
from cases import Case, the
from cluster import pod_document
from kube import wait_for
from test_policy import is_open
from traffic import Traffic

# How often each agent is killed: some of its deaths are to fall on its start, and on its first look.
KILLS = 4


class Faults(Case):
    def test_agents_are_killed_and_no_packet_is_lost(self):
        pods = self.one_pod_a_node()
        with self.assert_no_packet_lost(pods):
            for _ in range(KILLS):
                for node in self.nodes:
                    self.podspan.kill_agent(node)
                for node in self.nodes:
                    self.podspan.wait_for_agent(node)
        self.assert_all_talk([*pods, *self.pods(late=self.nodes[0])])

    def test_containerd_is_restarted(self):
        pods = self.one_pod_a_node()
        node = self.nodes[0]
        with self.assert_no_packet_lost(pods):
            node.daemons["containerd"].kill()
            # Longer than the kubelet looks away.
            time.sleep(2)
            node.start_containerd()
            self.assert_all_talk([*pods, *self.pods(late=node)])
        pods[0].delete()
        pods[0].wait_until_gone()
        self.assert_only_running_pods_have_addresses()

    def test_the_api_server_is_gone_while_pods_come_and_go(self):
        pods = self.one_pod_a_node()
        ends = time.monotonic() + the.options.api_outage
        with self.assert_no_packet_lost(pods):
            self.cluster.kill_api_server()
            self.podspan.kill_agent(self.nodes[1])
            rounds = 0
            while rounds == 0 or time.monotonic() < ends:
                self.static_pods_come_and_go(f"static-{rounds}", pods)
                rounds += 1
            self.cluster.start_api_server()
        pods[0].delete()
        pods[0].wait_until_gone()
        self.cluster.wait_until_ready()
        self.assert_all_talk([*pods[1:], *self.pods(late=self.nodes[0])])
        self.assert_only_running_pods_have_addresses()

    def static_pods_come_and_go(self, name, askers):
        """What a kubelet runs from a file needs no API server; one on each node."""
        for node in self.nodes:
            node.set_static_pod(name, pod_document(name))
        for node in self.nodes:
            sandbox = wait_for(lambda: node.sandbox(f"{name}-{node.name}"), f"{name} runs on {node.name}",
                               node.daemons["kubelet"].last_words)
            addresses = node.sandbox_addresses(sandbox)
            if node is self.nodes[1]:
                # Its agent has not heard of the API since it was killed, and so cannot say that no policy is about the pod.
                for address in addresses:
                    wait_for(lambda: machine.fetch(address, 80, node.netns), f"{name} answers its node at {address}")
                    self.assertFalse(is_open(address, 80, askers[0].netns), f"{name} at {address} is closed")
                continue
            for asker in askers:
                for own, address in zip(asker.addresses, addresses, strict=True):
                    wait_for(lambda: machine.fetch(address, 80, asker.netns), f"{name} answers at {address}")
                    self.assert_served(f"{name}-{node.name}", address, netns=asker.netns, seen_from=own)
        for node in self.nodes:
            node.set_static_pod(name, None)
        for node in self.nodes:
            wait_for(lambda: not node.sandbox(f"{name}-{node.name}"), f"{name} is gone from {node.name}")

    def test_a_node_is_rebooted(self):
        pods = self.one_pod_a_node()
        [before, rebooted, after] = pods
        node = rebooted.node
        addresses = rebooted.addresses
        with self.assert_no_packet_lost([before, after]):
            node.power_off()
            self.assert_all_talk([before, after])
            self.cluster.boot_again(node)
            self.cluster.start_kubernetes(node)
            wait_for(lambda: rebooted.was_restarted(), "the pod's container has started again", rebooted.explain)
            rebooted.wait_until_ready()
            self.assert_all_talk([*pods, *self.pods(late=node)])
        print(f"{addresses} before the reboot, {rebooted.addresses} after; ", end="")
        self.assert_only_running_pods_have_addresses()

    def test_a_node_is_deleted_and_added_with_another_subnet(self):
        node = self.nodes[2]
        pods = self.pods(web1=self.nodes[0], web2=self.nodes[1])
        others = [pod.node for pod in pods]
        subnets = ["10.244.77.0/24", "fd00:10:244:77::/64"]
        with self.assert_no_packet_lost(pods):
            old = self.subnets(node)
            node.daemons["kubelet"].kill()
            self.api.delete("Node", node.name)
            for other in others:
                self.wait_for_routes(other, node, [])
            self.api.create({"kind": "Node", "metadata": {"name": node.name}, "spec": {"podCIDRs": subnets,
                                                                                   "podCIDR": subnets[0]}})
            self.cluster.start_kubernetes(node)
            wait_for(lambda: self.api.read("Node", node.name)["status"].get("addresses"), f"{node.name} has addresses")
            for other in others:
                self.wait_for_routes(other, node, subnets)
            self.cluster.wait_until_ready(node)
            self.podspan.wait_for_subnets(node, subnets)
            [late] = self.pods(late=node)
            self.assertNotEqual(old, subnets)
            self.assertTrue(late.addresses[0].startswith("10.244.77."), late.addresses)
            self.assert_all_talk([*pods, late])

    def wait_for_routes(self, node, other, subnets):
        """`ip` says which pods `node` reaches through `other`."""

        def routes():
            return sorted(route["dst"] for family, address in zip(("-4", "-6"), other.addresses)
                          for route in machine.ip(f"{family} route show via {address}", node.netns))

        wait_for(lambda: routes() == sorted(subnets), f"{node.name} reaches {subnets} through {other.name}",
                 lambda: f"routes: {routes()}")

    def one_pod_a_node(self):
        return self.pods(**{f"web-{node.name}": node for node in self.nodes})

    def assert_all_talk(self, pods):
        for asker in pods:
            for server in pods:
                for own, address in zip(asker.addresses, server.addresses, strict=True):
                    self.assert_served(server.name, address, netns=asker.netns, seen_from=own)

    def assert_no_packet_lost(self, pods):
        """While it is entered, datagrams go round all pods; none may be missing in the end."""
        return NoPacketLost(self, *zip(pods, [*pods[1:], pods[0]]))


class NoPacketLost(Traffic):
    def __init__(self, case, *pairs):
        super().__init__(*pairs)
        self.case = case

    def __exit__(self, *problem):
        super().__exit__()
        if problem[0] is None:
            print(f"{self.sent()} datagrams sent, ", end="")
            self.case.assertEqual(self.lost(), {}, "datagrams lost on the way to those addresses and back")

"""What pods may expect of their network."""

import ipaddress
import itertools

import machine
from cases import Case
from cluster import INTERNET_ADDRESSES, OUTSIDE_ADDRESSES, ROUTER, pod_spec
from kube import wait_for

PROBE = {"httpGet": {"path": "/cgi-bin/who", "port": 80}, "periodSeconds": 1, "failureThreshold": 3}
# What a kubelet admits by default.
PODS_MAX = 110


class Pods(Case):
    def test_pods_on_every_pair_of_nodes_talk_and_keep_their_addresses(self):
        pods = self.pods(**{f"web-{node.name}-{letter}": node for node in self.nodes for letter in "ab"})
        for asker, server in itertools.product(pods, pods):
            for own, address in zip(asker.addresses, server.addresses, strict=True):
                self.assert_served(server.name, address, netns=asker.netns, seen_from=own)

    def test_every_pod_has_an_address_of_each_family_in_its_nodes_subnets(self):
        for pod in self.pods(**{f"web-{node.name}": node for node in self.nodes}):
            subnets = [ipaddress.ip_network(cidr) for cidr in self.subnets(pod.node)]
            addresses = [ipaddress.ip_address(address) for address in pod.addresses]
            self.assertEqual([address.version for address in addresses], [4, 6])
            for address, subnet in zip(addresses, subnets, strict=True):
                self.assertIn(address, subnet)
            self.assertEqual(machine.addresses("eth0", pod.netns), pod.addresses)

    def test_pods_and_nodes_reach_each_other(self):
        pods = self.pods(**{f"web-{node.name}": node for node in self.nodes})
        for node, pod in itertools.product(self.nodes, pods):
            seen_from = node.addresses if node is not pod.node else [None, None]
            for address, own in zip(pod.addresses, seen_from):
                self.assert_served(pod.name, address, netns=node.netns, seen_from=own)

    def test_what_leaves_the_cluster_leaves_under_the_nodes_address(self):
        for pod in self.pods(**{f"web-{node.name}": node for node in self.nodes}):
            with machine.Answering(ROUTER, 8000):
                for own, address in zip(pod.node.addresses, INTERNET_ADDRESSES, strict=True):
                    self.assertEqual(machine.seen_by(address, 8000, pod.netns), own, f"asker of {address} in {pod.name}")

    def test_nodes_have_a_network(self):
        for node in self.nodes:
            conditions = self.api.read("Node", node.name)["status"]["conditions"]
            [network] = [each["status"] for each in conditions if each["type"] == "NetworkUnavailable"]
            self.assertEqual(network, "False", node.name)

    def test_probes_of_the_kubelet_reach_pods(self):
        node = self.nodes[0]
        pod = self.cluster.create_pod("probed", node, container={"readinessProbe": PROBE, "livenessProbe": PROBE})
        deaf = self.cluster.create_pod("deaf", node, container={
            "readinessProbe": PROBE | {"httpGet": {"path": "/", "port": 81}}})
        pod.wait_until_ready()
        wait_for(lambda: self.events_of(deaf, "Unhealthy"), "the probe of a port that nobody listens on fails")
        self.assertIsNone(deaf.if_ready())
        wait_for(lambda: self.probes_of(pod, "Liveness") >= 5, "the liveness probe succeeded five times")
        [status] = self.api.read("Pod", "probed")["status"]["containerStatuses"]
        self.assertEqual((status["restartCount"], status["ready"]), (0, True))

    def test_host_ports_lead_to_pods(self):
        [here, other, _] = self.nodes
        ports = [{"containerPort": 80, "hostPort": 8080},
                 {"containerPort": 80, "hostPort": 8081, "hostIP": here.addresses[0]}]
        web = self.cluster.create_pod("web", here, container={"ports": ports}).wait_until_ready()
        [near, far] = self.pods(near=here, far=other)
        for family, address in enumerate(here.addresses):
            self.assert_served("web", address, 8080, seen_from=OUTSIDE_ADDRESSES[family])
            self.assert_served("web", address, 8080, netns=far.netns, seen_from=far.addresses[family])
            for netns in (other.netns, here.netns, near.netns, web.netns):
                self.assert_served("web", address, 8080, netns=netns)
        self.assert_served("web", here.addresses[0], 8081)
        self.assert_closed(here.addresses[1], 8081)
        web.delete()
        web.wait_until_gone()
        for address in here.addresses:
            self.assert_closed(address, 8080)

    def test_pods_in_the_nodes_network_reach_pods_and_are_reached(self):
        [here, other, _] = self.nodes
        command = {"command": ["/bin/httpd", "-f", "-p", "8099", "-h", "/www"]}
        hosts = self.cluster.create_pod("hosts", here, container=command, hostNetwork=True).wait_until_ready()
        [near, far] = self.pods(near=here, far=other)
        self.assertEqual(hosts.addresses, here.addresses)
        for family, address in enumerate(here.addresses):
            for pod in (near, far):
                self.assert_served("node1", address, 8099, netns=pod.netns, seen_from=pod.addresses[family])
            self.assert_served("far", far.addresses[family], netns=hosts.netns, seen_from=address)
            self.assert_served("near", near.addresses[family], netns=hosts.netns)

    def test_a_deployment_is_rolled_over(self):
        probed = pod_spec(container={"readinessProbe": PROBE, "env": [{"name": "ROUND", "value": "0"}]})
        self.api.create({"kind": "Deployment", "metadata": {"name": "web"}, "spec": {
            "replicas": 6, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": probed}}})
        before = self.rolled_out("web", 6)
        probed["containers"][0]["env"][0]["value"] = "1"
        self.api.patch("Deployment", "web", {"spec": {"template": {"spec": probed}}})
        after = self.rolled_out("web", 6)
        self.assertEqual({pod.name for pod in before} & {pod.name for pod in after}, set())
        for node, pod in itertools.product(self.nodes, after):
            for address in pod.addresses:
                self.assert_served(pod.name, address, netns=node.netns)
        self.assert_only_running_pods_have_addresses()

    def rolled_out(self, name, replicas):
        """The Deployment's pods, once all are of its newest template and no other is left."""

        def is_complete():
            document = self.api.read("Deployment", name)
            status = document["status"]
            counts = [status.get(key, 0) for key in ("replicas", "updatedReplicas", "availableReplicas")]
            seen = status.get("observedGeneration") == document["metadata"]["generation"]
            return seen and counts == [replicas] * 3 and len(self.api.list("Pod", f"app={name}")) == replicas

        wait_for(is_complete, f"Deployment {name} is rolled out", lambda: self.api.read("Deployment", name)["status"])
        return [self.cluster.pod(each["metadata"]["name"]) for each in self.api.list("Pod", f"app={name}")]

    def test_a_node_has_as_many_pods_as_its_kubelet_admits(self):
        [full, other, _] = self.nodes
        system = [each for each in self.api.list("Pod", namespace="kube-system") if each["spec"]["nodeName"] == full.name]
        names = [f"web-{number}" for number in range(PODS_MAX - len(system))]
        pods = self.pods(**dict.fromkeys(names, full))
        [asker] = self.pods(asker=other)
        for family in (0, 1):
            self.assertEqual(len({pod.addresses[family] for pod in pods}), len(pods))
        for pod in pods:
            for address in pod.addresses:
                self.assert_served(pod.name, address, netns=asker.netns)
        self.assert_only_running_pods_have_addresses()

    def events_of(self, pod, reason):
        return [each for each in self.api.list("Event")
                if each["involvedObject"]["name"] == pod.name and each["reason"] == reason]

    def probes_of(self, pod, kind):
        """How many of a pod's probes succeeded, as its kubelet counts them."""
        metrics = machine.http(f"https://{pod.node.addresses[0]}:10250/metrics/probes")
        words = (f'probe_type="{kind}"', f'pod="{pod.name}"', 'result="successful"')
        return sum(float(line.split()[-1]) for line in metrics.splitlines() if all(word in line for word in words))

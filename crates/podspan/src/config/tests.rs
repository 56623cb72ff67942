use super::*;

fn agent(content: &str) -> anyhow::Result<Config> {
    Config::parse_agent(Path::new("agent.toml"), content, "here")
}

fn node(content: &str) -> NodeRole {
    match agent(content).unwrap().role {
        Role::Node(node) => node,
        Role::Router => panic!("an agent's file makes a node"),
    }
}

#[test]
fn an_empty_file_means_the_defaults() {
    let node = node("");
    assert_eq!((node.name.as_str(), node.routing), ("here", Routing::Auto));
    assert_eq!(
        (node.network.as_str(), node.bridge.as_str()),
        ("podspan", "podspan0")
    );
    assert_eq!((node.mtu, node.conflist), (None, CONFLIST.into()));
    assert_eq!(node.data_dir, Path::new(DATA_DIR));
    assert_eq!(agent("").unwrap().proc_sys, Path::new(PROC_SYS));
    assert!(node.masquerade && node.non_masquerade_cidrs.is_empty());
    let vxlan = &node.vxlan;
    assert_eq!((vxlan.vni, vxlan.port, vxlan.accept), (112, 8472, false));
    let name = |local: [u16; 8]| vxlan.name(std::net::Ipv6Addr::from(local).to_canonical());
    assert_eq!(
        name([0, 0, 0, 0, 0, 0xffff, 1, 1]).as_str(),
        "podspan-vxlan4"
    );
    assert_eq!(name([1; 8]).as_str(), "podspan-vxlan6");
    let config = agent("").unwrap();
    let operation = Operation {
        listen: Some("127.0.0.1:9470".parse().unwrap()),
        log: Format::Text,
        probe: true,
    };
    assert_eq!(config.operation, operation);
    assert_eq!(
        config.registry,
        RegistryConfig::File("/etc/podspan/nodes.toml".into())
    );
}

#[test]
fn every_key_is_read() {
    let content = r#"
        node = "node1"
        nodes_file = "/n.toml"
        routing = "router"
        vxlan_vni = 7
        vxlan_port = 4789
        vxlan_accept = true
        cluster_cidrs = ["10.244.0.0/16", "fd00:10:244::/48"]
        routers = ["192.168.1.1", "fd00:192:168:1::1"]
        network = "pods"
        bridge = "br0"
        mtu = 9000
        conflist = "/c/10.conflist"
        data_dir = "/var/lib/cni/networks"
        proc_sys = "/host/proc/sys"
        masquerade = false
        non_masquerade_cidrs = ["10.0.0.0/8"]
        probe = false
        listen = "[::]:1234"
        log = "json"
    "#;
    let operation = Operation {
        listen: Some("[::]:1234".parse().unwrap()),
        log: Format::Json,
        probe: false,
    };
    assert_eq!(agent(content).unwrap().operation, operation);
    let node = node(content);
    let routing = Routing::Router {
        cluster_cidrs: vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00:10:244::/48".parse().unwrap(),
        ],
        routers: vec![
            "192.168.1.1".parse().unwrap(),
            "fd00:192:168:1::1".parse().unwrap(),
        ],
    };
    assert_eq!((node.name.as_str(), node.routing), ("node1", routing));
    assert_eq!(
        (node.network.as_str(), node.bridge.as_str()),
        ("pods", "br0")
    );
    assert_eq!(
        (node.mtu, node.conflist),
        (Some(9000), "/c/10.conflist".into())
    );
    assert_eq!(node.data_dir, Path::new("/var/lib/cni/networks"));
    assert_eq!(
        agent(content).unwrap().proc_sys,
        Path::new("/host/proc/sys")
    );
    assert!(!node.masquerade);
    let cidrs = ["10.244.0.0/16", "fd00:10:244::/48", "10.0.0.0/8"];
    let cidrs: Vec<Prefix> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
    assert_eq!(node.non_masquerade_cidrs, cidrs);
    let vxlan = node.vxlan;
    assert_eq!((vxlan.vni, vxlan.port, vxlan.accept), (7, 4789, true));
}

#[test]
fn listening_can_be_switched_off() {
    for off in ["listen = ''", "listen = 'off'"] {
        assert_eq!(agent(off).unwrap().operation.listen, None);
        let router = Config::parse_router(Path::new("router.toml"), off).unwrap();
        assert_eq!(router.operation.listen, None);
    }
}

#[test]
fn a_key_that_is_not_known_is_refused_with_those_that_are() {
    let error = agent("nod = 'a'").unwrap_err().to_string();
    let told = format!("agent.toml: nod = \"a\": no such key; there are {AGENT_KEYS}");
    assert_eq!(error, told);
}

#[test]
fn what_the_manifest_gives_the_agent_is_understood() {
    let manifest = include_str!("../../../../deploy/podspan.yaml");
    let block = manifest.split("  agent.toml: |\n").nth(1).unwrap();
    let lines = block.lines().map_while(|line| line.strip_prefix("    "));
    let content: Vec<_> = lines.collect();
    let config = agent(&content.join("\n")).unwrap();
    assert!(matches!(config.registry, RegistryConfig::Kubernetes(_)));
    assert_eq!(config.proc_sys, Path::new("/host/proc/sys"));
}

#[test]
fn a_wrong_value_is_refused_with_file_key_value_and_what_would_be_right() {
    let table = [
        (
            "masquerade = 'no'",
            "agent.toml: masquerade = \"no\": must be true or false, without quotes",
        ),
        (
            "non_masquerade_cidrs = ['10.1.0.1/16']",
            "agent.toml: non_masquerade_cidrs[0] = \"10.1.0.1/16\": prefix 10.1.0.1/16 has host bits set; its network is 10.1.0.0/16",
        ),
        (
            "probe = 'yes'",
            "agent.toml: probe = \"yes\": must be true or false, without quotes",
        ),
        (
            "listen = 9470",
            "agent.toml: listen = 9470: must be an address and a port, such as \"127.0.0.1:9470\", or \"off\"",
        ),
        (
            "listen = 'localhost:9470'",
            "agent.toml: listen = \"localhost:9470\": must be an address and a port, such as \"127.0.0.1:9470\", or \"off\"",
        ),
        (
            "log = 'xml'",
            "agent.toml: log = \"xml\": must be \"text\" or \"json\"",
        ),
        (
            "node = ''",
            "agent.toml: node = \"\": must be a name without white space, such as \"node1\"",
        ),
        (
            "node = 7",
            "agent.toml: node = 7: must be a name without white space, such as \"node1\"",
        ),
        (
            "nodes_file = 'n.toml'",
            "agent.toml: nodes_file = \"n.toml\": must be an absolute path, beginning with /",
        ),
        (
            "routing = 'fast'",
            "agent.toml: routing = \"fast\": must be \"auto\", \"direct\", \"vxlan\" or \"router\"",
        ),
        (
            "vxlan_vni = 16777216",
            "agent.toml: vxlan_vni = 16777216: must be a number from 1 to 16777215",
        ),
        (
            "vxlan_port = 65536",
            "agent.toml: vxlan_port = 65536: must be a number from 1 to 65535",
        ),
        (
            "vxlan_accept = 'yes'",
            "agent.toml: vxlan_accept = \"yes\": must be true or false, without quotes",
        ),
        (
            "mtu = 100",
            "agent.toml: mtu = 100: must be a number from 1280 to 65535",
        ),
        (
            "mtu = '1500'",
            "agent.toml: mtu = \"1500\": must be a number from 1280 to 65535",
        ),
        (
            "bridge = 'sixteen-bytes-xx'",
            "agent.toml: bridge = \"sixteen-bytes-xx\": interface name \"sixteen-bytes-xx\" is longer than 15 bytes",
        ),
        (
            "network = 'a/b'",
            "agent.toml: network = \"a/b\": network name \"a/b\" must begin with a letter or digit and hold only letters, digits, '_', '.' and '-'",
        ),
        (
            "conflist = '/etc/cni/x.conf'",
            "agent.toml: conflist = \"/etc/cni/x.conf\": must end with .conflist, or no runtime reads it",
        ),
        (
            "cluster_cidrs = '10.0.0.0/8'",
            "agent.toml: cluster_cidrs = \"10.0.0.0/8\": must be a list: [\"…\", \"…\"]",
        ),
        (
            "cluster_cidrs = ['10.244.1.1/16']",
            "agent.toml: cluster_cidrs[0] = \"10.244.1.1/16\": prefix 10.244.1.1/16 has host bits set; its network is 10.244.0.0/16",
        ),
        (
            "cluster_cidrs = ['10.0.0.0/8', '10.244.0.0/16']",
            "agent.toml: cluster_cidrs[1] = \"10.244.0.0/16\": overlaps 10.0.0.0/8; remove one",
        ),
        (
            "routers = ['127.0.0.1']",
            "agent.toml: routers[0] = \"127.0.0.1\": must be an address that other nodes reach, not loopback, link-local, multicast or unspecified",
        ),
        (
            "routers = ['192.168.1.1', '192.168.1.2']",
            "agent.toml: routers[1] = \"192.168.1.2\": is a second IPv4 router; name one per family",
        ),
        (
            "routing = 'router'\ncluster_cidrs = ['10.0.0.0/8']",
            "agent.toml: routers: routing = \"router\" needs the router's address, such as [\"192.168.1.1\"]",
        ),
        (
            "routing = 'router'\nrouters = ['10.0.0.1']",
            "agent.toml: cluster_cidrs: routing = \"router\" needs the ranges of all pods, such as [\"10.244.0.0/16\"]",
        ),
        (
            "registry = 'etcd'",
            "agent.toml: registry = \"etcd\": must be \"file\" or \"kubernetes\"",
        ),
        (
            "registry = 'kubernetes'\nnodes_file = '/n.toml'",
            "agent.toml: nodes_file = \"/n.toml\": is not read with registry = \"kubernetes\"; remove it",
        ),
        (
            "kubeconfig = '/k'",
            "agent.toml: kubeconfig = \"/k\": is read with registry = \"kubernetes\" only",
        ),
        (
            "policy = true",
            "agent.toml: policy = true: needs registry = \"kubernetes\", or a policy_file to read policies from",
        ),
        (
            "registry = 'kubernetes'\npolicy_file = '/p.json'",
            "agent.toml: policy_file = \"/p.json\": is not read with registry = \"kubernetes\"; remove it",
        ),
        (
            "policy_when_unknown = 'shut'",
            "agent.toml: policy_when_unknown = \"shut\": must be \"closed\" or \"open\"",
        ),
        (
            "policy_wait_milliseconds = 60001",
            "agent.toml: policy_wait_milliseconds = 60001: must be a number from 0 to 60000",
        ),
        (
            "allocate_pod_cidrs = true\ncluster_cidrs = ['10.244.0.0/16']",
            "agent.toml: allocate_pod_cidrs = true: needs registry = \"kubernetes\"; a nodes file says it itself",
        ),
        (
            "registry = 'kubernetes'\nallocate_pod_cidrs = true",
            "agent.toml: cluster_cidrs: allocate_pod_cidrs needs the ranges of all pods, such as [\"10.244.0.0/16\"]",
        ),
        (
            "node_prefix_lengths = [24]",
            "agent.toml: node_prefix_lengths = [24]: is used with allocate_pod_cidrs = true only",
        ),
        (
            "registry = 'kubernetes'\nallocate_pod_cidrs = true\ncluster_cidrs = ['10.244.0.0/16']\nnode_prefix_lengths = [8]",
            "agent.toml: node_prefix_lengths = [8]: /8 does not divide 10.244.0.0/16; lengths from /16 to /30 do",
        ),
        (
            "\nnode = ",
            "agent.toml: line 2: string values must be quoted, expected literal string",
        ),
    ];
    for (content, expected) in table {
        let told = agent(content).unwrap_err().to_string();
        assert_eq!(told.replace("\"a\": no", "'a': no"), expected, "{content}");
    }
    let error = Config::parse_router(Path::new("router.toml"), "node = 'a'").unwrap_err();
    let expected = format!("router.toml: node = \"a\": no such key; there are {ROUTER_KEYS}");
    assert_eq!(error.to_string(), expected);
}

#[test]
fn the_registry_is_a_file_or_the_kubernetes_api() {
    let kubernetes = |content: &str| match agent(content).unwrap().registry {
        RegistryConfig::Kubernetes(config) => config,
        RegistryConfig::File(file) => panic!("{file:?}"),
    };
    let config = kubernetes("registry = 'kubernetes'\nkubeconfig = '/k'");
    assert_eq!(config.kubeconfig, Some("/k".into()));
    assert_eq!(
        (config.node.as_deref(), config.allocate),
        (Some("here"), None)
    );
    let config = kubernetes(
        "registry = 'kubernetes'\nallocate_pod_cidrs = true\n\
         cluster_cidrs = ['10.244.0.0/16']\nnode_prefix_lengths = [25]",
    );
    let ranges = Ranges::new(&["10.244.0.0/16".parse().unwrap()], Some(&[25]));
    assert_eq!((config.kubeconfig, config.allocate), (None, ranges.ok()));
    let router = Config::parse_router(Path::new("r"), "registry = 'kubernetes'").unwrap();
    let expected = RegistryConfig::Kubernetes(KubernetesConfig::default());
    assert_eq!(router.registry, expected);
}

#[test]
fn a_name_that_is_given_goes_before_the_file_and_the_file_before_the_host() {
    let name = |content: &str, given: Option<&str>| {
        let config = Config::parse_named(Path::new("a"), content, (given, "Host")).unwrap();
        match config.role {
            Role::Node(node) => node.name,
            Role::Router => panic!("an agent's file makes a node"),
        }
    };
    assert_eq!(name("node = 'file'", Some("given")), "given");
    assert_eq!(name("node = 'file'", None), "file");
    assert_eq!(name("", None), "Host");
    assert_eq!(name("registry = 'kubernetes'", None), "host");
}

#[test]
fn all_faults_are_told_at_once() {
    let told = agent("mtu = 1\nbridge = '.'\nx = 1")
        .unwrap_err()
        .to_string();
    assert_eq!(told.lines().count(), 3, "{told}");
}

#[test]
fn policy_is_enforced_where_there_is_a_source_of_it_unless_told_otherwise() {
    assert_eq!(node("").policy, None);
    assert!(!node("").bridge_netfilter);
    let of_kubernetes = |more: &str| node(&format!("registry = 'kubernetes'\n{more}")).policy;
    let default = PolicyRole {
        file: None,
        when_unknown_open: false,
        wait_milliseconds: 2000,
        keeps_connections: false,
    };
    assert_eq!(of_kubernetes(""), Some(default.clone()));
    assert_eq!(of_kubernetes("policy = false"), None);
    assert_eq!(
        of_kubernetes(
            "policy_when_unknown = 'open'\npolicy_wait_milliseconds = 0\npolicy_keeps_connections = true"
        ),
        Some(PolicyRole {
            when_unknown_open: true,
            wait_milliseconds: 0,
            keeps_connections: true,
            ..default.clone()
        })
    );
    let of_file = node("policy_file = '/p.json'");
    assert!(of_file.bridge_netfilter);
    let routed = node("policy_file = '/p.json'\nbridge_netfilter = false");
    assert!(!routed.bridge_netfilter && routed.policy.is_some());
    let role = PolicyRole {
        file: Some("/p.json".into()),
        ..default
    };
    assert_eq!(of_file.policy, Some(role));
}

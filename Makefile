# Everything that a fresh machine with Rust needs is installed by these targets, pinned.
#   make lab            the textbook network out of namespaces: built, proven, drawn, taken down
#   make test           every test that needs no container runtime
#   make test-runtimes  the plugin under podman and containerd, as root
#   make e2e            Podspan, from its manifest and its image, under a real Kubernetes whose nodes are namespaces, as root
SHELL      := /bin/bash
# Words for the bench: without --write it only prints; names of configurations restrict it.
BENCH      := --write
HOST       := $(shell rustc -vV | sed -n 's/^host: //p')
CARGO      := cargo
CARGO_DENY := 0.20.2
TOOLS      := $(CURDIR)/.tools
# A static executable at a fixed address starts half a millisecond sooner and owes nothing to the host's libc. With
# --target, build scripts and procedural macros are not built that way, which glibc would not allow. A panic
# aborts, so that nobody reads a table for unwinding. Of functions that are alike one is enough.
STATIC     := RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static -C link-arg=-Wl,--no-eh-frame-hdr -C link-arg=-Wl,--icf=all" $(CARGO) build --release --locked --target $(HOST)
# Kernel tests make namespaces: as an ordinary user, inside a user namespace, with a network where one reaches oneself.
ISOLATED   := $(if $(filter 0,$(shell id -u)),,unshare --user --map-root-user --mount --net sh -c 'ip link set lo up && exec "$$0" "$$@"')

# The version of the workspace, and the image's reference: of this machine, until somebody pushes it to a registry.
VERSION    := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
IMAGE      := localhost/podspan:$(VERSION)

.PHONY: build image manifests check test test-runtimes e2e kubernetes lab bench instructions record-instructions install-tools clean

build:
	$(STATIC)
	@mkdir -p bin
	@for program in podspan podspan-cni; do \
	  install -m 755 target/$(HOST)/release/$$program bin/.$$program.new && mv bin/.$$program.new bin/$$program; done

# An OCI archive, without a container engine: ctr -n k8s.io images import bin/podspan-image.tar
image: build
	tools/image bin bin/podspan-image.tar $(IMAGE)

# What is in deploy is the chart with its defaults.
manifests: debian-packages-check $(TOOLS)/bin/helm
	tests/chart/run --write

check: debian-packages-check $(TOOLS)/bin/cargo-deny $(TOOLS)/bin/helm
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets --all-features -- -D warnings
	@# The plugin has no async runtime and speaks no network protocol (ARCHITECTURE.md, invariant 6).
	! $(CARGO) tree --locked --offline -p podspan-cni --all-features -e normal,build --prefix none | grep -E '^(tokio|hyper|rustls) '
	@# Of all platforms, which cargo-deny looks at.
	$(CARGO) fetch --locked
	$(TOOLS)/bin/cargo-deny --offline --locked check licenses bans sources
	tests/chart/run

# The lab makes its own namespaces, also as an ordinary user; everything else is run inside some. Longer than here:
#   PODSPAN_FUZZ_SECONDS=600        each fuzz target, 10 s otherwise; PODSPAN_FUZZ_SEED=<printed seed> repeats one case
#   PODSPAN_POLICY_CASES=1000000    packets in random clusters under random policies; PODSPAN_POLICY_SEED=<printed seed> repeats a history
#   PODSPAN_STORM_SECONDS=600       the storm of ADD, DEL, GC and kills, 15 s otherwise
#   PODSPAN_POLICY_ALL=1            packets for all cases of policy, not for every fourth: four minutes
#   PODSPAN_FIRST_PACKET=1000       pods that send from their first instruction, instead of 40 and 50: five minutes
#   PODSPAN_ALL_CONFIGURATIONS=1    kills and faults at every system call in every configuration of harness/world.rs; or
#                                   the name of one
test: debian-packages build
	$(CARGO) test --locked --workspace --all-features --no-run
	$(ISOLATED) $(CARGO) test --locked --offline --workspace --all-features --exclude podspan
	$(ISOLATED) $(CARGO) test --locked --offline -p podspan --bins --test agent --test docs --test policy
	$(CARGO) test --locked -p podspan --test lab

# Real container runtimes want real root, for their cgroups.
test-runtimes: debian-packages-runtimes build
	tests/runtimes/run

# Shorter: E2E="--api-outage 20". Single cases: tests/e2e/run -k PATTERN. To stay in the cluster: tests/e2e/run --keep.
E2E :=
e2e: debian-packages-e2e image kubernetes
	$(CARGO) test --locked -p podspan --test kubernetes
	tests/e2e/run $(E2E)

# Kubernetes's programs, out of its own Go modules: one executable under six names, which is one to link. Seven minutes of two
# cores, once a version. With Go 1.27 the API server describes itself wrongly.
KUBERNETES_VERSION := $(shell sed -n 's|^\tk8s.io/kubernetes \(v[^ ]*\)$$|\1|p' tests/e2e/go.mod)
KUBERNETES         := $(TOOLS)/kubernetes/$(KUBERNETES_VERSION)
# A compiler that collects garbage less often is done sooner. helm is built of the same modules in the same way, so that what
# both need is built once.
GO_BUILD           := cd tests/e2e && GOTOOLCHAIN=go1.26.8 CGO_ENABLED=0 GOGC=400 go build -trimpath -gcflags=all=-dwarf=false
kubernetes: $(KUBERNETES)/kubernetes
$(KUBERNETES)/kubernetes: tests/e2e/go.mod tests/e2e/go.sum tests/e2e/main.go
	@mkdir -p $(@D)
	$(GO_BUILD) -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$(KUBERNETES_VERSION)" -o $@.new .
	cd $(@D) && for name in kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubelet kubectl; do \
	  ln -sf kubernetes $$name; done
	mv $@.new $@

lab: debian-packages-lab build
	@for routing in direct router vxlan auto; do \
	  bin/podspan lab up --routing $$routing && bin/podspan lab check; status=$$?; \
	  bin/podspan lab down; [ $$status -eq 0 ] || exit $$status; done

# Measures, and writes what it measured into docs/benchmarks.md: half an hour as root, on a machine that does nothing else.
bench:
	@for part in plugin paths nodes policies; do $(MAKE) bench-$$part || exit 1; done

# What an attachment costs, beside the reference plugins: six minutes.
.PHONY: bench-plugin
bench-plugin: debian-packages-bench build
	$(STATIC) -p podspan-cni --example floor
	$(CARGO) bench --locked -p podspan-cni --bench plugin --no-run
	$(ISOLATED) $(CARGO) bench --locked --offline -p podspan-cni --bench plugin -- $(BENCH) \
	  --floor $(CURDIR)/target/$(HOST)/release/examples/floor

# The agent with 5,000 Nodes in a real API server, as root: twelve minutes.
.PHONY: bench-nodes
bench-nodes: debian-packages debian-packages-e2e build kubernetes
	$(CARGO) bench --locked --profile dev -p podspan --bench nodes -- --podspan $(CURDIR)/bin/podspan $(BENCH)

# 10,000 policies over 50,000 pods in a real API server, as root: four minutes on a machine that does nothing else.
.PHONY: bench-policies
bench-policies: debian-packages debian-packages-e2e build kubernetes
	$(CARGO) bench --locked --profile dev -p podspan --bench policies -- $(BENCH)

# What packets between pods cost, beside the same paths made by hand, as root: eight minutes on a machine that does nothing else.
.PHONY: bench-paths
bench-paths: debian-packages build
	$(CARGO) bench --locked --profile dev -p podspan --bench paths -- $(BENCH)

# Fails when the plugin needs 5 % more instructions than the file says; recording writes what it needs now.
INSTRUCTIONS := crates/cni/benches/instructions.txt
instructions: debian-packages-instructions build
	@tools/instructions check $(INSTRUCTIONS)
record-instructions: debian-packages-instructions build
	@tools/instructions record $(INSTRUCTIONS)

# What a target needs of Debian: installed where that is possible, named where it is not.
.PHONY: debian-packages debian-packages-lab debian-packages-runtimes debian-packages-bench
.PHONY: debian-packages-instructions debian-packages-check debian-packages-e2e
debian-packages-check:
	@tools/need python3:python3 /usr/lib/python3/dist-packages/yaml:python3-yaml
debian-packages-lab:
	@tools/need ip:iproute2
debian-packages:
	@tools/need ip:iproute2 ping:iputils-ping nft:nftables iptables-nft:iptables strace:strace python3:python3
debian-packages-runtimes:
	@tools/need ip:iproute2 nft:nftables iptables:iptables containerd:containerd runc:runc podman:podman \
	  /usr/lib/cni/portmap:containernetworking-plugins busybox:busybox-static python3:python3 \
	  protoc:protobuf-compiler /usr/lib/python3/dist-packages/grpc:python3-grpcio \
	  /usr/lib/python3/dist-packages/yaml:python3-yaml
debian-packages-e2e:
	@tools/need ip:iproute2 nft:nftables iptables:iptables conntrack:conntrack etcd:etcd-server containerd:containerd \
	  runc:runc busybox:busybox-static openssl:openssl python3:python3 protoc:protobuf-compiler \
	  /usr/lib/python3/dist-packages/grpc:python3-grpcio
debian-packages-bench: debian-packages
	@tools/need tc:iproute2 iptables:iptables /usr/lib/cni/bridge:containernetworking-plugins
debian-packages-instructions:
	@tools/need ip:iproute2 unshare:util-linux valgrind:valgrind

# It reads manifests for two seconds: what is not optimized is built sooner.
$(TOOLS)/bin/cargo-deny:
	CARGO_PROFILE_DEV_DEBUG=false $(CARGO) install --debug --locked --version $(CARGO_DENY) --root $(TOOLS) cargo-deny

# Debian has no helm; its version is in the go.mod.
$(TOOLS)/bin/helm: tests/e2e/go.mod tests/e2e/go.sum
	$(GO_BUILD) -ldflags "-s -w" -o $@ helm.sh/helm/v3/cmd/helm

clean:
	$(CARGO) clean
	rm -rf bin

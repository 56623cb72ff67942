# Everything that a fresh machine with Rust needs is installed by these targets, pinned.
#   make lab    the textbook network out of namespaces: built, proven, drawn, taken down
#   make test   every test
SHELL      := /bin/bash
HOST       := $(shell rustc -vV | sed -n 's/^host: //p')
CARGO      := cargo
CARGO_DENY := 0.20.2
TOOLS      := $(CURDIR)/.tools
# A static executable starts 0.4 ms sooner and owes nothing to the host's libc. With --target, build scripts and
# procedural macros are not built that way, which glibc would not allow.
STATIC     := RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --release --locked --target $(HOST)
# Kernel tests make namespaces: as an ordinary user, inside a user namespace.
ISOLATED   := $(if $(filter 0,$(shell id -u)),,unshare --user --map-root-user --mount --net)

.PHONY: build check test lab bench install-tools clean

build:
	$(STATIC)
	@mkdir -p bin
	@for program in podspan podspan-cni; do \
	  install -m 755 target/$(HOST)/release/$$program bin/.$$program.new && mv bin/.$$program.new bin/$$program; done

check: $(TOOLS)/bin/cargo-deny
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets --all-features -- -D warnings
	$(TOOLS)/bin/cargo-deny --offline --locked check licenses bans sources

# The lab makes its own namespaces, also as an ordinary user; everything else is run inside some. Longer than here:
#   PODSPAN_FUZZ_SECONDS=600        each fuzz target, 10 s otherwise; PODSPAN_FUZZ_SEED=<printed seed> repeats one case
#   PODSPAN_STORM_SECONDS=600       the storm of ADD, DEL, GC and kills, 15 s otherwise
#   PODSPAN_ALL_CONFIGURATIONS=1    kills and faults at every system call in every configuration of harness/world.rs
test: debian-packages build
	$(CARGO) test --locked --workspace --all-features --no-run
	$(ISOLATED) $(CARGO) test --locked --offline --workspace --all-features --exclude podspan
	$(ISOLATED) $(CARGO) test --locked --offline -p podspan --bins --test agent
	$(CARGO) test --locked -p podspan --test lab

lab: debian-packages-lab build
	@for routing in direct router; do \
	  bin/podspan lab up --routing $$routing && bin/podspan lab check; status=$$?; \
	  bin/podspan lab down; [ $$status -eq 0 ] || exit $$status; done

bench: debian-packages-bench build
	$(CARGO) bench --locked -p podspan-cni --bench plugin

# What a target needs of Debian: installed where that is possible, named where it is not.
.PHONY: debian-packages debian-packages-lab debian-packages-bench
debian-packages-lab:
	@tools/need ip:iproute2
debian-packages:
	@tools/need ip:iproute2 ping:iputils-ping nft:nftables strace:strace
debian-packages-bench: debian-packages
	@tools/need /usr/lib/cni/bridge:containernetworking-plugins

$(TOOLS)/bin/cargo-deny:
	$(CARGO) install --locked --version $(CARGO_DENY) --root $(TOOLS) cargo-deny

clean:
	$(CARGO) clean
	rm -rf bin

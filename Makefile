# The front door. The code behind it is in xtask/.

PREFIX ?= /usr/local
export PREFIX DESTDIR SOURCE
# rustup's default, which a shell that is not a login shell lacks; Debian's tools for root.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin

prepare = @sh xtask/install.sh

.PHONY: help run demo test test-fast vm kernels lint fmt docs manifests bench performance soak release image image-prebuilt sbom install clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 24

run: ## build the agent and run it; ARGS='--log.level debug' adds flags
	$(prepare)
	@cargo xtask run $(ARGS)

demo: ## the agent in a virtual machine with a load, to look at with a browser
	$(prepare) vm
	@cargo xtask demo

test: ## all that must pass: lint and every test, on this kernel and on others
	$(prepare) test vm page browser
	@cargo xtask test

test-fast: ## the same on this kernel alone
	$(prepare) test page browser
	@cargo xtask test-fast

vm: ## the tests on other kernels, in virtual machines; RUN=5.10 takes that kernel alone
	$(prepare) vm
	@cargo xtask vm $(if $(RUN),--run '$(RUN)')

kernels: ## the same, and docs/kernels.md is written anew
	$(prepare) vm
	@cargo xtask vm --write

lint: ## layout, clippy, licences and advisories of dependencies, documentation
	$(prepare) test
	@cargo xtask lint

fmt: ## give Rust and C their layout
	$(prepare) test
	@cargo xtask fmt

docs: ## write docs/metrics.md and the README's table anew
	$(prepare)
	@cargo xtask docs

manifests: ## write anew what derives in deploy/: deploy-sentry.yaml, rules, dashboards
	$(prepare) test
	@cargo xtask manifests

bench: ## what the probes cost, beside others
	$(prepare) bench
	@cargo xtask bench $(ARGS)

performance: ## the same, and docs/performance.md is written anew
	$(prepare) bench
	@cargo xtask bench --write $(ARGS)

soak: ## a minute each of connect and read storms, and 10,000 containers in ten minutes
	$(prepare) test
	@cargo xtask soak

release: ## the agent as one static file
	$(prepare) page
	@cargo xtask release

image: ## the container image, built by docker, podman or buildah; SOURCE=URL for its label
	$(prepare)
	@cargo xtask image

image-prebuilt: ## the same from a program built here, so that no other image is needed
	$(prepare) page
	@cargo xtask image --prebuilt

sbom: ## the agent's crates as a bill of materials, target/sentry.cdx.json
	$(prepare)
	@cargo xtask sbom

install: ## install agent and systemd unit beneath PREFIX; DESTDIR is honoured
	$(prepare) page
	@cargo xtask install

clean: ## remove what was built
	cargo clean

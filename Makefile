# The two commands of the README, and what they are made of.

MARGAY := target/release/margay
SUDO   := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: lab test build setup bench fmt clean

lab: build            ## a three-node pod network on this machine, and a tour of it
	@$(SUDO) $(MARGAY) lab up
	@$(SUDO) $(MARGAY) lab tour

test: setup           ## all tests, the ones on the live kernel included
	@tools/test

build: setup          ## the release binary
	cargo build --release --locked --bin margay

setup:                ## Debian packages that the build and the tests need
	@tools/setup

bench: build          ## the measurements of docs/performance.md
	@$(SUDO) tools/bench

fmt:
	cargo fmt --all

clean:
	cargo clean

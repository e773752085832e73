# make            the program, bin/meshnet
# make lab        three hosts with real Open vSwitch on this machine, and the ping matrix (root)
# make lab-down   ends it
# make lab-vm     the same in a QEMU guest with Debian's own kernel, so that it has the kernel's datapath (root)
# make check      format, vet, staticcheck, shellcheck, architecture, tidy modules: seconds, no root
# make test       installs what is missing (apt), then every test and the lab's tests (root)
# make soak       the same things for long: more seeds, longer fuzzing, the lab three times over
# make race fuzz mutate sim model golden bench bench-gossip cover deps      as they say below

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

VERSION     := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
UNIT        := $(shell go list ./... 2>/dev/null | grep -v /testlab)
FUZZTIME    ?= 20s
SEED        ?= 0
RUNS        ?= 2000
NODES       ?= 5
ONLY        ?=

GO_OK := $(shell go version 2>/dev/null | awk '{ split(substr($$3, 3), v, "."); print (v[1] > 1 || v[2] >= 25) ? "yes" : "no" }')
ifneq ($(GO_OK),yes)
$(error meshnet needs Go 1.25 or later on the PATH; https://go.dev/dl has it)
endif

.PHONY: build
build:
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/meshnet ./cmd/meshnet

.PHONY: check
check:
	@bad=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$bad" ] || { echo "gofmt -w these: $$bad"; exit 1; }
	go vet ./...
	go mod tidy -diff
	go run $(STATICCHECK) ./...
	@if command -v shellcheck >/dev/null; then shellcheck testlab/lab testlab/vm testlab/deps testlab/demo testlab/attach-bench .ci/run; \
	elif [ -n "$$CI" ]; then echo "shellcheck is not installed"; exit 1; fi
	go test .
	go test -count 1 ./mesh/sim -run Simulation -for 3s

# What the tests and the lab need. testlab/deps installs only what is not there, testlab/vm fetches a kernel once.
.PHONY: deps
deps:
	testlab/deps
	testlab/vm --fetch

.PHONY: test
test: deps build
	MESHNET_REQUIRE=1 go test -timeout 10m $(UNIT)
	MESHNET_REQUIRE=1 go test -count 1 -timeout 60m ./testlab -lab -v

.PHONY: soak
soak: deps build
	$(MAKE) mutate
	$(MAKE) sim RUNS=1000000
	$(MAKE) sim RUNS=20000 NODES=50
	$(MAKE) sim-scale
	go test -count 1 -timeout 2h ./ipam -run Simulation -seeds 50000
	$(MAKE) model
	go test -count 1 -timeout 30m ./ipam -run ManyNodes -v -scale 1000
	$(MAKE) fuzz FUZZTIME=10m
	go test -count 1 -timeout 2h ./mesh -run 'TestForm$$|TestHeal$$' -forms 100 -heals 10 -v
	for i in 1 2 3; do MESHNET_REQUIRE=1 go test -count 1 -timeout 90m ./testlab -lab -v -run AddressesAtRandom -steps 500 || exit 1; done
	MESHNET_REQUIRE=1 go test -count 3 -timeout 240m ./testlab -lab -v -cut 5m
	MESHNET_REQUIRE=1 go test -count 1 -timeout 60m ./testlab -lab -soak -v -run 'Attachment|RunContainer|Removed|AttachDetach'
	go test -count 1 -timeout 60m ./agent -run AttachFaults -seeds 5000

# Bubbles of testing/synctest stay out of the race detector (golang/go#76691): they run one goroutine at a time anyway.
.PHONY: race
race:
	MESHNET_REQUIRE=1 go test -race -timeout 20m $(filter-out meshnet/mesh,$(UNIT))

# The whole core of NODES hosts under one seeded loop of events: RUNS seeds, or the one given by SEED, of which ONLY keeps some
# acts. A failure is made smaller and prints what plays it again.
.PHONY: sim
sim:
	go test -count 1 -timeout 24h ./mesh/sim -run Simulation -v -seed $(SEED) -runs $(RUNS) -nodes $(NODES) -only "$(ONLY)"

# How fast all of a thousand hosts with fifty containers each see a write.
.PHONY: sim-scale
sim-scale:
	go test -count 1 -timeout 1h ./mesh/sim -run Scale -v -scale 1000

# Puts faults into the code that carries the laws, one at a time: the test that is named for each has to fail.
.PHONY: mutate
mutate:
	go test -count 1 -timeout 60m ./state -run TestMutations -mutate -v

# The address protocol as coded, every order of events among three nodes and random ones among four and five; then
# each guard switched off must end in two owners of one address, and how is printed.
.PHONY: model
model:
	go test -count 1 -timeout 30m ./ipam -run TestModel -v -model -walks 30s

.PHONY: fuzz
fuzz:
	@set -e; for p in $$(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n 1 dirname | sort -u); do \
	  for f in $$(grep -ho '^func Fuzz[A-Za-z0-9]*' $$p/*_test.go | cut -c 6-); do \
	    echo "$$p $$f"; go test ./$$p -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME); done; done

# Rewrites the golden files; read the difference before you commit it.
.PHONY: golden
golden:
	go test $$(git grep -l '"rewrite"' -- '*_test.go' | xargs -n 1 dirname | sort -u | sed 's|^|./|') -rewrite
	git diff --stat -- '*/testdata/*'

.PHONY: bench
bench:
	go test -run '^$$' -bench . -benchmem $(UNIT)

# How fast a write is everywhere, beside weave mesh, networkdb, serf and bare memberlist, once over;
# BENCH='-nodes 5 -systems meshnet' and the like for parts. bench-gossip-doc takes hours and a quiet
# machine, and writes the tables of docs/benchmarks.md.
.PHONY: bench-gossip
bench-gossip:
	cd bench/gossip && go vet . && go run . $(BENCH)

.PHONY: bench-gossip-doc
bench-gossip-doc:
	$(MAKE) bench-gossip BENCH='-passes 5 -writes 200 -idle 5m -doc ../../docs/benchmarks.md'

# The data plane beside raw links, the kernel's VXLAN and hand-built Open vSwitch, on transports C and B and, in the guest,
# A (root): PASSES interleaved passes, written to docs/benchmarks-data.md. GUEST=false leaves the guest out.
PASSES ?= 5
GUEST  ?= true
.PHONY: bench-data
bench-data: deps build
	go test -run '^$$' -bench DataPlane -benchtime 1x -timeout 3h ./testlab -lab -passes $(PASSES) -with-guest=$(GUEST) \
	  -report $(CURDIR)/docs/benchmarks-data.md

# meshnet attach beside docker network connect to a Swarm overlay, in turns (root).
.PHONY: bench-attach
bench-attach: deps build
	testlab/attach-bench 5 20

.PHONY: cover
cover:
	MESHNET_REQUIRE=1 go test -coverprofile bin/cover.out $(UNIT)
	go tool cover -func bin/cover.out | tail -n 1

.PHONY: lab
lab: build
	testlab/deps lab
	testlab/demo

.PHONY: lab-down
lab-down:
	testlab/lab down

.PHONY: lab-vm
lab-vm: build
	testlab/deps lab
	testlab/vm testlab/demo

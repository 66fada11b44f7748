# SPDX-License-Identifier: MIT

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
DESTDIR  ?=
PREFIX   ?= /usr
UNITDIR  ?= /usr/lib/systemd/system
UDEVDIR  ?= /usr/lib/udev/rules.d
GO       ?= go
GOFLAGS_ = -trimpath -buildvcs=false -ldflags '-s -w -X github.com/holdfast-project/holdfast/internal/version.Version=$(VERSION)'

export CGO_ENABLED = 0

.PHONY: build install test test-fast test-vm test-kill lint bench demo demo-kernel clean

build: ## static binaries in bin/
	mkdir -p bin
	$(GO) build $(GOFLAGS_) -o bin/ ./cmd/... ./examples/notebook ./examples/vm-manager

install: build ## into $(DESTDIR), where a distribution would
	install -D -m 0755 bin/holdfast $(DESTDIR)$(PREFIX)/bin/holdfast
	install -D -m 0755 bin/holdfastd $(DESTDIR)$(PREFIX)/libexec/holdfastd
	install -D -m 0644 -t $(DESTDIR)$(UNITDIR) packaging/systemd/holdfastd.socket
	sed 's#/usr/libexec#$(PREFIX)/libexec#' packaging/systemd/holdfastd.service > $(DESTDIR)$(UNITDIR)/holdfastd.service
	chmod 0644 $(DESTDIR)$(UNITDIR)/holdfastd.service
	install -D -m 0644 -t $(DESTDIR)$(UDEVDIR) packaging/udev/70-holdfast.rules
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/varlink api/io.holdfast.Sessions.varlink
	install -D -m 0644 packaging/policy/example.toml $(DESTDIR)$(PREFIX)/share/doc/holdfast/policy.example.toml
	mkdir -p $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/vendor-completions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	bin/holdfast completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/holdfast
	bin/holdfast completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/vendor-completions/_holdfast
	bin/holdfast completion fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/holdfast.fish

test: test-fast test-vm ## everything, on real kernels too

test-fast: ## what needs no virtual machine; what needs a LUO kernel gets an emulated one
	$(GO) vet ./...
	$(GO) test ./...

test-vm: build ## on real kernels and real systemd, in virtual machines
	$(GO) test -tags vm -p 1 -timeout 80m -v ./test/kill ./test/luosim ./test/differential ./test/vm

test-kill: ## SIGKILL at each system call of a client and of holdfastd, on an emulated kernel: minutes
	$(GO) test ./test/kill -count=1 -timeout 50m -v -every

lint: ## gofmt, vet for each platform, staticcheck
	@out=$$(gofmt -l .); test -z "$$out" || { echo "not formatted: $$out"; exit 1; }
	$(GO) vet ./... && GOARCH=arm64 $(GO) vet ./... && GOOS=darwin $(GO) vet . ./liveupdate ./luosim
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

bench: build ## speed and memory, as ratios within one run: luosim's here, Holdfast's on a real kernel
	$(GO) run ./test/bench/luosim
	$(GO) run ./test/bench

demo: ## a service's memory over two updates of an emulated kernel; needs no privileges
	@mkdir -p bin
	@$(GO) build $(GOFLAGS_) -o bin/ ./demo ./cmd/holdfastd ./cmd/luosim ./examples/notebook
	@bin/demo luosim

demo-kernel: build ## the same on real kernels, 7.2 -> 7.3 -> 7.2, in a virtual machine
	$(GO) build $(GOFLAGS_) -o bin/ ./demo
	@bin/demo kernel

clean:
	rm -rf bin

# SPDX-License-Identifier: MIT

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
DESTDIR  ?=
PREFIX   ?= /usr
UNITDIR  ?= /usr/lib/systemd/system
UDEVDIR  ?= /usr/lib/udev/rules.d
LOGINDDIR ?= /usr/lib/systemd/logind.conf.d
POLICYDIR ?= /usr/lib/holdfast/policy.d
GO       ?= go
GOFLAGS_ = -trimpath -buildvcs=false -ldflags '-s -w -X github.com/holdfast-project/holdfast/internal/version.Version=$(VERSION)'

export CGO_ENABLED = 0

.PHONY: build install test test-fast test-browser test-vm test-kill lint bench demo demo-update demo-kernel demo-vm demo-memcached clean

build: ## static binaries in bin/
	mkdir -p bin
	$(GO) build $(GOFLAGS_) -o bin/ ./cmd/... ./examples/notebook ./examples/vm-manager ./examples/vmm ./examples/vmm/guest

install: build ## into $(DESTDIR), where a distribution would
	install -D -m 0755 bin/holdfast $(DESTDIR)$(PREFIX)/bin/holdfast
	install -D -m 0755 bin/holdfastd $(DESTDIR)$(PREFIX)/libexec/holdfastd
	install -D -m 0755 bin/holdfast-updated $(DESTDIR)$(PREFIX)/libexec/holdfast-updated
	install -D -m 0644 -t $(DESTDIR)$(UNITDIR) packaging/systemd/holdfastd.socket packaging/systemd/holdfast-updated.socket
	sed 's#/usr/libexec#$(PREFIX)/libexec#' packaging/systemd/holdfastd.service > $(DESTDIR)$(UNITDIR)/holdfastd.service
	sed 's#/usr/libexec#$(PREFIX)/libexec#' packaging/systemd/holdfast-updated.service > $(DESTDIR)$(UNITDIR)/holdfast-updated.service
	chmod 0644 $(DESTDIR)$(UNITDIR)/holdfastd.service $(DESTDIR)$(UNITDIR)/holdfast-updated.service
	sed 's#/usr/bin#$(PREFIX)/bin#' packaging/systemd/holdfast-quiesce.service > $(DESTDIR)$(UNITDIR)/holdfast-quiesce.service
	chmod 0644 $(DESTDIR)$(UNITDIR)/holdfast-quiesce.service
	install -D -m 0644 -t $(DESTDIR)$(UNITDIR) packaging/systemd/holdfast-run@.service
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/doc/holdfast/memcached packaging/memcached/holdfast.conf packaging/memcached/50-memcached.toml
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/libexec/holdfast-qemu packaging/qemu/start packaging/qemu/stop
	sed 's#/usr/libexec#$(PREFIX)/libexec#' packaging/qemu/holdfast-qemu@.service > $(DESTDIR)$(UNITDIR)/holdfast-qemu@.service
	chmod 0644 $(DESTDIR)$(UNITDIR)/holdfast-qemu@.service
	install -D -m 0644 packaging/systemd/logind-holdfast.conf $(DESTDIR)$(LOGINDDIR)/50-holdfast.conf
	install -D -m 0644 -t $(DESTDIR)$(POLICYDIR) packaging/policy/10-holdfast-updated.toml packaging/qemu/20-holdfast-qemu.toml
	install -D -m 0644 -t $(DESTDIR)$(UDEVDIR) packaging/udev/70-holdfast.rules
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/varlink api/io.holdfast.Sessions.varlink api/io.holdfast.Update.varlink
	install -D -m 0644 packaging/policy/example.toml $(DESTDIR)$(PREFIX)/share/doc/holdfast/policy.example.toml
	mkdir -p $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/vendor-completions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	bin/holdfast completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/holdfast
	bin/holdfast completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/vendor-completions/_holdfast
	bin/holdfast completion fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/holdfast.fish

test: test-fast test-browser test-vm ## everything, on real kernels too

test-fast: ## what needs no virtual machine; what needs a LUO kernel gets an emulated one
	$(GO) vet ./...
	$(GO) test ./...

test-browser: ## the page of a report in a real headless Chromium, which is installed if it is missing
	$(GO) vet -tags browser ./internal/report
	$(GO) test -tags browser -count=1 -run InABrowser ./internal/report

test-vm: build ## on real kernels and real systemd, in virtual machines
	$(GO) test -tags vm -p 1 -timeout 80m -v ./internal/kimage ./test/kill ./test/luosim ./test/differential ./test/vm

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

demo-update: ## an update with three participants, called off and then carried out, on an emulated kernel
	@mkdir -p bin
	@$(GO) build $(GOFLAGS_) -o bin/ ./demo ./cmd/holdfast ./cmd/holdfastd ./cmd/holdfast-updated ./cmd/luosim
	@bin/demo update

demo-kernel: build ## the same on real kernels, 7.2 -> 7.3 -> 7.2, in a virtual machine
	$(GO) build $(GOFLAGS_) -o bin/ ./demo
	@bin/demo kernel

demo-vm: build ## a virtual machine of QEMU that goes on after its host's kernel was changed, 7.2 -> 7.3 -> 7.2
	$(GO) build $(GOFLAGS_) -o bin/ ./demo ./examples/vmm ./examples/vmm/guest
	@bin/demo vm

demo-memcached: build ## a memcached with all of its keys after an update, 7.2 -> 7.3, and with none after a kexec without Holdfast
	$(GO) build $(GOFLAGS_) -o bin/ ./demo
	@bin/demo memcached

clean:
	rm -rf bin

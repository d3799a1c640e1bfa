# Everything runs against a throw-away PostgreSQL: the one of DATABASE_URL, or
# what internal/testdb finds on this machine, in Docker or as a download.
TESTDB := go -C internal/testdb run .

# Flags and packages for go test: make test ARGS='-run TestDo -v .'
ARGS ?= ./...

# One package at a time: some tests count what the server writes.
GOTEST := go test -p 1

# PostgreSQL's major versions, and the modes in which pgx can send a query:
# make test-matrix VERSIONS="14 18", make test-modes MODES=exec
VERSIONS ?= 14 15 16 17 18
MODES ?= cache_statement cache_describe describe_exec exec simple_protocol
POOLER_MODES ?= cache_describe exec simple_protocol

MODULES := $(patsubst ./%/go.mod,%,$(shell find . -mindepth 2 -name go.mod | sort))
GOVULNCHECK := go run golang.org/x/vuln/cmd/govulncheck@v1.9.0
STATICCHECK := go run honnef.co/go/tools/cmd/staticcheck@v0.8.2

.NOTPARALLEL:
.PHONY: help demo serve test test-race test-isolation test-matrix test-modes test-pgbouncer test-tables test-citus test-long test-modules test-docker bench bench-scale bench-variants bench-report bench-once fmt lint release-check release deps vulncheck mutations ci

help: ## show this list (default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## run the example: two processes of a payments API behind a bad network, and a card provider
	$(TESTDB) -C examples/payments -- go run .

# Not with "go run": interrupted, it fails even where its program ends well. The
# shell has to outlive the Ctrl-C too, and PostgreSQL's user to read the programs.
serve: ## run the payments API of the example, to try it with curl
	@set -e; bin=$$(mktemp -d); trap : INT; trap 'rm -rf "$$bin"' EXIT; chmod 755 "$$bin"; \
	go -C internal/testdb build -o "$$bin/testdb" .; go -C examples/payments build -o "$$bin/payments" .; \
	cd internal/testdb; "$$bin/testdb" -C examples/payments -- "$$bin/payments" serve -examples

test: ## test the root module
	$(TESTDB) -- $(GOTEST) $(ARGS)

test-race: ## the same under the race detector
	IDEMPOTENCY_TEST_ISOLATION="$(ISOLATION)" IDEMPOTENCY_TEST_TABLE=$(TABLE) $(TESTDB) $(if $(VERSION),-version $(VERSION)) \
		$(if $(MODE),-mode $(MODE)) $(SOCKET) -- $(GOTEST) -race $(ARGS)

# SERIALIZABLE through a Unix socket, where a server that has hung up is noticed otherwise.
LEVELS ?= "repeatable read" serializable
test-isolation: ## test the root package on the stricter isolation levels (needs PostgreSQL's binaries)
	set -e; for l in $(LEVELS); do socket=; [ "$$l" != serializable ] || socket=-socket; \
		IDEMPOTENCY_TEST_ISOLATION="$$l" $(TESTDB) $$socket -- go test -count=1 .; done

test-matrix: ## test all but the demo on each PostgreSQL of VERSIONS
	set -e; for v in $(VERSIONS); do $(TESTDB) -version $$v -- $(GOTEST) -count=1 . ./migrations ./doctor ./cmd/...; done

test-modes: ## test the root package in each query exec mode of pgx
	set -e; for m in $(MODES); do $(TESTDB) -mode $$m -- go test -count=1 .; done

# Left out is what runs migrations on DATABASE_URL, since they need a direct connection, and
# the storm, in which PgBouncer before 1.20 may end by itself: a client that sends a cancel
# request and hangs up at once is closed twice (its issue 801).
test-pgbouncer: ## test the root package and the doctor through PgBouncer (which must be installed)
	$(TESTDB) -pgbouncer -- go test -count=1 -run TestPoolerThatBreaksPreparedStatementsIsFound ./doctor
	set -e; for m in $(POOLER_MODES); do $(TESTDB) -pgbouncer -mode $$m -- \
		go test -count=1 -skip '^Example|^TestProgramOfTheReadme|InAStormOfKills' .; done

test-tables: ## test the root package on a partitioned table, with the statements for Citus (which is not there)
	IDEMPOTENCY_TEST_TABLE=distributed IDEMPOTENCY_TEST_ISOLATION="$(TABLES_LEVEL)" $(TESTDB) -- go test -count=1 .

test-citus: ## test each operation on a Citus cluster: make test-citus CITUS_URL=postgres://...
	@test -n "$(CITUS_URL)" || { echo "CITUS_URL is not set: docker compose --profile citus up -d --wait, then CITUS_URL=postgres://postgres:postgres@127.0.0.1:5433/postgres"; exit 1; }
	CITUS_URL="$(CITUS_URL)" go test -count=1 -v ./internal/citus

test-long: ## the tests under faults and storms, at full length (twenty minutes)
	IDEMPOTENCY_TEST_LONG=1 $(TESTDB) -- go test -count=1 -timeout 30m -v \
		-run 'Terminated|Storm|HotKeys|DistinctKeys|Purgers|Schedules|Seam|AnywhereNeedsNoRepair' . ./migrations
	HISTORY_TIME=90s $(TESTDB) -C internal/history -- go test -count=1 -timeout 30m -v -run 'Histories|Redundant|Mutations' .
	IDEMPOTENCY_TEST_LONG=1 $(TESTDB) -C internal/failover -- go test -count=1 -timeout 15m -v \
		-run 'PrimaryLost|LimitDuplicate' .

test-modules: ## test the nested modules
	set -e; for m in $(MODULES); do $(TESTDB) -C $$m -- $(GOTEST) -timeout 20m ./...; done

test-docker: ## test internal/testdb's Docker source, and the examples on it
	go -C internal/testdb test -count=1 -run TestDocker . -docker
	$(TESTDB) -source docker -- go test -count=1 -run '^Example|^TestProgramOfTheReadme' .

# Not part of ci: an hour or two. ONLY is a list of internal/mutations/testdata, or one and
# a file: ONLY=doctor/vacuum.go. DIFF is a commit: then it breaks the lines that have changed
# since. MUTATIONS is flags: -record, -new, -apply, -run NAME.
mutations: ## break the code in small ways and name the test that notices: ONLY=doctor, or DIFF=main
	$(TESTDB) -- go run ./internal/mutations $(if $(ONLY),-only $(ONLY)) $(if $(DIFF),-diff $(DIFF)) $(MUTATIONS)

bench-once: ## run each benchmark for one iteration, so that none rots
	set -e; for m in . $(MODULES); do grep -rq --include='*_test.go' '^func Benchmark' $$m || continue; \
		$(TESTDB) -C $$m -- go test -run '^$$' -bench . -benchtime 1x ./...; done

# BENCH is flags of bench run: make bench BENCH='-peers idempotency -rounds 50'
bench: ## measure the package beside its peers: docs/benchmarks.md (minutes)
	$(TESTDB) -C bench -- go run . run $(BENCH)

# With a DATABASE_URL of your own it can be interrupted and goes on later.
ROWS ?= 200000
bench-scale: ## measure a table that has grown: ROWS=20000000 (40 minutes)
	$(TESTDB) -C bench -- go run . scale -rows $(ROWS) -kept=$(if $(DATABASE_URL),true,false) $(BENCH)

# BENCH is flags of bench/variants: make bench-variants BENCH='-sections statements'
bench-variants: ## measure other tables and statements beside ours: docs/benchmarks/variants.md (minutes)
	$(TESTDB) -C bench -- go run ./variants $(BENCH)

bench-report: ## renew docs/benchmarks.md and its charts from the newest runs
	go -C bench run . report

fmt: ## format all Go files
	gofmt -w .

lint: ## check the format, go vet and staticcheck, in all modules
	@test -z "$$(gofmt -l .)" || { echo "not formatted (make fmt):"; gofmt -l .; exit 1; }
	set -e; for m in . $(MODULES); do (cd $$m && go vet ./... && $(STATICCHECK) ./...); done

release-check: ## install what is in the checkout, as its users do after a release
	$(TESTDB) -C internal/release -- go run . check

release: ## commit and tag a version, and push nothing: make release VERSION=v0.2.0
	go -C internal/release run . $(VERSION)

deps: ## check that the root package needs pgx only
	.ci/deps

# Not part of ci: it asks vuln.go.dev, which is not reachable everywhere.
vulncheck: ## look for known vulnerabilities in what each module calls
	set -e; for m in . $(MODULES); do (cd $$m && echo "$$m" && $(GOVULNCHECK) ./...); done

# Each version, level, mode and kind of table once, together with something else: the oldest
# version with the race detector, SERIALIZABLE, a Unix socket, the simple protocol and
# partitions; the statements for Citus with REPEATABLE READ; what poolers recommend behind one.
# .ci/fresh runs the demo, and tests Debian's version and the newest as they are. The command
# and the migrations have nothing for the race detector: the tests of the one run a binary
# that is not built for it, and the other starts no goroutine.
ci: TABLES_LEVEL = repeatable read
ci: POOLER_MODES = cache_describe
ci: lint deps release-check bench-once test-docker test-modules test-tables test-pgbouncer ## all of it, but for what only repeats at greater length
	$(MAKE) test-race VERSION=14 ISOLATION=serializable MODE=simple_protocol SOCKET=-socket TABLE=partitioned ARGS=.
	$(MAKE) test-race VERSION=14 ARGS="$(filter-out %/idempotency %/migrations,$(shell go list ./...))"

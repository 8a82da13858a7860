# Everything starts here, from a clean checkout. `make` lists the targets.
.DELETE_ON_ERROR:
PYTHON = python3
VENV = .venv/bin/python
PYTEST = .venv/bin/pytest --basetemp=var/test
BENCH = PYTHONPATH=.:tests/support $(VENV)
INSTALL = apt-get install -y --no-install-recommends

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

setup: packages .venv/run ## install everything that `make run` needs, and build the equipment
	@$(MAKE) -s -C validator

run: setup ## start broker, equipment and service; Ctrl-C stops them
	@exec $(VENV) -m kit.desk

check: lint ## check style and types, and run the unit tests on SQLite, in 20 seconds
	@mkdir -p var
	$(PYTEST) -n 2 --sqlite-only -m 'not fault' tests/unit

fix: .venv/dev ## apply ruff's fixes, and format the Python and the C
	.venv/bin/ruff check --fix
	.venv/bin/ruff format
	.venv/bin/clang-format -i validator/*.[ch]

test: lint setup browser ## run every check and every test on both databases, in four minutes
	@$(MAKE) -s -C validator lint validator-asan test_rules
	@mkdir -p var
	$(PYTEST) -n 5 --dist worksteal -m 'not fault'

test-faults: .venv/dev setup ## inject each fault many times under load, and print a table
	@mkdir -p var
	FAULTS=full $(PYTEST) tests/simulation tests/unit/test_hostile_*.py tests/unit/test_backup.py \
	    tests/system/test_faults_*.py

simulate: .venv/dev ## run new worlds in one thread: SEED=7 STEPS=1000000; EVENTS=<file> repeats one
	@PYTHONHASHSEED=0 PYTHONPATH=.:tests/support:tests/simulation $(VENV) tests/simulation/simulate.py \
	    $(if $(SEED),--seed "$(SEED)") $(if $(STEPS),--steps "$(STEPS)") $(if $(EVENTS),--events "$(EVENTS)")

coverage: .venv/dev setup browser ## run every test and print the lines and branches that didn't run
	@$(MAKE) -s -C validator validator-asan test_rules
	@mkdir -p var
	@rm -f var/coverage*
	.venv/bin/coverage run -m pytest --basetemp=var/test -n 5 --dist worksteal
	.venv/bin/coverage combine -q
	.venv/bin/coverage report

docker-test: .venv/dev ## build the containers, run them, break them, and remove them
	@sh tests/system/docker-test.sh
	@sh tests/system/docker-replicas-test.sh

bench: .venv/dev setup ## measure the service in 3 minutes; AGAINST=<commit> compares it with another release
	@$(BENCH) tests/bench/run.py --against "$(AGAINST)"

soak: .venv/dev setup ## run a year in ten minutes, with retention and faults, and print the growth
	@$(BENCH) tests/bench/soak.py

backup: .venv/run ## copy the database while the service runs, and print the name of the copy
	@$(VENV) -m kit.backup

restore: .venv/run ## replace the database with a backup: make restore FILE=var/energy2go-….db
	@mkdir -p var
	@$(VENV) -m kit.backup restore "$$FILE"

fuzz: setup fuzzer ## send random questions to the equipment's rules for a minute
	@$(MAKE) -s -C validator fuzz

clean: ## remove installed packages and built files; the data in var/ stays
	rm -rf .venv .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -r {} +
	@$(MAKE) -s -C validator clean

lint: .venv/dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

# Install the apt packages in $@. This takes root or sudo.
define APT
{ if [ "$$(id -u)" = 0 ]; then sudo=; else sudo=$$(command -v sudo); fi && echo "installing $$*" && \
    $$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive $(INSTALL) -qq "$$@" >/dev/null; } || \
    { echo "These packages are missing. As root, run: $(INSTALL) $$*" >&2; exit 1; }
endef

# Install missing apt packages.
packages:
	@set --; \
	PATH="$$PATH:/usr/sbin"; \
	command -v mosquitto_passwd >/dev/null || set -- $$@ mosquitto; \
	command -v mosquitto_pub >/dev/null || set -- $$@ mosquitto-clients; \
	command -v cc >/dev/null || set -- $$@ gcc; \
	command -v curl >/dev/null || set -- $$@ curl; \
	command -v openssl >/dev/null || set -- $$@ openssl; \
	for header in stdio.h:libc6-dev mosquitto.h:libmosquitto-dev jansson.h:libjansson-dev; do \
	    [ -e /usr/include/$${header%:*} ] || set -- $$@ $${header#*:}; \
	done; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || set -- $$@ python3-venv; \
	$(PYTHON) -c 'import sysconfig; open(sysconfig.get_path("include") + "/Python.h").close()' 2>/dev/null || \
	    set -- $$@ python3-dev; \
	[ $$# = 0 ] || { $(APT); }

# Install packages for tests only: the browser, PostgreSQL, the proxy, Prometheus, tools in the documents.
browser:
	@set --; \
	PATH="$$PATH:/usr/sbin"; \
	command -v chromium >/dev/null || set -- $$@ chromium; \
	command -v nginx >/dev/null || set -- $$@ nginx; \
	command -v jq >/dev/null || set -- $$@ jq; \
	command -v npm >/dev/null || set -- $$@ npm; \
	command -v sqlite3 >/dev/null || set -- $$@ sqlite3; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || set -- $$@ postgresql; \
	[ $$# = 0 ] || { $(APT); }
	@command -v promtool >/dev/null || $(MAKE) -s .venv/prometheus
	@$(MAKE) -s .venv/fetch-event-source

# Only unpack Prometheus: its package would leave a daemon on port 9090.
.venv/prometheus:
	@echo "downloading prometheus"
	@rm -rf $@.new && mkdir -p $@.new && cd $@.new && { apt-get download -qq prometheus 2>/dev/null || \
	    { if [ "$$(id -u)" = 0 ]; then sudo=; else sudo=$$(command -v sudo); fi && \
	    $$sudo apt-get update -qq && apt-get download -qq prometheus; }; } && dpkg -x prometheus_*.deb . && rm -f *.deb
	@mv $@.new $@

# For a client in docs/http.md.
.venv/fetch-event-source:
	@rm -rf $@.new && mkdir -p $@.new && cd $@.new && npm pack -s @microsoft/fetch-event-source@2.0.1 >/dev/null && \
	    tar -xzf *.tgz --strip-components=1
	@mv $@.new $@

# libFuzzer's package has clang's version in its name.
fuzzer:
	@command -v clang >/dev/null || { set -- clang; $(APT); }
	@[ -e "$$(clang -print-file-name=libclang_rt.fuzzer-$$(uname -m).a)" ] || \
	    { set -- "libclang-rt-$$(clang -dumpversion | cut -d. -f1)-dev"; $(APT); }

# .venv/run marks that requirements.txt is installed, .venv/dev that requirements-dev.txt is.
# If installing into a working .venv fails (no network), warn and keep using it.
.venv/run: requirements.txt | packages
	@$(VENV) -c '' 2>/dev/null || { $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or \
	    sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 …")' && \
	    rm -f .venv/bin/python* && $(PYTHON) -m venv .venv; }
	@$(call PIP,requirements.txt)

.venv/dev: requirements-dev.txt .venv/run
	@$(call PIP,requirements-dev.txt)

# pip only starts changing .venv once it has downloaded everything.
define PIP
echo "installing $(1)"; \
if $(VENV) -m pip install -q --disable-pip-version-check -r $(1); then touch $@; \
elif [ -e $@ ]; then echo "$(1) could not be installed; .venv stays as it was." >&2; \
else exit 1; fi
endef

.PHONY: help setup run check fix test test-faults coverage docker-test bench simulate soak backup restore fuzz clean lint \
    packages browser fuzzer

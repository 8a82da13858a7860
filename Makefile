# Everything from a clean checkout: `make` says what there is.
.DELETE_ON_ERROR:
PYTHON = python3
WITH_ENV = .venv/bin/dotenv -f .env run --no-override --
SUDO = $(shell [ "$$(id -u)" = 0 ] || echo sudo)
INSTALL = DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends
APT = $(SUDO) sh -c 'echo "installing $$*" && apt-get update -qq && $(INSTALL) "$$@" >/dev/null' apt-get

help: ## print this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

setup: .venv/installed ## install what is missing and build the equipment
	@$(MAKE) -s -C validator

run: setup ## start broker, equipment and service; Ctrl-C stops them
	@$(WITH_ENV) .venv/bin/python settings.py
	@exec $(WITH_ENV) .venv/bin/honcho -e /dev/null start

test: lint browser ## run every test
	@$(MAKE) -s -C validator validator-asan test_rules
	@mkdir -p var
	.venv/bin/pytest -n 3 --dist worksteal --basetemp=var/test

test-faults: setup ## inject every fault many times under load, and print a table
	@mkdir -p var
	FAULTS=full .venv/bin/pytest tests/test_faults.py --basetemp=var/test

bench: setup ## measure speed and growth against a bare route, in four minutes
	@PYTHONPATH=.:tests .venv/bin/python bench/run.py

soak: setup ## send 200,000 transactions, and watch the memory
	@PYTHONPATH=.:tests .venv/bin/python bench/soak.py

fuzz: setup fuzzer ## throw generated questions at the equipment's rules for a minute
	@$(MAKE) -s -C validator fuzz

docker-test: ## build the containers, use and hurt them, take them down
	@sh tests/docker-test.sh

lint: setup ## check the style of the Python and the warnings of the C
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	@$(MAKE) -s -C validator lint

clean: ## remove what was installed here and built; the data in var/ stays
	rm -rf .venv .ruff_cache __pycache__ tests/__pycache__
	@$(MAKE) -s -C validator clean

# What apt has to bring, where it is missing.
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
	[ $$# = 0 ] || { $(APT) "$$@"; }

# What only tests need: the browser, the other database, the proxy.
browser:
	@set --; \
	PATH="$$PATH:/usr/sbin"; \
	command -v chromium >/dev/null || set -- $$@ chromium; \
	command -v nginx >/dev/null || set -- $$@ nginx; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || set -- $$@ postgresql; \
	[ $$# = 0 ] || { $(APT) "$$@"; }

# libFuzzer is in a package of clang's own version.
fuzzer:
	@command -v clang >/dev/null || { $(APT) clang; }
	@[ -e "$$(clang -print-file-name=libclang_rt.fuzzer-$$(uname -m).a)" ] || \
	    { $(APT) "libclang-rt-$$(clang -dumpversion | cut -d. -f1)-dev"; }

.venv/installed: requirements.txt requirements-postgres.txt requirements-dev.txt | packages
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("PYTHON: 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install -q --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.PHONY: help setup run test test-faults bench soak fuzz docker-test lint clean packages browser fuzzer

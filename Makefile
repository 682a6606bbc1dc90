# freshet: `make run` and `make test` set up all they need in .venv, from the lock file.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: run test lint bench chaos lock kafka kafka-broker kubernetes-schema clean

run: $(INSTALLED)
	$(BIN)/freshet run $(ARGS)

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.together $(ARGS)

# Many faults over many events; prints a report and writes chaos.json. ARGS='--faults 30 --events 200000' for less.
chaos: $(INSTALLED)
	$(BIN)/python -m tests.fuzz
	$(BIN)/python -m tests.faults.chaos $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

# All that is measured: two hours or so on 2 cores, which should have nothing else to do. Makes .venv-bytewax on first use.
# The comparison takes half of it; `python -m benchmarks.compare --rounds 1 --events 500000` gives an idea in a few minutes.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.compare
	$(BIN)/python -m benchmarks.steps
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.scaling --tiles
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.first_state
	$(BIN)/python -m benchmarks.republish
	$(BIN)/python -m benchmarks.sizing
	$(BIN)/python -m benchmarks.ranking --every 10
# Minutes: 2, 6, 12, 5, 3 and 31. The last exits with 1 where memory grew, so it comes last.
	$(BIN)/python -m benchmarks.publish
	$(BIN)/python -m benchmarks.freshness
	$(BIN)/python -m benchmarks.checkpoints
	$(BIN)/python -m benchmarks.restart
	$(BIN)/python -m benchmarks.lookups
	$(BIN)/python -m benchmarks.memory

# What `--source kafka:TOPIC` needs: Flink's connector, by Maven, its checksum compared.
kafka:
	@command -v mvn >/dev/null || { echo "make kafka fetches Flink's connector with Maven: install it (mvn)"; exit 1; }
	mvn --batch-mode --no-transfer-progress --quiet -f deploy/kafka/pom.xml -P connector package || { rm -f deploy/kafka/jars/*.jar; exit 1; }
	@echo "deploy/kafka/jars has the connector"

# What the tests in tests/kafka need besides: the jars of a broker.
kafka-broker: kafka
	mvn --batch-mode --no-transfer-progress --quiet -f deploy/kafka/pom.xml -P broker package
	cd deploy/kafka/broker && sha256sum --check --quiet --strict ../broker.sha256
	@echo "deploy/kafka/broker has a broker"

# What tests/test_deploy.py holds the deployment for Kubernetes to.
kubernetes-schema:
	mvn --batch-mode --no-transfer-progress --quiet -f deploy/kubernetes/pom.xml process-resources

# The lock file pins the whole tree, with hashes; the project itself is installed on top of it.
$(INSTALLED): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "freshet needs Python 3.11: install it, or make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/freshet warm-up
	touch $@

lock: $(INSTALLED)
	$(BIN)/python -m pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --upgrade --allow-unsafe --extra=dev --extra=job --generate-hashes --strip-extras \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file=requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .venv-bytewax .freshet build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.DEFAULT_GOAL := help
.PHONY: help setup up test check format lock clean bench-functions bench-transactions bench-plans proof-crash proof-bank

help: ## show these targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

setup: ## fetch what the lock files name, build the script of the isolates
	@python3 scripts/setup

up: setup ## start the whole system here; Ctrl-C stops it
	@.venv/bin/neolayer up

test: setup ## run the tests; ARGS='tests/chain -k fees' picks some
	@.venv/bin/python -m pytest $(ARGS)

check: setup ## linters and types
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

format: setup ## let ruff lay out the code
	@.venv/bin/ruff check --fix --exit-zero .
	@.venv/bin/ruff format .

lock: ## write requirements.lock anew; ARGS=--upgrade takes the newest versions
	@python3 scripts/setup lock $(ARGS)

bench-functions: setup ## measure functions: against workerd, cold starts, many tenants, canaries; needs wrk
	@.venv/bin/python -m perf.functions --write docs/performance/functions.md
	@.venv/bin/python -m perf.switches --write docs/performance/switches.md
	@.venv/bin/python -m perf.cold --write docs/performance/cold.md
	@.venv/bin/python -m perf.crowd --write docs/performance/crowd.md
	@.venv/bin/python -m perf.canaries

bench-transactions: setup ## measure transactions: a full queue, grouping, following, neo-mamba; 25 minutes; ARGS='--only b'
	@.venv/bin/python -m perf.transactions --write docs/performance/transactions.md $(ARGS)

bench-plans: setup ## measure each statement of the queue with 1,000,000 transactions; ARGS='--rows 100000'
	@.venv/bin/python -m perf.plans --write docs/performance/plans.md $(ARGS)

proof-crash: setup ## 1,000 transfers, 50 kills, 200 lost answers: each effect once; ARGS='--seed 1' replays
	@.venv/bin/python -m perf.crash $(ARGS)

proof-bank: setup ## 10,000 transfers, cancels and kills: records agree with the chain; ARGS='--seed 1' replays
	@.venv/bin/python -m perf.bank $(ARGS)

clean: ## remove everything that was made here, the data in .neolayer/ included
	@python3 scripts/setup clean

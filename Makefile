# One command does one job; each sets up what it needs.
#   make demo    RECAP on the embedded default: demonstrations, SFT, three rounds, table, report, videos
#   make setup   .venv with Python 3.12 and the pinned packages; TORCH=cpu make setup: torch's build for CPUs
#   make test    the test suite            make lint    format check, lint, types
#   make test-pages   of these, the pages in a browser (Debian: apt-get install chromium)
#   make test-documents   the commands of the requirement documents, word for word (half an hour)
#   make test-real   the real size with random weights: 16 GiB of memory, 50 GB of disk, LIBERO's assets;
#                    ONLY="load recap ..." some of the checks, KEEP=DIR what is made stays
#                    there, so that RECAP goes on where it was killed
#   make test-cluster   runs on two machines (network namespaces: Linux, root) and in shards, 14 minutes
#   make test-faults   the faults of docs/reliability.md, slow ones too, then 3 kills of each script, 15 minutes
#   make benchmark   every figure of speed beside its rival, one page (outputs/benchmark.md): half an hour,
#                    2 cores with nothing beside; with LIBERO_ASSETS also LIBERO's
#   make gpu-check   GPU tests, then exactness, latency and rates of the real size on one GPU (not run on one yet)
#   make check   lint, then test           make format  rewrite the files as the linter wants them
PYTHON := .venv/bin/python

.PHONY: demo setup lint format test benchmark test-real test-cluster test-faults test-pages test-slow test-documents gpu-check check clean
setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt tools/setup.sh
	@sh tools/setup.sh

lint: setup
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m basedpyright

format: setup
	@$(PYTHON) -m ruff format .
	@$(PYTHON) -m ruff check --fix .

demo: setup
	@OMP_NUM_THREADS=1 $(PYTHON) train_ript_pi0_final.py --config_path configs/demo.yaml

test: setup
	@$(PYTHON) -m pytest -n 2 --dist loadfile

test-pages: setup
	@$(PYTHON) -m pytest tests/test_pages.py -rs

benchmark: setup
	@OMP_NUM_THREADS=1 $(PYTHON) benchmarks/page.py $(if $(ONLY),--only $(ONLY))

gpu-check:
	@python3 tools/gpu_check.py --output gpu_check.json

test-documents: setup
	@$(PYTHON) -m pytest -m 'slow or not slow' tests/test_documents.py

test-real: setup
	@$(PYTHON) benchmarks/real_size.py $(if $(ONLY),--only $(ONLY)) $(if $(KEEP),--keep $(KEEP)/checkpoint)

# In this order: once the plans of the last file have computed gradients here, torch refuses to be forked.
test-cluster: setup
	@$(PYTHON) -m pytest -m 'slow or not slow' -rs $(wildcard tests/test_sharding*.py) tests/test_machines.py tests/test_cluster.py

test-faults: setup
	@$(PYTHON) tests/faults/fault_table.py run
	@for script in 13 final train eval; do \
		$(PYTHON) tools/kill_loop.py --script $$script --kills 3 --seed 0 || exit 1; \
	done

test-slow: setup
	@$(PYTHON) -m pytest -m slow

check: lint test

clean:
	rm -rf .venv .cache

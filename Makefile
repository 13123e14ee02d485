# make demo   a bundled robot learns from the bundled clip on the CPU, a few minutes after installation
# make test   everything is set up and tested, against the built wheel
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
DEMO := runs/demo
BENCHMARKS := align encoder looks physics render reward_fidelity sac scaling silhouette soak train
SIZE := --quick
LOOPS := simplify-while-loops,while-loop-invariant-code-motion,while-loop-constant-sinking
QUICK := --xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0 \
    --xla_cpu_parallel_codegen_split_count=4 --xla_disable_hlo_passes=$(LOOPS)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test types suite test-slow lint wheel docs bench student clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a minute or two) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --upgrade "pip>=25" > $(VENV)/install.log 2>&1 || (cat $(VENV)/install.log; exit 1)
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]" > $(VENV)/install.log 2>&1 \
	    || (cat $(VENV)/install.log; exit 1)
	@touch $@

demo: setup
	rm -rf $(DEMO)
	$(BIN)/nil-jax train unitree_a1 examples/a1_prowl.mp4 --output $(DEMO) --num-timesteps 75000 --num-evals 3 \
	    --grad-updates-per-step 16
	@echo "Look at $(DEMO)/comparison.mp4 and $(DEMO)/curves.png"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The tests run against the built wheel, from a folder without the sources: what ships is what is checked.
wheel: setup
	rm -rf build/wheel build/check && mkdir -p build
	$(BIN)/python -m build --wheel --outdir build/wheel . > build/wheel.log 2>&1 || (cat build/wheel.log; exit 1)
	$(BIN)/pip install --quiet --no-deps --target build/check build/wheel/*.whl

# The suite waits for XLA most of its time: its former CPU emitters, no optimisation, and loops that stay as they are
# compile in less than half of it.
test: lint
	@$(MAKE) --no-print-directory -j2 types suite

types: wheel
	$(BIN)/pyright --pythonpath $(BIN)/python build/check/nil_jax

suite: wheel
	mkdir -p build/empty
	cd build/empty && PYTHONPATH=$(CURDIR)/build/check XLA_FLAGS="$(XLA_FLAGS) $(QUICK)" \
	    $(BIN)/python -m pytest $(CURDIR)/tests \
	    -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) -p no:cacheprovider \
	    -n 2 --dist loadscope --no-loadscope-reorder -m "not slow" $(ARGS)

test-slow: wheel
	mkdir -p build/empty
	cd build/empty && PYTHONPATH=$(CURDIR)/build/check $(BIN)/python -m pytest $(CURDIR)/tests \
	    -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) -p no:cacheprovider --timeout 7200 -m slow $(ARGS)

# The reference of the API: docs/api.md, and HTML pages.
docs: setup
	$(BIN)/python docs/make_api.py
	$(BIN)/python docs/make_api.py build/docs
	@echo "Open build/docs/index.html"

# SIZE=--full for the sizes that are reported, which take hours on a CPU. What lacks its data says so and is left out.
bench: setup
	rm -rf build/bench && mkdir -p build/bench
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py $(SIZE) --json build/bench/$$name.json; done
	for name in unitree_h1 talos unitree_a1; do for script in table sim_to_sim; do \
	    $(BIN)/python benchmarks/$$script.py $$name/walk $(SIZE) --json build/bench/$$script-$$name.json; done; done
	$(BIN)/python benchmarks/results.py build/bench/*.json

# The encoder that ships in rewards/assets; it took 80 minutes on two cores that did other work too.
student: setup
	$(BIN)/nil-jax distill unitree_h1 unitree_a1 talos unitree_g1 ant --teacher i3d --output build/student

clean:
	rm -rf build runs *.egg-info

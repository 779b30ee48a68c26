# On a fresh machine, run `make train` or `make test`. They make the virtual environment themselves.
.DEFAULT_GOAL := help
.PHONY: help train test test-slow docs lint format bench kills learning endurance sanitize test-peers test-ray test-lowest clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGE_FILES := setup.py pyproject.toml constraints.txt

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# A stamp file for each set of packages. If the pinned versions change, packages are installed again.
$(VENV)/.installed: $(PACKAGE_FILES)
	@echo "setting up $(VENV), which takes some minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[classic-control,video,export,report,dev]'
	@touch $@

$(VENV)/.peers: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[classic-control,video,export,report,dev,box2d,mujoco,atari,minigrid,bench]'
	@touch $@

$(VENV)/.ray: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[classic-control,video,export,report,dev,ray,tune]'
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[classic-control,video,export,report,dev,docs]'
	@touch $@

train: $(VENV)/.installed  ## train the main job, CartPoleNoVel-v1, from scratch; ARGS="..." adds options
	$(BIN)/python train.py $(ARGS)

PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

test: $(VENV)/.installed  ## run the tests, on all cores, without the slow ones: 10 to 20 minutes on two cores
	$(PYTEST) -m 'not peers and not ray and not slow' $(ARGS)

test-slow: $(VENV)/.installed  ## run the tests that `make test` leaves out, 10 to 20 minutes on two cores
	$(PYTEST) -m 'slow and not peers and not ray' $(ARGS)

docs: $(VENV)/.docs  ## build the documentation site in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/mkdocs build $(ARGS)

lint: $(VENV)/.installed  ## check format, types and imports between rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-peers: $(VENV)/.peers  ## the tests that need Stable-Baselines3 and Box2D, which are large
	$(BIN)/python -m pytest -m peers $(ARGS)

# Each starts a cluster with several processes of its own.
test-ray: $(VENV)/.ray  ## the tests that start clusters of Ray, all on this machine
	RAY_AUTH_MODE=disabled $(PYTEST) -m ray $(ARGS)

# uv finds the lowest versions that pyproject.toml allows for direct dependencies, and the newest ones of all others.
LOWEST := $(VENV)-lowest
$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct --python $(LOWEST)/bin/python \
		--extra test --extra classic-control --extra video --extra report pyproject.toml --output-file $(LOWEST)/lowest.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --requirement $(LOWEST)/lowest.txt
	@touch $@

test-lowest: $(LOWEST)/.installed  ## run the tests with the lowest versions that pyproject.toml allows
	PYTHONPATH=. $(LOWEST)/bin/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

# Python is not built for sanitizers, so the sanitizer's library is preloaded, together with the C++ library whose `throw`
# it replaces. Some checks of UndefinedBehaviorSanitizer are off, because TensorFlow's headers do not compile with them.
# ThreadSanitizer sees only threads that are compiled for it, and TensorFlow's are not, so a program starts its own.
SANITIZED_TESTS := tests/lstm/test_kernel.py tests/lstm/test_kernel_choice.py tests/policies/test_policies.py tests/policies/test_convolution.py tests/policies/test_pixels.py tests/policies/test_convolution_operations.py tests/policies/test_acting_on_images.py -p no:cacheprovider
TF_FLAGS = $(shell TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -c "import tensorflow as tf; c = tf.sysconfig; \
	print(*c.get_compile_flags(), *c.get_link_flags(), '-Wl,-rpath,' + c.get_lib())" 2>/dev/null)

sanitize: $(VENV)/.installed  ## run the kernel's tests under sanitizers, about 10 minutes
	mkdir -p build/tsan
	cd rl_lnlstm/lstm/kernel && $(CXX) ../../../tests/lstm/kernel_threads.cc launch.cc core_generic.cc -std=c++17 -O1 -g -w -DNDEBUG -fsanitize=thread -pthread $(TF_FLAGS) \
		-o $(CURDIR)/build/tsan/kernel_threads
	build/tsan/kernel_threads
	RL_LNLSTM_CACHE=$(CURDIR)/build/asan LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:use_sigaltstack=0 RL_LNLSTM_CXXFLAGS='-fsanitize=address -g' \
	$(BIN)/python -m pytest $(SANITIZED_TESTS)
	RL_LNLSTM_CACHE=$(CURDIR)/build/ubsan LD_PRELOAD="$$($(CXX) -print-file-name=libubsan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	RL_LNLSTM_CXXFLAGS='-fsanitize=undefined -fno-sanitize=null,nonnull-attribute,returns-nonnull-attribute -fno-sanitize-recover=undefined -g' \
	$(BIN)/python -m pytest $(SANITIZED_TESTS)

bench: $(VENV)/.peers  ## compare with peers, and record it in benchmarks/RESULTS.md
	$(BIN)/python benchmarks/layer.py --record
	$(BIN)/python benchmarks/ppo.py --record
	$(BIN)/python benchmarks/ppo.py --env-id ALE/Pong-v5 --iterations 8 --rounds 3 --record

kills: $(VENV)/.installed  ## kill a run at 20 random moments and resume it: the result must equal an uninterrupted run
	RL_LNLSTM_KILLS=20 $(BIN)/python -m pytest tests/commands/test_resume.py -s -k killed $(ARGS)

learning: $(VENV)/.installed  ## train presets over five seeds, about 40 minutes, and record the scores in benchmarks/RESULTS.md
	$(BIN)/python benchmarks/learning.py --record --picture docs/images/learning_curve.png

endurance: $(VENV)/.installed  ## memory over 2,000 iterations, and learning in environments that fail; about 10 minutes
	$(BIN)/python benchmarks/endurance.py --record --seeds 2

clean:  ## remove everything that the targets above made
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

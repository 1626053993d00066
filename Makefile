# make demo   collect, train and plan on the rope; says where the report lies
# make test   every feature once, in parallel, with the same examples in each run
# make test-all    test and all that follow, fuzz excepted
# make test-slow   what takes long or waits in real time: kills, resumes, Ray, Open3D, training
# make test-ros2   an arm behind ROS 2, from wheels in .venv-ros2, in a network of its own
# make test-ros1   an arm behind ROS 1, from Debian's packages, likewise
# make fuzz   the property tests with random examples; SEED=N replays one search
# make lint   ruff, mypy, import-linter, the words of .ci/words.txt
# make clean  remove .venv, caches and build products; runs/ stays
# Each makes .venv first, and installs a library for drawing without a screen where it can.

EPISODES ?= 1500
STEPS ?= 1000
GOALS ?= 40
DEMO ?= runs/demo

PYTHON3 ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Python compiles what it imports; to compile everything at once takes almost half of the install.
PIP := --quiet --disable-pip-version-check --no-compile
ROS2 := .venv-ros2
ROS2_PACKAGES := "ros-rclpy[fastrtps]" ros-sensor-msgs ros-trajectory-msgs ros-geometry-msgs \
  ros-nav-msgs ros-diagnostic-msgs ros-std-srvs
ROS1 := .venv-ros1
ROS1_PACKAGES := python3-rospy python3-roslaunch python3-rosbag python3-sensor-msgs \
  python3-trajectory-msgs python3-geometry-msgs python3-std-msgs python3-std-srvs rosout
# A network namespace where only the loopback is up: nothing leaves, nobody else is met.
ALONE := timeout -k 10 600 unshare $(shell test $$(id -u) = 0 || echo -r) -n \
  sh -c 'ip link set lo up && exec "$$@"' --

.PHONY: demo test test-all test-slow test-ros1 test-ros2 fuzz lint clean gl open3d

demo: gl
	$(BIN)/latentplan collect rope --episodes $(EPISODES) --out $(DEMO)/rope.zarr
	$(BIN)/latentplan train calibrated_quick --data $(DEMO)/rope.zarr --run $(DEMO)/run --resume \
	  training.base.steps=$(STEPS)
	@$(MAKE) --no-print-directory $(DEMO)/report/.$(GOALS)-goals
	@echo "The report: $(DEMO)/report/report.html"

# Marked when it ended, so that running the demo again repeats it only for a newer model.
$(DEMO)/report/.$(GOALS)-goals: $(DEMO)/run/best.safetensors
	$(BIN)/latentplan plan --run $(DEMO)/run --episodes $(GOALS) --out $(DEMO)/report
	@touch $@

# What Python compiles is kept even where the environment says otherwise: the install compiles
# nothing, and every process that a test starts would compile torch again, for four seconds.
unexport PYTHONDONTWRITEBYTECODE

# A file's tests run in one process, so that they share what they made. The files start in their
# order, since those of contract/ and flow/ take longest; xdist would put files of few tests last.
PYTEST := $(BIN)/python -m pytest --maxprocesses 8 --dist loadfile --no-loadscope-reorder
CORES := $(shell nproc)

# Now and then a test waits for another process, so there is a worker more than cores. Tests that
# wait in real time are slow ones and have the cores for themselves.
test: gl open3d
	@$(PYTEST) -n $$(($(CORES) + 1)) -m "not slow"

test-slow: gl
	@$(PYTEST) -n $(CORES) -m slow

test-all:
	@$(MAKE) --no-print-directory test-ros1
	@$(MAKE) --no-print-directory test-ros2
	@$(MAKE) --no-print-directory test-slow
	@$(MAKE) --no-print-directory test

ifndef SEED
SEED := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
endif
fuzz: gl
	@echo "To replay: make fuzz SEED=$(SEED), or the @reproduce_failure line of a failure"
	@$(PYTEST) -n $(CORES) -m hypothesis --hypothesis-profile=search --hypothesis-seed=$(SEED)

# ROS 2 sees latentplan and what it needs behind its own packages. What is missing is a failure.
test-ros2: gl $(ROS2)/.ready
	@LATENTPLAN_REQUIRE_ROS=1 $(ALONE) $(ROS2)/bin/python -m pytest -q tests/real/test_ros2.py

$(ROS2)/.ready: constraints.txt constraints-ros2.txt | $(READY)
	@test -x $(ROS2)/bin/python || $(BIN)/python -m venv $(ROS2)
	@$(ROS2)/bin/python -m pip install $(PIP) \
	  --constraint constraints.txt --constraint constraints-ros2.txt $(ROS2_PACKAGES)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $(ROS2)/latentplan
	@pwd >> $(ROS2)/latentplan
	@mv $(ROS2)/latentplan \
	  "$$($(ROS2)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"/zz_latentplan.pth
	@touch $@

# ROS 1 is Debian's, behind latentplan and what that needs; its numpy would be an older one.
test-ros1: gl $(ROS1)/.ready
	@LATENTPLAN_REQUIRE_ROS=1 $(ALONE) $(ROS1)/bin/python -m pytest -q tests/real/test_ros1.py

$(ROS1)/.ready: | $(READY)
	@dpkg -s $(ROS1_PACKAGES) >/dev/null 2>&1 || { test "$$(id -u)" = 0 && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    $(ROS1_PACKAGES) >/dev/null; } \
	  || { echo "ROS 1 is needed: sudo apt-get install $(ROS1_PACKAGES)"; exit 2; }
	@$(BIN)/python -m venv --without-pip $(ROS1)
	@$(BIN)/python -c 'import sysconfig as s; p = s.get_path("purelib"); \
	  print(f"import site; site.addsitedir({p!r})\n/usr/lib/python3/dist-packages")' \
	  > "$$($(ROS1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"/zz_ros1.pth
	@touch $@

# It gives way to all else, so that it can run beside tests that wait in real time.
lint: $(READY)
	nice -n 19 $(BIN)/ruff check
	nice -n 19 $(BIN)/mypy
	nice -n 19 $(BIN)/lint-imports --no-logo
	nice -n 19 $(BIN)/python .ci/words.py

clean:
	rm -rf $(VENV) $(ROS1) $(ROS2) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache \
	  .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "python >= 3.11 is needed: make PYTHON3=python3.12 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON3) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time takes some minutes"
	@$(BIN)/python -m pip install $(PIP) --constraint constraints.txt --editable ".[dev]"
	@touch $@

gl: $(READY)
	@if ! $(BIN)/python -m latentplan.sim.rendering.gl >/dev/null 2>&1 \
	    && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing OpenGL for drawing without a screen"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
	    libegl1 libopengl0 libgl1-mesa-dri >/dev/null; \
	fi
	@$(BIN)/python -m latentplan.sim.rendering.gl >/dev/null

# Libraries that Open3D loads; its tests are skipped without.
open3d: $(READY)
	@if ! $(BIN)/python -c 'import open3d' >/dev/null 2>&1 \
	    && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing what Open3D loads"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
	    libusb-1.0-0 libgl1 libgomp1 libx11-6 >/dev/null; \
	fi

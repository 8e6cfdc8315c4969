# make demo   the main job end to end, on photographs that installed packages carry
# make test   linter, types and tests
# Both make .venv and install what they need first; a second call skips that.

PYTHON ?= python3
BIN := .venv/bin
DEMO := data/demo
PHOTOGRAPHS := $(DEMO)/photographs
RUN := data/runs/demo

# No command of ours reports to anybody or looks for models on a hub.
export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export HF_HUB_OFFLINE = 1
# Prefect keeps its database inside the project; no server of yours is touched.
export PREFECT_HOME = $(CURDIR)/data/prefect
unexport PREFECT_API_URL

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/python -m pipeline.demo $(PHOTOGRAPHS)
	$(BIN)/python -m pipeline.run --images $(PHOTOGRAPHS) --profile offline
	@echo; echo "Three questions to the manifest, in SQL:"
	$(BIN)/python -m pipeline.query "SELECT role, count(*) AS patches, round(avg(distance), 3) AS distance, round(avg(texture), 4) AS texture FROM 'data/patches.parquet/*.parquet' GROUP BY role"
	$(BIN)/python -m pipeline.query "SELECT word, count(*) AS patches FROM (SELECT unnest(words) AS word FROM patches) GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 5"
	$(BIN)/python -m pipeline.query "SELECT path, width, height, status, n_lr, n_hr FROM images ORDER BY path"
	$(BIN)/python -m trainer.run --manifest data/patches.parquet --profile offline --out $(RUN) \
		--steps 40 --batch-size 4 --lr 1e-5 --vgg-layers conv1_2 conv2_2 conv3_4 conv5_4 \
		--log-every 5 --sample-every 20 --checkpoint-every 20
	$(BIN)/python -m trainer.upscale --weights $(RUN)/model.safetensors $(PHOTOGRAPHS)/chelsea.png --out $(DEMO)/upscaled
	$(BIN)/python -m pipeline.report.picture --images $(PHOTOGRAPHS) --photograph china.jpg --out $(DEMO)/overview.png
	$(BIN)/python -m pipeline.report --out $(DEMO)/report.html
	@echo
	@echo "Look at:"
	@echo "  $(DEMO)/report.html              the whole training set on one page"
	@echo "  $(DEMO)/overview.png             a photograph, its distance map, its patches and captions"
	@echo "  $(RUN)/samples/step0000040.png   LR | bicubic | SR"
	@echo "  $(DEMO)/upscaled/chelsea.png     a photograph, enlarged x4"
	@echo "Models of the profile 'offline' are untrained: this shows the path, not the quality."

test: lint
	$(BIN)/python -m pytest -n 2

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[pipeline,trainer,dev]'
	touch $@

clean:
	rm -rf .venv data/demo data/patches.parquet data/patches.work data/images.parquet data/duplicates.parquet data/card.md data/runs data/prefect

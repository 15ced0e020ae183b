# syntax=docker/dockerfile:1

# Two images: `app` (API, housekeeper, Flower, migrations) without torch, and `worker` with it.
#
#   docker build --target app --tag tuwen .
#   docker build --target worker --tag tuwen-worker:cuda .
#   docker build --target worker --tag tuwen-worker:cpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
#
# The health checks are in docker-compose.yml, since each process has a different one.

# `make images` brings the digest up to date; without it, a tag may be moved to another image.
ARG PYTHON=3.13-slim-trixie@sha256:9662417aace5ae7b8e2609cce472b72a8958e134ba372808abe9cc1a0c0125e6

FROM python:${PYTHON} AS dependencies
ENV PIP_CONSTRAINT=/src/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/venv/bin:$PATH
RUN python -m venv /venv
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# The project's dependencies without the project, so that they are not installed again when only code has changed.
# An extra that includes another extra of the project is noted at its `pip install` below.
RUN python <<END
import pathlib, tomllib
project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
for name, wanted in {"base": project["dependencies"], **project["optional-dependencies"]}.items():
    pathlib.Path(f"{name}.txt").write_text("\n".join(one for one in wanted if not one.startswith("tuwen[")))
END

FROM dependencies AS app-build
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -r base.txt -r server.txt -r flower.txt -r datasets.txt -r tracing.txt
COPY README.md LICENSE ./
COPY tuwen tuwen
COPY shared shared
COPY api api
COPY workers workers
RUN pip install --no-deps .

FROM dependencies AS worker-build
# PyPI's torch for x86-64 brings CUDA along; another index has it for the CPU alone, which is about 3 GB smaller.
ARG TORCH_INDEX
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        -r base.txt -r server.txt -r worker.txt -r models.txt -r datasets.txt -r tracing.txt
COPY README.md LICENSE ./
COPY tuwen tuwen
COPY shared shared
COPY api api
COPY workers workers
RUN pip install --no-deps .

FROM python:${PYTHON} AS runtime
RUN useradd --system --uid 10001 --no-create-home --home-dir /tmp tuwen \
    && install --directory --owner tuwen --mode 700 /var/lib/tuwen /var/lib/tuwen/hub /datasets
# Bytecode cannot be written into a read-only image; pip has compiled what it installed.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/tuwen

FROM runtime AS app
COPY --from=app-build /venv /venv
USER tuwen
EXPOSE 8000 5555
CMD ["python", "-m", "api"]

FROM runtime AS worker
# For the option `compile` of checkpoints: what torch writes then is compiled here, and /tmp is no place to run it from.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ENV HF_HOME=/var/lib/tuwen/hub \
    TORCHINDUCTOR_CACHE_DIR=/var/lib/tuwen/hub/inductor TRITON_CACHE_DIR=/var/lib/tuwen/hub/triton
COPY --from=worker-build /venv /venv
USER tuwen
CMD ["python", "-m", "workers", "worker"]

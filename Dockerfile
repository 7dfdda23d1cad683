# docker build --target cpu -t graftwork:cpu .      docker build --target gpu -t graftwork:gpu .

FROM python:3.11-slim-bookworm AS system
# vLLM's CPU kernels load libnuma; Triton compiles its launchers with a C compiler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libnuma1 \
    && rm -rf /var/lib/apt/lists/*

FROM system AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY pruning pruning
COPY kernels kernels
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM system AS installer
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /install
ENV VENV=/opt/graftwork PIP_NO_CACHE_DIR=1
COPY constraints.txt ./
COPY scripts/install.sh scripts/install.sh
COPY --from=wheel /wheels /wheels

FROM installer AS installed-cpu
RUN scripts/install.sh cpu /wheels/graftwork-*.whl

FROM installer AS installed-gpu
RUN scripts/install.sh gpu /wheels/graftwork-*.whl

FROM system AS runtime
RUN useradd --create-home --uid 10001 graftwork && install --directory --owner graftwork /data
COPY deploy/demo /usr/local/share/graftwork/demo
ENV PATH=/opt/graftwork/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    GRAFTWORK_HOME=/data \
    GRAFTWORK_HOST=0.0.0.0 \
    GRAFTWORK_DEMO=/usr/local/share/graftwork/demo
WORKDIR /data
USER graftwork
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["graftwork", "serve"]

FROM runtime AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=installed-gpu /opt/graftwork /opt/graftwork

FROM runtime AS cpu
COPY --from=installed-cpu /opt/graftwork /opt/graftwork

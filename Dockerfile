# docker build -t rcnet . && docker run --rm -p 127.0.0.1:8000:8000 -e RCNET_TOKEN rcnet
# For builds that can be repeated, name the image by its digest: --build-arg BASE=python:3.11-slim@sha256:...
ARG BASE=python:3.11-slim
FROM ${BASE}
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
# Without torch. For weights that are not exported: --build-arg EXTRAS=serve,torch; for GPUs also with
# --build-arg TORCH=https://download.pytorch.org/whl/cu128
ARG EXTRAS=serve
ARG TORCH=https://download.pytorch.org/whl/cpu
RUN pip install --extra-index-url "$TORCH" -c constraints.txt ".[$EXTRAS]" && rm -rf src
RUN useradd --create-home rcnet
USER rcnet
WORKDIR /home/rcnet
EXPOSE 8000
HEALTHCHECK --start-period=20s --interval=10s --timeout=3s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["rcnet", "serve", "--host", "0.0.0.0"]
CMD ["r3_fast.photo", "r2.cifar10", "--slo", "2s"]

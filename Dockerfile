# The service: `docker build -t ratchet . && docker run -p 8004:8004 -v ratchet:/data ratchet`
# With PyTorch, for `surrogate`, on a GPU where there is one: `docker build --build-arg TORCH=1 -t ratchet .`
FROM python:3.12-slim AS build
WORKDIR /build
ARG TORCH=
COPY pyproject.toml README.md LICENSE requirements.lock requirements-torch-index.lock ./
COPY src src
RUN python -m venv /opt/ratchet \
 && /opt/ratchet/bin/pip install --no-cache-dir --require-hashes --requirement requirements.lock \
 && if [ -n "$TORCH" ]; then \
      /opt/ratchet/bin/pip install --no-cache-dir --no-deps --require-hashes --requirement requirements-torch-index.lock; \
    fi \
 && /opt/ratchet/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 ratchet && mkdir -p /data /app/models && chown ratchet /data /app/models
COPY --from=build /opt/ratchet /opt/ratchet
ENV PATH=/opt/ratchet/bin:$PATH RATCHET_HOME=/data RATCHET_MODELS=/app/models DSPY_CACHEDIR=/tmp/dspy PYTHONUNBUFFERED=1
USER 10001
WORKDIR /app
VOLUME ["/data", "/app/models"]
EXPOSE 8004
HEALTHCHECK --start-period=30s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8004/readyz')"]
# A container is reached from outside, so that a key must be there first; the first start makes it and prints it.
CMD ["sh", "-c", "ratchet keys list | grep -q . || ratchet keys create first --role admin; exec ratchet serve --host 0.0.0.0 --port 8004"]

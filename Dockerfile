# The processor, without the demo model. Built on the locked requirements; runs as a user of its own.
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /opt/sidecar
COPY requirements/run.txt requirements/build.txt requirements/
RUN /opt/sidecar/bin/pip install --no-cache-dir --require-hashes --no-deps -r requirements/run.txt && /opt/sidecar/bin/pip check \
 && python -m pip install --no-cache-dir --require-hashes --no-deps -r requirements/build.txt
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY processor processor
COPY providers providers
COPY bridge bridge
COPY nats nats
RUN python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist . \
 && /opt/sidecar/bin/pip install --no-cache-dir --no-deps dist/*.whl

FROM python:3.11-slim
RUN useradd --system --create-home --uid 10001 sidecar
COPY --from=build /opt/sidecar /opt/sidecar
ENV PATH=/opt/sidecar/bin:$PATH PYTHONUNBUFFERED=1 LOG_FORMAT=json
USER sidecar
WORKDIR /home/sidecar
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s CMD ["sidecar", "check", "--serving"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["sidecar"]
CMD ["processor"]

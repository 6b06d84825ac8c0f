# One image for every process; the command says which: api, worker, beat, flower or migrate.

FROM python:3.11-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/sluice
ENV PATH=/opt/sluice/bin:$PATH
WORKDIR /build
# The lock first: a change of our own code does not install everything again.
COPY requirements-production.lock .
RUN pip install --no-deps --require-hashes -r requirements-production.lock
COPY . .
RUN pip install --no-deps --no-build-isolation --no-index .

FROM python:3.11-slim
RUN useradd --system --uid 10001 --no-create-home sluice \
    && install --directory --owner sluice /var/lib/sluice /var/lib/sluice/files
COPY --from=build /opt/sluice /opt/sluice
ENV PATH=/opt/sluice/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    SLUICE_HOME=/var/lib/sluice
WORKDIR /var/lib/sluice
USER sluice
EXPOSE 8080
STOPSIGNAL SIGTERM
# For the api, which the image runs by default; docker-compose.yml says what else is healthy when.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health/live', timeout=2)"]
ENTRYPOINT ["sluice"]
CMD ["api", "--host", "0.0.0.0"]

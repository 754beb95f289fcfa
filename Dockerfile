# The image of migrate, api and worker: the two distributions and the part of requirements.lock they need.
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
COPY requirements.lock ./
COPY ops/containers/install_locked.py ops/containers/
COPY server/pyproject.toml server/
COPY server/src server/src
COPY capture/pyproject.toml capture/
COPY capture/src capture/src
COPY capture/etc capture/etc
# The build's own tools come from the lock too, into an environment that stays behind.
RUN python -m venv /opt/tools \
    && /opt/tools/bin/python ops/containers/install_locked.py requirements.lock hatchling \
    && /opt/tools/bin/python -m pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /build/wheels ./server ./capture
RUN python -m venv /opt/nbpulse \
    && /opt/nbpulse/bin/python -m pip install --no-index --no-deps wheels/*.whl \
    && /opt/nbpulse/bin/python ops/containers/install_locked.py requirements.lock "nbpulse[parquet]" nbpulse-capture

FROM python:3.11-slim-bookworm
# A number of its own, so that files on a volume keep their owner from image to image.
RUN groupadd --gid 10001 nbpulse \
    && useradd --uid 10001 --gid nbpulse --no-create-home --home-dir /var/lib/nbpulse nbpulse \
    && install --directory --owner nbpulse --group nbpulse --mode 700 /var/lib/nbpulse
COPY --from=build /opt/nbpulse /opt/nbpulse
COPY ops/containers/start.py ops/containers/check_health.py /opt/nbpulse/containers/
ENV PATH=/opt/nbpulse/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NBPULSE_DATA_DIR=/var/lib/nbpulse NBPULSE_HOST=0.0.0.0 NBPULSE_PORT=8000
USER nbpulse
WORKDIR /var/lib/nbpulse
VOLUME /var/lib/nbpulse
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "/opt/nbpulse/containers/check_health.py"]
ENTRYPOINT ["python", "/opt/nbpulse/containers/start.py"]
CMD ["api"]

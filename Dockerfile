# Holdfast's images, one target each:
#
#   gate     the smallest: what watchdog needs and no more; runs in every annotated pod
#   daemon   the node's daemon, and the injector
#   server   `holdfast serve`, with PyTorch
#   debug    the daemon's, with the tools that production must not have
#
#   docker build --target gate -t registry.example.com/holdfast/gate:0.1.0 .
#   buildah bud --target gate --build-arg BASE_IMAGE=localhost/python:3.11 .
#
# Needs a package index for Python (for `debug` one for Debian too), and any base with python3 3.11 or later, its venv
# module and pip. Layers: base, dependencies, code; the dependencies are built from pyproject.toml and constraints.txt
# alone, so a change of code rebuilds only the last. pip's own variables say where packages come from:
#   --build-arg PIP_INDEX_URL=https://mirror.example.com/simple
#   --build-arg PIP_EXTRA_INDEX_URL=$CPU_INDEX   an index with PyTorch's CPU builds: a server without CUDA, a fifth of the size
#   --build-arg PIP_FIND_LINKS=https://mirror.example.com/wheels/   a page of links to wheels, beside or in place of an index; or a
#                                                folder of BASE_IMAGE, for builds that reach no network

# python 3.11.16 on Debian bookworm, linux/amd64 and linux/arm64.
ARG BASE_IMAGE=docker.io/library/python:3.11.16-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

# Compiles a folder, but what fits a pattern. Nothing may be written where the images run, so what has no bytecode is
# compiled at every start. `unchecked-hash`: it holds whatever a builder does to the files' times, as for reproducible
# layers. A file that does not compile is for another release of Python, and is listed.
ARG COMPILE="import compileall, py_compile, re, sys; \
compileall.compile_dir(sys.argv[1], quiet=1, workers=0, rx=re.compile(sys.argv[2]) if sys.argv[2:] else None, \
invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"

# --- what all of them start from
FROM ${BASE_IMAGE} AS base
ENV PATH=/opt/holdfast/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# The user has a name, as some libraries ask for one, and owns the folder that a fresh docker volume is copied from.
RUN echo 'holdfast:x:65532:65532:holdfast:/tmp:/usr/sbin/nologin' >> /etc/passwd \
 && echo 'holdfast:x:65532:' >> /etc/group \
 && install -d -o 65532 -g 65532 -m 0755 /var/lib/holdfast /var/lib/holdfast/public \
 && python3 -m venv --without-pip /opt/holdfast
# The official images come without the bytecode of the standard library.
ARG COMPILE
RUN python3 -c "$COMPILE" "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    '/(test|tests|idlelib|lib2to3|turtledemo|ensurepip|site-packages|dist-packages)/'

# --- the requirements of each image, so that their layers depend on nothing else in pyproject.toml
FROM ${BASE_IMAGE} AS requirements
WORKDIR /requirements
COPY pyproject.toml constraints.txt ./
ARG SERVER_EXTRA=transformers
RUN python3 -c "\
import re, sys, tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
own = re.compile(r'holdfast\[(.*)\]$'); \
flat = lambda found: [r for one in found for r in (flat([x for e in own.match(one)[1].split(',') for x in extras[e]]) if own.match(one) else [one])]; \
write = lambda name, *wanted: open(name, 'w').write('\n'.join(sorted(set(flat(project['dependencies'] + [x for e in wanted for x in extras[e]])))) + '\n'); \
write('gate.txt'); write('daemon.txt', 'daemon', 'inject', 'gcs-keys', 'oci', 'tracing'); write('server.txt', sys.argv[1], 'tracing')" "$SERVER_EXTRA"

# --- the code, as a wheel
FROM ${BASE_IMAGE} AS wheel
WORKDIR /source
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
COPY . .
RUN python3 -m venv /build \
 && /build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# --- dependencies
FROM base AS gate-dependencies
COPY --from=requirements /requirements/constraints.txt /requirements/gate.txt /requirements/
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG COMPILE
RUN pip --python /opt/holdfast/bin/python3 install --no-cache-dir --no-compile \
    --constraint /requirements/constraints.txt --requirement /requirements/gate.txt \
 && python3 -c "$COMPILE" /opt/holdfast/lib

FROM base AS daemon-dependencies
COPY --from=requirements /requirements/constraints.txt /requirements/daemon.txt /requirements/
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG COMPILE
RUN pip --python /opt/holdfast/bin/python3 install --no-cache-dir --no-compile \
    --constraint /requirements/constraints.txt --requirement /requirements/daemon.txt \
 && python3 -c "$COMPILE" /opt/holdfast/lib

FROM base AS server-dependencies
COPY --from=requirements /requirements/constraints.txt /requirements/server.txt /requirements/
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG COMPILE
RUN pip --python /opt/holdfast/bin/python3 install --no-cache-dir --no-compile \
    --constraint /requirements/constraints.txt --requirement /requirements/server.txt \
 && python3 -c "$COMPILE" /opt/holdfast/lib

# --- the images
FROM gate-dependencies AS gate
COPY --from=wheel /wheels /wheels
ARG COMPILE
RUN pip --python /opt/holdfast/bin/python3 install --no-cache-dir --no-compile --no-deps /wheels/*.whl \
 && for package in cached sidecar server; do python3 -c "$COMPILE" /opt/holdfast/lib/python3*/site-packages/$package; done
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="holdfast-gate" \
      org.opencontainers.image.description="Holds a pod's start until its model weights are on the node and verified" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
ENTRYPOINT ["/opt/holdfast/bin/holdfast"]
CMD ["gate"]

FROM daemon-dependencies AS daemon
COPY --from=wheel /wheels /wheels
ARG COMPILE
RUN pip --python /opt/holdfast/bin/python3 install --no-cache-dir --no-compile --no-deps /wheels/*.whl \
 && for package in cached sidecar server; do python3 -c "$COMPILE" /opt/holdfast/lib/python3*/site-packages/$package; done
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="holdfast-daemon" \
      org.opencontainers.image.description="Fetches, verifies and publishes model weights on one node" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
EXPOSE 9400
# For docker alone: Kubernetes has its own probes and ignores this.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=6 \
  CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9400/readyz', timeout=4)"]
ENTRYPOINT ["/opt/holdfast/bin/holdfast"]
CMD ["daemon"]

FROM server-dependencies AS server
COPY --from=wheel /wheels /wheels
ARG COMPILE
RUN pip --python /opt/holdfast/bin/python3 install --no-cache-dir --no-compile --no-deps /wheels/*.whl \
 && for package in cached sidecar server; do python3 -c "$COMPILE" /opt/holdfast/lib/python3*/site-packages/$package; done
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="holdfast-server" \
      org.opencontainers.image.description="Serves a model from the weights that Holdfast keeps on the node" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.licenses="Apache-2.0"
# Tells the NVIDIA container runtime of docker what to put in; Kubernetes' device plugin says so by itself.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=1800s --retries=3 \
  CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/readyz', timeout=4)"]
ENTRYPOINT ["/opt/holdfast/bin/holdfast"]
CMD ["serve"]

FROM daemon AS debug
USER 0:0
RUN apt-get update \
 && apt-get install --yes --no-install-recommends curl iproute2 jq lsof procps strace \
 && rm -rf /var/lib/apt/lists/* \
 && pip --python /opt/holdfast/bin/python3 install --no-cache-dir py-spy
LABEL org.opencontainers.image.title="holdfast-debug" \
      org.opencontainers.image.description="The daemon's image, with strace, py-spy, lsof, curl and jq"
USER 65532:65532

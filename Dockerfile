# The image of a p2pnode daemon, about 0.7 GB, most of it JAX. From the project's root:
#
#   docker build -t p2pnode .
#   docker run --init -v p2pnode:/data -p 7400:7400 p2pnode
#
# Every RUN step of the first stage is plain shell over $PREFIX, so that tests/test_packaging.py can carry out the same
# steps in a clean virtual environment on a machine without a container engine. Not Alpine: JAX has no musl wheels.

FROM python:3.13-slim AS build
ENV PREFIX=/opt PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src

# What changes rarely comes first: the libraries are one cached layer. The environment that ships is made without pip
# (docs/security.md, T44: every file is checked against its hash, and nothing can be installed into it later).
COPY deploy/requirements.lock deploy/build.lock deploy/
RUN python3 -m venv "$PREFIX/build"
RUN "$PREFIX/build/bin/pip" install -q --require-hashes -r deploy/build.lock
RUN python3 -m venv --without-pip "$PREFIX/p2pnode"
RUN "$PREFIX/build/bin/pip" --python "$PREFIX/p2pnode" install -q --require-hashes -r deploy/requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY crypto crypto
COPY gossip gossip
COPY p2pnode p2pnode
COPY simulation simulation
RUN "$PREFIX/build/bin/python" -m hatchling build -t wheel -d "$PREFIX/wheel"
RUN "$PREFIX/build/bin/pip" --python "$PREFIX/p2pnode" install -q --no-index --no-deps "$PREFIX"/wheel/*.whl

# The same base: the environment refers to its Python by path.
FROM python:3.13-slim
COPY --from=build /opt/p2pnode /opt/p2pnode
# One writable place. It holds the key, so nobody else may read it.
RUN install -d -m 0700 -o 1000 -g 1000 /data
VOLUME /data
# The user has no name and no home of its own; what libraries cache goes to the volume as well.
ENV PATH=/opt/p2pnode/bin:$PATH \
    HOME=/data \
    P2PNODE_HOME=/data \
    PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
EXPOSE 7400
STOPSIGNAL SIGTERM
# The CLI asks the daemon over its control socket; it imports no JAX. The start covers making a key and importing JAX.
HEALTHCHECK --interval=30s --timeout=3s --start-period=60s --retries=3 CMD ["p2pnode", "status", "--json"]
ENTRYPOINT ["p2pnode"]
CMD ["run"]

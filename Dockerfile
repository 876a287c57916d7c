# The agent's image: one static program, and nothing else. `make image` builds it with docker, podman or buildah; so
# does `docker build --tag sentry .`. docs/image.md has the rest.

# By its digest, so that a build is the same tomorrow. For a newer one: `docker buildx imagetools inspect rust:TAG`.
ARG RUST=docker.io/library/rust:1.95.0-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1

# What both images below have in common.
FROM scratch AS settings
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=
LABEL org.opencontainers.image.title="sentry" \
      org.opencontainers.image.description="eBPF observability of TCP handshakes, disk I/O and starved GPUs, by pod and container, without touching a process" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
# Numbers, since there is no /etc/passwd, and Kubernetes' runAsNonRoot wants one.
USER 65532:65532
# Loopback is the container's own: nobody else could scrape it.
ENV SENTRY_WEB_LISTEN_ADDRESS=:9763
EXPOSE 9763
ENTRYPOINT ["/sentry"]

# With the program that was built before: `--target prebuilt`, and a context with sentry.tar, as `make image-prebuilt`
# makes it. An archive, since BuildKit drops the capabilities of files that it copies from a context. It stands before
# the next stage because older buildahs build all that stands before their target.
FROM settings AS prebuilt
ADD sentry.tar /

FROM ${RUST} AS build
WORKDIR /sentry
COPY xtask/packages.txt xtask/install.sh xtask/
RUN sh xtask/install.sh page && apt-get update -qq \
    && apt-get install -qq --no-install-recommends libcap2-bin >/dev/null \
    && rm -rf /var/lib/apt/lists/*
COPY . .
# Permitted only: the agent puts to use what the container's bounding set leaves of them. docs/privileges.md has what
# each of them is for.
RUN cargo xtask release \
    && install -D -m 755 target/*/release/sentry /image/sentry \
    && setcap cap_bpf,cap_perfmon,cap_dac_read_search,cap_sys_ptrace,cap_checkpoint_restore=p /image/sentry

# Between stages capabilities of files are kept, but by Docker's builder of before BuildKit.
FROM settings
COPY --from=build /image/sentry /sentry

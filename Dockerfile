# syntax=docker/dockerfile:1
# Two images from one file:
#   docker build --target cpu  -t manifold:cpu  .     (the default)
#   docker build --target cuda -t manifold:cuda .     (needs an NVIDIA driver of CUDA 13 or newer at run time)
# Both run as an ordinary user, keep downloaded models in /var/lib/manifold and answer on port 8080.

ARG RUST_VERSION=1.95

# ---- what both builds share ------------------------------------------------------------------------------------------
FROM rust:${RUST_VERSION}-slim-bookworm AS toolchain

# ---- cuda ------------------------------------------------------------------------------------------------------------
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS build-cuda
# Versions of Ubuntu's packages are those of the base image's release; pinning them breaks the build with each update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ gcc libc6-dev make nasm \
    && rm -rf /var/lib/apt/lists/*
# The official image's toolchain is relocatable and older than this system's C library, so it can be copied.
COPY --from=toolchain /usr/local/cargo /usr/local/cargo
COPY --from=toolchain /usr/local/rustup /usr/local/rustup
ENV CARGO_HOME=/usr/local/cargo RUSTUP_HOME=/usr/local/rustup PATH=/usr/local/cargo/bin:$PATH
# There is no GPU to ask while an image is built. 80 is the oldest generation with bf16; newer ones run it too.
ARG CUDA_COMPUTE_CAP=80
ENV CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP}
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target,id=target-cuda \
    LIBRARY_PATH=/usr/local/cuda/lib64/stubs cargo build --release --locked --features cuda \
    && cp target/release/manifold /usr/local/bin/manifold

FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04 AS cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates ffmpeg \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/manifold manifold
COPY --from=build-cuda /usr/local/bin/manifold /usr/local/bin/manifold
ENV MANIFOLD_HOST=0.0.0.0 HF_HOME=/var/lib/manifold/huggingface
USER 10001
WORKDIR /var/lib/manifold
VOLUME /var/lib/manifold
EXPOSE 8080
# A big checkpoint is downloaded and read before the server is ready: give it time before a failure counts.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --start-interval=2s --retries=3 CMD ["manifold", "healthcheck"]
ENTRYPOINT ["manifold"]
CMD ["serve"]

# ---- cpu -------------------------------------------------------------------------------------------------------------
FROM toolchain AS build-cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ gcc libc6-dev make nasm \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target,id=target-cpu \
    cargo build --release --locked \
    && cp target/release/manifold /usr/local/bin/manifold

FROM debian:bookworm-slim AS cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates ffmpeg \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/manifold manifold
COPY --from=build-cpu /usr/local/bin/manifold /usr/local/bin/manifold
ENV MANIFOLD_HOST=0.0.0.0 HF_HOME=/var/lib/manifold/huggingface
USER 10001
WORKDIR /var/lib/manifold
VOLUME /var/lib/manifold
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --start-interval=2s --retries=3 CMD ["manifold", "healthcheck"]
ENTRYPOINT ["manifold"]
CMD ["serve"]

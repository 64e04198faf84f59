# Not built by us: no image could be pulled where this project is tested. `make lint` checks it with hadolint.
#   docker build -t lit-safe . && docker run --gpus all -v "$PWD/runs:/workspace/runs" lit-safe fit -c configs/base.yaml ...
# The base image brings torch with its CUDA libraries and triton; TORCH=keep leaves them as they are.
FROM pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime

WORKDIR /opt/lit_safe
COPY . .
# A compiler: Triton compiles its launchers when a kernel first runs. Its version is the base image's affair.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes gcc libc6-dev make \
    && rm -rf /var/lib/apt/lists/* \
    && make setup TORCH=keep

WORKDIR /workspace
ENV PATH="/opt/lit_safe/.venv/bin:${PATH}"
ENTRYPOINT ["lit-safe"]
CMD ["--help"]

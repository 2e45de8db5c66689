# vitp with a chosen base. On the CPU:
#     docker build -t vitp .
# With CUDA (the base brings a torch that fits it, which is kept):
#     docker build -t vitp-cuda --build-arg BASE=pytorch/pytorch:2.11.0-cuda12.8-cudnn9-runtime --build-arg TORCH=base .
# Then:
#     docker run --rm -v "$PWD:/work" vitp data compile labels --out data
ARG BASE=python:3.12-slim
FROM ${BASE}

# pinned: torch of constraints.txt; base: the one that the base image brings.
ARG TORCH=pinned
ARG EXTRAS=geo,medical,onnx,serve
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /opt/vitp
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN if [ "$TORCH" = base ]; then \
        python -c "import torch, torchvision; print(f'torch=={torch.__version__}\ntorchvision=={torchvision.__version__}')" > held.txt \
        && grep -Ev '^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==' constraints.txt >> held.txt; \
    else cp constraints.txt held.txt; fi \
    && python -m pip install -c held.txt ".[${EXTRAS}]" \
    && rm held.txt

# Nothing runs as root. What a container writes goes to /work.
RUN useradd --create-home --uid 1000 vitp && mkdir -p /work && chown vitp /work
USER vitp
WORKDIR /work
ENTRYPOINT ["vitp"]
CMD ["--help"]

# SGLang servers and their router. Built from the checkout: docker build -f third_party/launch/docker/sglang.Dockerfile -t paravt-sglang .
# What follows the image's name are arguments of servers.sh. The compilers are there for kernels that SGLang builds when it starts.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04
RUN apt-get update && apt-get install -y --no-install-recommends make python3-dev python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /paravt_jax
COPY Makefile ./
COPY third_party/sglang third_party/sglang
RUN make sglang SGLANG=gpu PYTHON=python3
COPY third_party/launch/servers.sh third_party/launch/
ENTRYPOINT ["bash", "third_party/launch/servers.sh"]
EXPOSE 30000

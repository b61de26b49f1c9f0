# The learner. Built from the checkout: docker build -f third_party/launch/docker/learner.Dockerfile -t paravt-learner .
# What follows the image's name are arguments of experiments.rl. /shared is a volume.
FROM python:3.11-bookworm
WORKDIR /paravt_jax
COPY Makefile requirements.txt ./
RUN make setup ACCELERATOR=cuda13
COPY pyproject.toml ./
COPY paravt_jax paravt_jax
COPY configs configs
COPY experiments experiments
COPY third_party third_party
ENTRYPOINT [".venv/bin/python", "-m", "experiments.rl"]
CMD ["--config=configs/para_grpo.py:8b"]

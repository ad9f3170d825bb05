# gemma_tune over CUDA, with the locked versions, as a user without rights. docs/installation.md has the commands.
# CUDA's libraries come with torch; of the image only the driver's interface and the compiler for Triton are used.
FROM nvidia/cuda:12.8.1-base-ubuntu24.04

ENV DEBIAN_FRONTEND=noninteractive \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3.12 python3.12-venv python3.12-dev gcc git ca-certificates bubblewrap \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's image has a user 1000
RUN userdel --remove ubuntu 2>/dev/null || true \
    && useradd --create-home --uid 1000 tuner \
    && mkdir -p /home/tuner/runs /opt/gemma_tune \
    && chown -R tuner:tuner /home/tuner /opt/gemma_tune

USER tuner
ENV PATH=/opt/gemma_tune/.venv/bin:$PATH
WORKDIR /opt/gemma_tune

# The versions first: they change less often than the code. torch is not in the lock, since its build differs; PyPI's
# has CUDA in it.
COPY --chown=tuner:tuner constraints.txt requirements.lock ./
RUN python3.12 -m venv .venv \
    && python -m pip install --require-hashes --no-deps -r requirements.lock \
    && python -m pip install -c constraints.txt torch

COPY --chown=tuner:tuner pyproject.toml README.md LICENSE ./
COPY --chown=tuner:tuner gemma_tune gemma_tune
COPY --chown=tuner:tuner recipes recipes
COPY --chown=tuner:tuner configs configs
COPY --chown=tuner:tuner data data
RUN python -m pip install --no-deps .

WORKDIR /home/tuner
ENTRYPOINT ["python", "-m", "gemma_tune"]

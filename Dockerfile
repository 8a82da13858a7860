# The service's image. It starts without a broker, and works once there is one.
FROM python:3.13-slim AS packages
# gunicorn-h1c comes as source.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
COPY requirements.txt .
# Most of Swagger UI is source maps and copies of the scripts for bundlers.
RUN python -m venv --without-pip /packages \
 && pip --python /packages/bin/python install --no-cache-dir --root-user-action=ignore -r requirements.txt \
 && find /packages -path '*/swagger_ui_bundle/*' \( -name '*.map' -o -name '*-es-*' \) -delete

FROM python:3.13-slim
WORKDIR /energy2go
COPY --from=packages /packages /packages
ENV PATH=/packages/bin:$PATH
COPY pyproject.toml *.py ./
COPY kit kit
COPY migrations migrations
COPY static static
# Compile now, because the root file system is read-only at run time. Make everything readable, in case of a checkout
# with umask 077. A new volume at var/ takes its owner from this directory.
RUN chmod -R a+rX . && python -m compileall -q . && install -d -o 10001 -g 10001 var
USER 10001:10001
ENV BIND=0.0.0.0:8000
EXPOSE 8000
CMD ["gunicorn", "app:app"]

# The image of the service. It starts without a broker, and works once there is one.
FROM python:3.13-slim
WORKDIR /energy2go
COPY requirements.txt .
# Most of Swagger UI is source maps, which help to debug it, and the same scripts for bundlers.
RUN pip install --no-cache-dir --root-user-action=ignore -r requirements.txt \
 && find /usr/local -path '*/swagger_ui_bundle/*' \( -name '*.map' -o -name '*-es-*' \) -delete
COPY pyproject.toml *.py ./
COPY kit kit
COPY migrations migrations
COPY static static
# Compile now, because at run time the root file system is read-only. Make everything readable, in case the checkout
# was made with umask 077. A new volume at var/ takes its owner from this directory.
RUN chmod -R a+rX . && python -m compileall -q . && install -d -o 10001 -g 10001 var
USER 10001:10001
ENV BIND=0.0.0.0:8000
EXPOSE 8000
CMD ["gunicorn", "app:app"]

# The service behind gunicorn, in one container; it needs a broker to be useful, but none to start.
FROM python:3.13-slim
WORKDIR /energy2go
COPY requirements.txt .
# Source maps are for those who debug Swagger UI itself, and are two thirds of it.
RUN pip install --no-cache-dir --root-user-action=ignore -r requirements.txt \
 && find /usr/local -path '*/swagger_ui_bundle/*.map' -delete
COPY *.py ./
COPY migrations migrations
COPY static static
# Compiled here, because at run time nothing here is writable; readable even if the checkout was made with umask 077.
# A volume that is mounted at var/ for the first time gets its owner from here.
RUN chmod -R a+rX . && python -m compileall -q . && install -d -o 10001 -g 10001 var
USER 10001:10001
ENV BIND=0.0.0.0:8000
EXPOSE 8000
CMD ["gunicorn", "app:app"]

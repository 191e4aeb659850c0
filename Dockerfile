# Gatecast's images, one target each. Details: docs/containers.md.
#
#   worker     the service
#   routes     the Lambda functions; a function's command is its handler
#   local      the gateway emulator, the init step and the demo's clients of docker-compose.yml
#   ministack  SQS and DynamoDB on a laptop, for docker-compose.ministack.yml
#
# BASE is any Debian-like image with Python 3.11 or later, its venv module and CA certificates. EXTRA=otel adds traces to
# the worker and the functions.
# checkov:skip=CKV_DOCKER_7: BASE has a tag, which checkov cannot see through the variable
ARG BASE=python:3.13-slim-bookworm

# Packages come before code, so that a code change does not invalidate their layer.
FROM ${BASE} AS installer
WORKDIR /install
RUN python3 -m venv pip && python3 -m venv --without-pip /opt/gatecast
COPY deploy/image/install.sh .

# The arguments name the SDK models to keep: of the services that the process calls, and of its credential providers.
FROM installer AS worker-packages
ARG EXTRA=
COPY requirements/worker.txt requirements/otel.txt ./
RUN sh install.sh "worker $EXTRA" dynamodb s3 sqs sso sso-oidc sts

FROM installer AS routes-packages
ARG EXTRA=
COPY requirements/lambda.txt requirements/otel.txt ./
RUN sh install.sh "lambda $EXTRA" apigatewaymanagementapi dynamodb s3 secretsmanager sqs

FROM installer AS local-packages
COPY requirements/local.txt .
RUN sh install.sh local apigatewaymanagementapi dynamodb s3 secretsmanager sqs

FROM installer AS ministack-packages
COPY requirements/ministack.txt .
RUN sh install.sh ministack

# Compiled once, with unchecked hashes: nothing is written at run time, and the sources are not compared again.
FROM ${BASE} AS code
WORKDIR /app
COPY gatecast gatecast
COPY routes routes
COPY worker worker
COPY local local
RUN chmod -R u=rwX,go=rX . && python3 -m compileall -q --invalidation-mode unchecked-hash .

FROM ${BASE} AS runtime
# Version and revision are set at build time with --label: here they would invalidate all following layers.
LABEL org.opencontainers.image.title="Gatecast" \
      org.opencontainers.image.description="Broadcasts to WebSocket clients behind Amazon API Gateway" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/gatecast/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
# A number, because an orchestrator can verify that a number is not root.
USER 10001:10001

FROM runtime AS worker
COPY --from=worker-packages /opt/gatecast /opt/gatecast
COPY --from=code /app/gatecast gatecast
COPY --from=code /app/worker worker
ENV GATECAST_HTTP_HOST=0.0.0.0 \
    GATECAST_HTTP_PORT=9090
EXPOSE 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python3", "-IS", "-c", "import http.client, os, sys; \
worker = http.client.HTTPConnection('127.0.0.1', int(os.environ['GATECAST_HTTP_PORT']), timeout=4); \
worker.request('GET', '/livez'); \
sys.exit(worker.getresponse().status != 200)"]
CMD ["python3", "-m", "worker"]

# Lambda starts the entry point; the command is a handler: `routes.handlers.connect`, … or `routes.authorizer.handler`.
FROM runtime AS routes
COPY --from=routes-packages /opt/gatecast /opt/gatecast
COPY --from=code /app/gatecast gatecast
COPY --from=code /app/routes routes
ENTRYPOINT ["python3", "-m", "awslambdaric"]
CMD ["routes.handlers.default"]

FROM runtime AS local
COPY --from=local-packages /opt/gatecast /opt/gatecast
COPY --from=code /app/gatecast gatecast
COPY --from=code /app/routes routes
COPY --from=code /app/local local
EXPOSE 8080
CMD ["python3", "-m", "local.gateway_process", "--host", "0.0.0.0", "--port", "8080"]

# Its features beyond the AWS APIs are switched off, as in local/ministack.py.
FROM runtime AS ministack
COPY --from=ministack-packages /opt/gatecast /opt/gatecast
ENV BIND_HOST=0.0.0.0 \
    GATEWAY_PORT=4566 \
    MINISTACK_REGION=us-east-1 \
    STATE_DIR=/tmp/state \
    S3_DATA_DIR=/tmp/s3 \
    IOT_MTLS_ENABLED=0 \
    SFTP_ENABLED=0 \
    DOCKER_HOST=unix:///nowhere \
    LOG_LEVEL=WARNING
EXPOSE 4566
CMD ["ministack"]

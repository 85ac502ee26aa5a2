# Both stages must have the same Python in the same place: the virtual environment is built in one and runs in the other.
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS build
# Optional parts. aws is in, as nothing can be installed into the image later: 31 MB on disk, and imported only where
# server_password_source asks for it. --build-arg EXTRAS= leaves it out.
ARG EXTRAS=aws
WORKDIR /src
# Without pip in it: the image that runs needs none.
RUN python -m venv --without-pip /opt/pgfunnel
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY config config
COPY pooler pooler
COPY protocol protocol
RUN python -m pip --python /opt/pgfunnel/bin/python install --no-cache-dir -c constraints.txt ".${EXTRAS:+[${EXTRAS}]}"

FROM ${BASE_IMAGE}
COPY --from=build /opt/pgfunnel /opt/pgfunnel
# A container's clients and probes come from outside of it, so the loopback defaults would shut them out.
ENV PATH=/opt/pgfunnel/bin:$PATH \
    PGFUNNEL_LISTEN_ADDR=0.0.0.0 \
    PGFUNNEL_METRICS_ADDR=0.0.0.0
# A number, as Kubernetes' runAsNonRoot can't look names up.
USER 65532:65532
EXPOSE 6432 9127
# http.client and not urllib, which would send this request to a proxy named in the environment.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["python", "-c", "\
import http.client, os; \
connection = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('PGFUNNEL_METRICS_PORT', 9127)), timeout=4); \
connection.request('GET', '/healthz'); \
raise SystemExit(connection.getresponse().status != 200)"]
# Drains: give it the time that transactions take (docker stop --time, terminationGracePeriodSeconds).
STOPSIGNAL SIGTERM
ENTRYPOINT ["pgfunnel"]

# A static hiqlite, run by a user without rights:
#
#	docker build -t hiqlite:dev .
#	docker run --rm hiqlite:dev --help
#
# deploy/compose and deploy/k8s run it as a cluster of three nodes.
FROM golang:1.26 AS build
WORKDIR /src
# The modules in a layer of their own, which a change of the code does not fetch again.
COPY go.mod go.sum go.work go.work.sum ./
COPY cmd/hiqlite/go.mod cmd/hiqlite/go.sum cmd/hiqlite/
COPY examples/go.mod examples/go.sum examples/
COPY benchmarks/go.mod benchmarks/go.sum benchmarks/
RUN cd cmd/hiqlite && go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o /out/hiqlite ./cmd/hiqlite && mkdir -p /out/data

FROM scratch
COPY --from=build /out/hiqlite /hiqlite
# A new volume gets the owner of the folder that it is mounted on.
COPY --from=build --chown=65532:65532 /out/data /var/lib/hiqlite
USER 65532:65532
WORKDIR /var/lib/hiqlite
ENV HQL_DATA_DIR=/var/lib/hiqlite
EXPOSE 8100 8200
VOLUME /var/lib/hiqlite
ENTRYPOINT ["/hiqlite"]
CMD ["serve"]

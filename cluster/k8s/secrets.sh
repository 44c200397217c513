#!/usr/bin/env bash
# Makes the Secrets that the files of this folder name, with random values: once for a namespace. Nothing secret is among the arguments
# of a process or on the screen. With `--dry-run=client -o yaml` behind it, they are printed and nothing is made.
set -euo pipefail
umask 077
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
random() { head -c 32 /dev/urandom | base64 | tr -d '+/=\n'; }
make() { local name=$1; shift; kubectl create secret generic "$name" --namespace "${NAMESPACE:-raymlp}" "$@"; }

random > auth_token
make raymlp-ray-token --from-file=auth_token "$@"

random > password
printf 'requirepass %s\n' "$(cat password)" > redis.conf
make raymlp-redis --from-file=password --from-file=redis.conf "$@"

random > password
printf 'postgresql+psycopg://mlflow:%s@postgres:5432/mlflow' "$(cat password)" > database
make raymlp-tracking --from-file=password --from-file=database "$@"

random > access-key
random > secret-key
printf '{"identities": [{"name": "raymlp", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}' \
  "$(cat access-key)" "$(cat secret-key)" > s3.json
make raymlp-objects --from-file=access-key --from-file=secret-key --from-file=s3.json "$@"

#!/bin/bash
# One fine-tuning run on every worker of a Cloud TPU slice (cloud.google.com/tpu/docs): made here, removed at the end.
#
#     ZONE=us-west4-a BUCKET=my-bucket DATA=train.jsonl configs/launch/tpu_pod.sh
#
# jax finds the workers by the TPU's metadata; nothing of it stands in the config. output_dir lies in a bucket that every
# worker mounts. Run it again after the slice was taken away: --resume goes on from the last checkpoint.
set -eu
NAME=${NAME:-jaxlean}
ZONE=${ZONE:?the zone, e.g. us-west4-a}
BUCKET=${BUCKET:?the name of a Cloud Storage bucket}
TYPE=${TYPE:-v5litepod-16} # 4 workers of 4 chips
CONFIG=${CONFIG:-configs/llama_lora.yaml}
DATA=${DATA:?the training data: a file of this folder, or a hub id}

on_all() {
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

remove() {
    gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet
}

# One that was taken away is still there by its name, and of no use.
state=$(gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" --format="value(state)" 2>/dev/null || true)
if [ -n "$state" ] && [ "$state" != READY ]; then
    remove
    state=
fi
trap remove EXIT # whatever happens from here on: a slice that is forgotten is paid for
if [ -z "$state" ]; then
    gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" \
        --version=v2-alpha-tpuv5-lite --spot
fi
gcloud compute tpus tpu-vm scp --recurse . "$NAME":jaxlean --zone="$ZONE" --worker=all

# The slice's image has an old Python: uv brings one. gcsfuse makes the bucket a folder; implicit directories and no
# cached absences, since what one worker writes the others must see.
on_all "set -e
    command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    export PATH=\$HOME/.local/bin:\$PATH
    [ -d venv ] || uv venv --python 3.12 venv
    uv pip install --python venv/bin/python './jaxlean[tpu]'
    mkdir -p shared
    mountpoint -q shared || gcsfuse --implicit-dirs --metadata-cache-negative-ttl-secs=0 $BUCKET shared"

# A command that a lost worker ends on the others exits with 69, one that was told to leave with 75.
on_all "cd jaxlean && exec ../venv/bin/jaxlean finetune $CONFIG --resume data.train=$DATA \
    output_dir=\$HOME/shared/run report.progress=false distributed.start_timeout_seconds=900"

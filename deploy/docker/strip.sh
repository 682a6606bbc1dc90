#!/bin/sh
# Makes an environment one for a container: Flink's own folders go to FLINK, as its scripts and its operator expect them;
# what only developers use goes away.
#
#   strip.sh ENVIRONMENT FLINK
set -eu
environment=$1
flink=$2
pyflink=$(echo "$environment"/lib/python3.*/site-packages/pyflink)
mkdir -p "$flink"
for folder in bin conf lib opt plugins log; do
  mv "$pyflink/$folder" "$flink/$folder"
  # Workers are started by a script that is looked for in the package.
  ln -s "$flink/$folder" "$pyflink/$folder"
done
# Logs go without the environment of the workers.
"$environment"/bin/python -m flink_jobs.logconf "$flink/conf"
chmod +x "$flink"/bin/*.sh "$flink"/bin/flink
rm -rf "$pyflink/examples"
"$environment"/bin/pip uninstall --quiet --yes \
  ast-serialize hypothesis importlib-resources iniconfig kubernetes-validate librt mypy mypy-extensions pathspec \
  pluggy pytest pytest-timeout ruff
find "$environment" -type d \( -name tests -o -name test \) -path '*/site-packages/*' -prune \
  \( -path '*/numpy/*' -o -path '*/pandas/*' -o -path '*/scipy/*' -o -path '*/apache_beam/*' \) -exec rm -rf {} +

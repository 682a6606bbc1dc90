#!/bin/sh
# jobmanager, taskmanager, or any command. FLINK_PROPERTIES: lines that are added to Flink's configuration. FRESHET_LOGS:
# text or json, the format of Flink's logs.
set -eu
if [ -n "${FLINK_PROPERTIES:-}" ]; then
  # The shipped file is nested, and these lines are flat: the later of two names would be an error. So only they count,
  # with the options of Java that Flink can't do without.
  options=$(sed -n 's/^ *all: *\(--add-.*\)$/\1/p' "$FLINK_CONF_DIR/config.yaml")
  if [ -z "$options" ]; then
    options=$(sed -n 's/^env.java.opts.all: *//p' "$FLINK_CONF_DIR/config.yaml")
  fi
  printf 'env.java.opts.all: %s\n%s\n' "$options" "$FLINK_PROPERTIES" > "$FLINK_CONF_DIR/config.yaml"
fi
if [ -n "${FRESHET_LOGS:-}" ]; then
  python -m flink_jobs.logconf "$FLINK_CONF_DIR" "$FRESHET_LOGS"
fi
case "${1:-}" in
  jobmanager | taskmanager)
    name=$1
    shift
    exec "$FLINK_HOME/bin/$name.sh" start-foreground "$@"
    ;;
esac
exec "$@"

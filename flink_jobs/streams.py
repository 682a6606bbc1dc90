"""Streams of PyFlink without its go-betweens.

``key_by`` and ``get_side_output`` put a Python function of one line between two operators: a worker process of its
own, through which every batch passes on its way. Here operators give what Flink needs as it stands.
"""

from __future__ import annotations

from pyflink.common import Types
from pyflink.common.typeinfo import TypeInformation
from pyflink.datastream import DataStream, KeyedStream, OutputTag
from pyflink.java_gateway import get_gateway


def keyed_type(value: TypeInformation) -> TypeInformation:
    """The type of a stream that :func:`keyed` takes: rows of a key and a value."""
    return Types.ROW_NAMED(["key", "value"], [Types.STRING(), value])


def keyed(stream: DataStream, value: TypeInformation) -> KeyedStream:
    """A stream of :func:`keyed_type` rows, keyed by their first field: functions see the second."""
    selector = get_gateway().jvm.KeyByKeySelector()
    by_key = stream._j_data_stream.keyBy(selector, Types.ROW([Types.STRING()]).get_java_type_info())
    return KeyedStream(by_key, value, stream)


def side_output(stream: DataStream, tag: OutputTag) -> DataStream:
    """What an operator emits under a tag, for an operator that runs in the JVM."""
    return DataStream(stream._j_data_stream.getSideOutput(tag.get_java_output_tag()))


def retyped(stream: DataStream, kind: TypeInformation) -> DataStream:
    """The stream of a table, whose rows Python functions take only under a type that they know."""
    stream._j_data_stream.getTransformation().setOutputType(kind.get_java_type_info())
    return stream

"""What a serving app imports: look-ups of what the job has learned, and the Redis schema. No PyFlink, no River."""

from serving.client import (
    Client,
    ItemState,
    Learned,
    ModelHeader,
    Recommendation,
    Recommendations,
    Scores,
    Session,
    Unreachable,
    UserState,
)
from serving.identity import key_from
from serving.schema import Keys, Tile

__all__ = [
    "Client",
    "ItemState",
    "Keys",
    "Learned",
    "ModelHeader",
    "Recommendation",
    "Recommendations",
    "Scores",
    "Session",
    "Tile",
    "Unreachable",
    "UserState",
    "key_from",
]

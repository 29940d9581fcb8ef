"""The feed: rows or windows of a cache in random order, read ahead, mixed, and resumed exactly."""

from train.feed.batch import Batch
from train.feed.config import FeedConfig
from train.feed.feed import Feed
from train.feed.report import FeedReport, PoolReport

__all__ = ["Batch", "Feed", "FeedConfig", "FeedReport", "PoolReport"]

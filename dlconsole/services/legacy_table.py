"""Each setting of the legacy scripts, and where it goes: what `docs/migrating.md` shows as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class LegacySetting:
    """`place` is where its value goes, '' for nowhere; `what` is what becomes of it."""

    name: str
    place: str
    what: str


SETTINGS: Final = (
    LegacySetting("redis_ip", "contexts.NAME.redis", "the host of the URL"),
    LegacySetting("redis_port", "contexts.NAME.redis", "its port"),
    LegacySetting("redis_db", "contexts.NAME.redis", "its number behind the slash"),
    LegacySetting("redis_pass", "contexts.NAME.redis", "its password, with special characters as `%XX`"),
    LegacySetting("dataset_name", "contexts.NAME.dataset", "the prefix of all keys"),
    LegacySetting(
        "RedisKey.task_key",
        "contexts.NAME.dataset",
        "`ds_task`, which says what `ds` is; where the two differ, this one counts",
    ),
    LegacySetting("RedisKey.error_key", "", "always `ds_task_error`; another name is reported"),
    LegacySetting("RedisKey.tongji_succ", "", "always `ds_tongji_succ`; another name is reported"),
    LegacySetting("RedisKey.tongji_error", "", "always `ds_tongji_error`; another name is reported"),
    LegacySetting("RedisKey.tongji_all", "", "always `ds_tongji_all`; another name is reported"),
    LegacySetting("RedisKey.tongji_disk", "", "always `tongji_worker_disk`; another name is reported"),
    LegacySetting("metadata_dir", "", "an argument: `dlconsole feed DIR`"),
    LegacySetting(
        "parquet_dir", "", "an argument: `dlconsole feed DIR`, also of Parquet, in all folders below"
    ),
    LegacySetting("addtask_threshold", "feed.threshold", "the same number of tasks"),
    LegacySetting("done_path", "feed.done_file", "the same file, in the same form"),
    LegacySetting("monitor_disk", "", "not needed: each worker watches and reports the disk of its store"),
    LegacySetting("store_dir", "worker.store_dir", "the same folder"),
    LegacySetting(
        "stop_threshold",
        "guard.max_used_bytes",
        "`(n + 1) GiB - 1`: the scripts stop where the used GiB, rounded down, are more than `n`",
    ),
    LegacySetting(
        "thread_num", "worker.concurrency", "fetches at once in each process; set `worker.processes` too"
    ),
    LegacySetting("store_error_dir", "errors.dir", "the same folder"),
)
"""Every setting of both versions of the scripts' `setting.py`."""

LAYOUTS: Final = {
    "worker.layout": ("hourly", "the scripts put YYYYMMDDHH, the local hour, in front of each path"),
    "feed.layout": ("flat", "the scripts' names: no folders for the first letters of the hash"),
}
"""What the scripts do without a setting: key → value and why."""

KEY_MEANS: Final = {
    "task_key": "dlconsole neither sees nor takes what waits there; rename that list and this setting",
    "error_key": "`dlconsole errors` does not see what legacy workers put there, nor save_error_task.py ours",
    "tongji_succ": "what legacy workers count there is in no sum of dlconsole",
    "tongji_error": "what legacy workers count there is in no sum of dlconsole",
    "tongji_all": "dlconsole counts what it feeds under its own name",
    "tongji_disk": "legacy workers see no disk that dlconsole reports; keep monitor_disk.py",
}
"""What another name of a key leads to."""

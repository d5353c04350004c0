"""From folders, manifests and shards to shards: the library behind `wds-shard`. `local.convert` is its front door."""

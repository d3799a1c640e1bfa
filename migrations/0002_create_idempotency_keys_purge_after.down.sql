drop index if exists idempotency_keys_purge_after;

create index if not exists idempotency_keys_purge_after on idempotency_keys (purge_after);

package main

// These are the package's own, which does not export them; a test compares them
// with postgres.go.
const (
	settingsSQL = `
select set_config('idle_in_transaction_session_timeout', $1, true),
	set_config('client_connection_check_interval', '1000', true)`

	claimSQL = `
insert into idempotency_keys (id, scope, purge_after)
select $1::text, $2::text, now() + $4::bigint * interval '1 microsecond'
where pg_try_advisory_xact_lock($3::bigint # 'idempotency_keys'::regclass::oid::bigint)
on conflict (id, scope) do nothing
returning ctid, current_setting('transaction_isolation') = 'serializable'`

	readSQL = `
select fingerprint, result, coalesce(origin, ''), expires_at is null, coalesce(expires_at <= clock_timestamp(), false)
from idempotency_keys
where id = $1 and scope = $2 and pg_current_xact_id_if_assigned() is null`

	recordSQL = `
with recorded as (
	update idempotency_keys
	set fingerprint = $4, result = $5, origin = $7, completed_at = clock_timestamp(),
		expires_at = clock_timestamp() + $6::bigint * interval '1 microsecond',
		purge_after = now() + $6::bigint * interval '1 microsecond'
	where id = $1 and scope = $2 and ctid >= $3 and ctid <= $3
	returning 1
)
select 1 / count(*) from recorded`

	purgeSQL = `
delete from idempotency_keys
where ctid = any(array(
	select ctid from idempotency_keys
	where purge_after <= now() and expires_at <= now()
	order by purge_after
	limit $1
	for update skip locked))
and expires_at <= now()`
)

type statements struct{ settings, claim, read, record, purge string }

var ownStatements = statements{settingsSQL, claimSQL, readSQL, recordSQL, purgeSQL}

// businessTable and businessSQL are the transaction that is to happen once.
const (
	businessTable = `
create table charges (
	id     bigint generated always as identity primary key,
	key    text not null,
	amount bigint not null
)`
	businessSQL = `insert into charges (key, amount) values ($1, $2) returning id`
)

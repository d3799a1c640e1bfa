package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pgidem/idempotency/internal/keytable"
)

// vacuumSQL has the threshold as autovacuum reckons it. The oldest snapshot is of
// a session (which not every role may see), a standby's feedback, a prepared transaction or a
// replication slot.
const vacuumSQL = `
select current_setting('autovacuum'::text)::bool, current_setting('track_counts'::text)::bool,
	coalesce((select option_value::bool from pg_options_to_table(c.reloptions) where option_name = 'autovacuum_enabled'), true),
	coalesce(s.n_dead_tup, 0::bigint),
	(greatest(c.reltuples::float8, 0::float8)
		* coalesce((select option_value::float8 from pg_options_to_table(c.reloptions) where option_name = 'autovacuum_vacuum_scale_factor'),
			current_setting('autovacuum_vacuum_scale_factor'::text)::float8)
		+ coalesce((select option_value::float8 from pg_options_to_table(c.reloptions) where option_name = 'autovacuum_vacuum_threshold'),
			current_setting('autovacuum_vacuum_threshold'::text)::float8))::bigint,
	coalesce(to_char(s.last_autovacuum at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'::text), 'never'),
	coalesce((
		select holder from (
			select age(backend_xmin), 'process ' || pid::text || coalesce(', in its transaction since ' || to_char(xact_start at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'::text), '')
			from pg_stat_activity
			where (datname = current_database() and pid <> pg_backend_pid() and backend_type not like 'autovacuum%') or backend_type = 'walsender'
			union all
			select age(transaction), 'the prepared transaction ' || gid from pg_prepared_xacts where database = current_database()
			union all
			select age(xmin), 'the replication slot ' || slot_name::text from pg_replication_slots) x (age, holder)
		where age is not null
		order by age desc limit 1), ''),
	pg_has_role('pg_read_all_stats'::name, 'usage'::text)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
left join pg_stat_user_tables s on s.relid = c.oid
where n.nspname = $1::text and c.relname = 'idempotency_keys'`

// Autovacuum comes around once a minute: it is behind when there is five times
// what calls for it, and more than one purge leaves.
const (
	behindFactor = 5
	behindRows   = 10_000
)

func checkAutovacuum(ctx context.Context, p *patient) error {
	if p.table == nil {
		return nil
	}
	var on, counts, enabled, sees bool
	var dead, threshold int64
	var last, holder string
	err := p.query(ctx, "looking at autovacuum", vacuumSQL, []any{p.table.schema}, &on, &counts, &enabled, &dead, &threshold, &last, &holder, &sees)
	if err != nil {
		return err
	}
	if !on || !counts {
		p.find(Warning, "autovacuum", "autovacuum is off on this server (autovacuum, or track_counts, which it needs): the table grows with each purge",
			"alter system set autovacuum = on; alter system set track_counts = on; select pg_reload_conf()")
	}
	if !enabled {
		p.find(Warning, "autovacuum", "autovacuum is off for "+p.table.name+": the table grows with each purge",
			"alter table "+p.table.name+" reset (autovacuum_enabled)")
	}
	if dead > behindFactor*threshold && dead > behindRows {
		found := fmt.Sprintf("about %d dead rows in %s, last autovacuum: %s", dead, p.table.name, last)
		remedy := "vacuum " + p.table.name + "; and give autovacuum more to work with: autovacuum_vacuum_cost_limit, autovacuum_max_workers"
		switch {
		case holder != "" && !sees:
			found += "; the oldest snapshot that this role can see, perhaps not the oldest, is held by " + holder
			remedy = "look for an old transaction, as a member of pg_monitor, who can see all: nothing newer than the oldest can be removed; then " + remedy
		case holder != "":
			found += "; the oldest snapshot is held by " + holder
			remedy = "end that first if it is old, since nothing newer can be removed (pg_terminate_backend, rollback prepared, pg_drop_replication_slot); then " + remedy
		case !sees:
			remedy = "look for an old transaction, which this role cannot see (a member of pg_monitor can): nothing newer than it can be removed; then " + remedy
		}
		p.find(Warning, "dead rows", found, remedy)
	}
	return nil
}

// purgeSQL goes along the purge's index, to the first row that a purge would
// delete. A record can have expired at -infinity, since which no seconds can be told.
const purgeSQL = `
select (extract(epoch from now()) - extract(epoch from greatest(expires_at, 'epoch'::timestamptz)))::bigint
from idempotency_keys
where purge_after <= now() and expires_at <= now()
order by purge_after
limit 1`

// overdue is longer than anybody leaves between two purges.
const overdue = 24 * time.Hour

// checkPurge needs the index, for it must not read the whole table, and the right
// to select.
func checkPurge(ctx context.Context, p *patient) error {
	if p.table == nil || !p.table.trusted() || p.table.PurgeIndex() == nil {
		return nil
	}
	var seconds []int64
	query := "select array(" + strings.Replace(purgeSQL, "idempotency_keys", p.table.name, 1) + ")"
	err := p.read(ctx, "looking for expired records", keytable.Name, query, &seconds)
	if unreadable(err) || errors.As(err, new(untrusted)) {
		return nil // checkPrivileges has said so; or the table was replaced just now, and the next run says so
	}
	if err != nil {
		return err
	}
	if len(seconds) > 0 && time.Duration(seconds[0])*time.Second > overdue {
		p.find(Warning, "purge", fmt.Sprintf("the oldest record expired %d hours ago and is still there: nothing purges %s", seconds[0]/3600, p.table.name),
			"run Store.PurgeEvery in the program, or idempotency purge beside it")
	}
	return nil
}

const migrationsSQL = `select array(select version from idempotency_migrations where dirty)`

// checkMigrations looks into the record that migrations.Up keeps. There is none
// where another tool ran them, and then somebody else can have made a relation of that
// name, a view for example.
func checkMigrations(ctx context.Context, p *patient) error {
	if p.table == nil {
		return nil
	}
	const versions = keytable.Migrations
	name := p.table.sibling(versions)
	var dirty []int64
	err := p.read(ctx, "looking at the migrations", versions, strings.Replace(migrationsSQL, versions, name, 1), &dirty)
	if refused, is := errors.AsType[untrusted](err); is {
		p.find(Error, "migrations", refused.found, refused.remedy)
		return nil
	}
	if unreadable(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(dirty) > 0 {
		p.find(Warning, "migrations", fmt.Sprintf("migration %d was begun and not ended", dirty[0]), migrate+", which goes on where it stopped")
	}
	return nil
}

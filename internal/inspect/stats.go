package inspect

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/keytable"
)

// A Statistic is what one run found. Estimated covers Keys, Expired, Abandoned,
// Scopes and Arrivals; DeadRows is always the server's estimate.
type Statistic struct {
	Estimated      bool     `json:"estimated"`
	SampledPercent float64  `json:"sampled_percent"`
	Keys           int64    `json:"keys"`
	Expired        int64    `json:"expired"`
	Abandoned      int64    `json:"abandoned"`
	OldestExpired  *Instant `json:"oldest_expired,omitempty"`
	Unfinished     *Backlog `json:"unfinished,omitempty"` // absent: the role may not read them, or there is no table

	TableBytes     int64    `json:"table_bytes"`
	IndexBytes     int64    `json:"index_bytes"`
	ToastBytes     int64    `json:"toast_bytes"`
	BytesPerKey    float64  `json:"bytes_per_key"`
	DeadRows       int64    `json:"dead_rows_estimate"`
	LastAutovacuum *Instant `json:"last_autovacuum,omitempty"`

	ScopeCount int64        `json:"scope_count"`
	Scopes     []ScopeCount `json:"scopes"`
	Arrivals   []Arrivals   `json:"hourly_arrivals"`
	Holders    []KeyHolder  `json:"holders"`

	Now Instant `json:"now"`
}

// A ScopeCount is how many keys a scope has.
type ScopeCount struct {
	Scope string `json:"scope"`
	Keys  int64  `json:"keys"`
	Bytes int64  `json:"bytes,omitempty"` // as they are stored, without the indexes
}

// Arrivals are the keys that were made within an hour.
type Arrivals struct {
	Hour Instant `json:"hour"`
	Keys int64   `json:"keys"`
}

// A KeyHolder is a transaction that holds keys.
type KeyHolder struct {
	Holder
	Keys    int64 `json:"keys"`
	Writing bool  `json:"writing"` // it has a transaction id: not a replay about to end
}

// sizeSQL has the sizes with their free space maps. A partitioned table is the sum of its
// partitions.
const sizeSQL = `
with parts as (
	select c.oid, c.oid::regclass as part, nullif(c.reltoastrelid, 0::oid)::regclass as toast
	from pg_class c
	where c.oid = 'idempotency_keys'::regclass::oid
		or c.oid in (select relid::oid from pg_partition_tree('idempotency_keys'::regclass) where relid is not null)
)
select coalesce(sum(pg_table_size(part) - coalesce(pg_total_relation_size(toast), 0::bigint)), 0::numeric)::bigint,
	coalesce(sum(pg_indexes_size(part)), 0::numeric)::bigint,
	coalesce(sum(pg_total_relation_size(toast)), 0::numeric)::bigint,
	coalesce(sum(pg_relation_size(part) / current_setting('block_size'::text)::bigint), 0::numeric)::bigint,
	(select coalesce(sum(n_dead_tup), 0::numeric)::bigint from pg_stat_user_tables where relid in (select oid from parts)),
	(select extract(epoch from max(last_autovacuum))::text from pg_stat_user_tables where relid in (select oid from parts)),
	extract(epoch from clock_timestamp())::text
from parts`

// sizeOnCitusSQL is sizeSQL where Citus distributes the table, and this node has nothing of
// it. The table's size is with its TOAST; of dead rows nothing is known here.
const sizeOnCitusSQL = `
select pg_catalog.citus_table_size('idempotency_keys'::regclass),
	pg_catalog.citus_total_relation_size('idempotency_keys'::regclass, true) - pg_catalog.citus_table_size('idempotency_keys'::regclass),
	0::bigint,
	pg_catalog.citus_relation_size('idempotency_keys'::regclass) / current_setting('block_size'::text)::bigint,
	0::bigint, null::text, extract(epoch from clock_timestamp())::text`

// distributedSQL tells which of the two to ask, where Citus is loaded.
const distributedSQL = `select exists (select from pg_catalog.pg_dist_partition where logicalrelid::oid = 'idempotency_keys'::regclass::oid)`

func (t *Table) sizeSQL(ctx context.Context, tx pgx.Tx) (string, error) {
	for _, sql := range []string{`select ` + keytable.CitusSQL, t.On(distributedSQL)} {
		var so bool
		if err := tx.QueryRow(ctx, sql).Scan(&so); err != nil || !so {
			return t.On(sizeSQL), err
		}
	}
	return t.On(sizeOnCitusSQL), nil
}

// keysSQL reads the pages of the sample once, into the totals, the largest scopes
// and the hours. What it counts is scaled up by its caller. It reckons in seconds,
// as numeric: whatever times stand in a row, they cannot overflow, and a row whose
// creation cannot be told (NaN) is of no hour, since NaN is larger than now. The percentage
// is in the text: Citus takes no parameter there.
func keysSQL(o Operations, percent float64, sized, repeatable bool) string {
	bytes, sum, object, by, seed := ``, ``, ``, ``, ``
	if repeatable { // the same pages the next time, which are in memory then
		seed = ` repeatable (0)`
	}
	if sized { // none of the functions reads what is stored out of line
		bytes = `pg_catalog.pg_column_size(id) + pg_catalog.pg_column_size(scope) + coalesce(pg_catalog.pg_column_size(result), 0)
			+ coalesce(pg_catalog.pg_column_size(fingerprint), 0) + coalesce(pg_catalog.pg_column_size(origin), 0) + ` + rowBytes + ` as bytes, `
		sum, object, by = `, sum(bytes) as bytes`, `, 'bytes', bytes`, `bytes desc, `
	}
	return `
with sample as materialized (
	select scope, ` + bytes + o.stateSQL(`now()`) + ` = 'abandoned'::text as abandoned, expires_at <= now() as expired,
		extract(epoch from purge_after) - extract(epoch from expires_at) + extract(epoch from completed_at) as created
	from idempotency_keys tablesample system (` + strconv.FormatFloat(percent, 'g', -1, 32) + `)` + seed + `
), scopes as (
	select scope, count(*) as keys` + sum + ` from sample group by scope
), hours as (
	select floor(created / 3600::numeric)::bigint * 3600::bigint as hour, count(*) as keys from sample
	where created <= extract(epoch from now()) and floor(created / 3600::numeric) > extract(epoch from now()) / 3600::numeric - 24::numeric
	group by 1
)
select (select count(*) from sample),
	(select count(*) from sample where expired),
	(select count(*) from sample where abandoned),
	(select count(*) from scopes),
	(select coalesce(pg_catalog.json_agg(pg_catalog.json_build_object('scope', scope, 'keys', keys` + object + `) order by ` + by + `keys desc, scope), '[]')
	from (select * from scopes order by ` + by + `keys desc, scope limit $1::bigint) x),
	(select coalesce(pg_catalog.json_agg(pg_catalog.json_build_array(hour, keys) order by hour), '[]') from hours)`
}

// rowBytes is what a row has beside its texts: the header, the pointer to it and three times.
const rowBytes = `52`

// oldestSQL goes along the purge's index.
const oldestSQL = `
select extract(epoch from expires_at)::text from idempotency_keys
where purge_after <= now() and expires_at <= now()
order by purge_after
limit 1`

// holdersSQL has a line for each transaction that is at a call, or at several.
const holdersSQL = `
select ` + holderColumns + `,
	count(*), exists (select from pg_locks x where x.virtualtransaction = l.virtualtransaction and x.locktype = 'transactionid' and x.mode = 'ExclusiveLock' and x.granted)
from ` + keyLocks + `
	and ` + ofCalls + `
group by l.virtualtransaction, l.pid, a.pid, a.application_name, a.usename, a.client_addr, a.client_port, a.state, a.xact_start, a.wait_event
order by a.xact_start nulls last, l.pid`

// Statistics reads about sample pages of a larger table, and has so many of the largest
// scopes.
func (t *Table) Statistics(ctx context.Context, tx pgx.Tx, sample int64, scopes int) (s Statistic, err error) {
	if err := t.Sizes(ctx, tx, &s, sample); err != nil {
		return s, err
	}
	o, err := t.Operations(ctx, tx)
	if err != nil {
		return s, err
	}
	if s.Unfinished, err = t.Backlog(ctx, tx, o); err != nil {
		return s, err
	}
	if err := t.Sample(ctx, tx, &s, o, scopes, false); err != nil {
		return s, err
	}
	err = tx.QueryRow(ctx, t.On(oldestSQL)).Scan(&s.OldestExpired)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return s, err
	}
	s.Holders, err = t.KeyHolders(ctx, tx)
	return s, err
}

// Sizes fills in what the server knows without reading the table, and which percentage of
// it has about sample pages.
func (t *Table) Sizes(ctx context.Context, tx pgx.Tx, s *Statistic, sample int64) error {
	var pages int64
	sizes, err := t.sizeSQL(ctx, tx)
	if err != nil {
		return err
	}
	err = tx.QueryRow(ctx, sizes).Scan(&s.TableBytes, &s.IndexBytes, &s.ToastBytes, &pages, &s.DeadRows, &s.LastAutovacuum, &s.Now)
	s.SampledPercent = 100
	if pages > sample {
		s.Estimated, s.SampledPercent = true, 100*float64(sample)/float64(pages)
	}
	return err
}

// Sample counts in the percentage that Sizes has filled in. With sized, the scopes have
// their bytes, and the largest are those with the most.
func (t *Table) Sample(ctx context.Context, tx pgx.Tx, s *Statistic, o Operations, scopes int, sized bool) error {
	var hours [][2]int64 // the second at which it begins, and the keys in it
	err := tx.QueryRow(ctx, t.On(keysSQL(o, s.SampledPercent, sized, t.bounded)), scopes).
		Scan(&s.Keys, &s.Expired, &s.Abandoned, &s.ScopeCount, &s.Scopes, &hours)
	if err != nil {
		return err
	}
	s.Arrivals = make([]Arrivals, len(hours))
	for i, h := range hours {
		s.Arrivals[i] = Arrivals{Instant{Time: time.Unix(h[0], 0).UTC()}, h[1]}
	}
	s.scale()
	if s.Keys > 0 {
		s.BytesPerKey = float64(s.TableBytes+s.IndexBytes+s.ToastBytes) / float64(s.Keys)
	}
	return nil
}

// KeyHolders are the transactions that are at a call, the oldest first.
func (t *Table) KeyHolders(ctx context.Context, tx pgx.Tx) ([]KeyHolder, error) {
	rows, _ := tx.Query(ctx, t.On(holdersSQL))
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (h KeyHolder, err error) {
		err = row.Scan(append(h.targets(), &h.Keys, &h.Writing)...)
		return h, err
	})
}

// scale makes of the sample's counts those of the table. The number of scopes is
// that of the sample: nobody can tell how many more there are.
func (s *Statistic) scale() {
	up := func(n *int64) { *n = int64(float64(*n)*100/s.SampledPercent + 0.5) }
	up(&s.Keys)
	up(&s.Expired)
	up(&s.Abandoned)
	for i := range s.Scopes {
		up(&s.Scopes[i].Keys)
		up(&s.Scopes[i].Bytes)
	}
	for i := range s.Arrivals {
		up(&s.Arrivals[i].Keys)
	}
}

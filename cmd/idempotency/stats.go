package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/keytable"
)

var stats = &command{
	name:    "stats",
	summary: "sizes, arrivals, scopes, what has expired, and who holds a key now",
	text: `A large table is sampled, and what rests on a sample is marked with ~; -exact reads all
of it. Replays are not stored: what is counted are keys that took effect, once each, as
far as they are not purged yet. With -every it goes on, after a lost connection too,
-timeout is for each round, and it ends with exit code 0 when it is interrupted.`,
	setup: func(fs *flag.FlagSet) action {
		db := databaseFlags(fs, time.Minute)
		exact := fs.Bool("exact", false, "read the whole table")
		sample := fs.Int64("sample", 20_000, "read about so many `pages` of 8 kB of a larger table")
		scopes := fs.Int("scopes", 10, "list so many of the largest `scopes`")
		var every age
		fs.Var(&every, "every", "go on, and look again after this `time`, such as 2s")
		asJSON := jsonFlag(fs)
		return func(ctx context.Context, std stdio, _ []string) error {
			if *scopes < 0 {
				return usageError{fmt.Sprintf("-scopes %d: it has to be 0 or more", *scopes), true}
			}
			if *sample < 1 {
				return usageError{fmt.Sprintf("-sample %d: it has to be 1 or more", *sample), true}
			}
			if *exact {
				*sample = math.MaxInt64
			}
			w := watch{database: db, std: std, every: time.Duration(every), asJSON: *asJSON}
			w.look = func(ctx context.Context, pool *pgxpool.Pool) (s statistic, err error) {
				err = db.reading(ctx, pool, func(tx pgx.Tx) error {
					s, err = db.statistics(ctx, tx, *sample, *scopes)
					return err
				})
				return s, err
			}
			return w.run(ctx)
		}
	},
}

// A statistic is what one run found. Estimated covers Keys, Expired, Abandoned,
// Scopes and Arrivals; DeadRows is always the server's estimate.
type statistic struct {
	Estimated      bool     `json:"estimated"`
	SampledPercent float64  `json:"sampled_percent"`
	Keys           int64    `json:"keys"`
	Expired        int64    `json:"expired"`
	Abandoned      int64    `json:"abandoned"`
	OldestExpired  *instant `json:"oldest_expired,omitempty"`
	Unfinished     *backlog `json:"unfinished,omitempty"` // absent: the role may not read them, or there is no table

	TableBytes     int64    `json:"table_bytes"`
	IndexBytes     int64    `json:"index_bytes"`
	ToastBytes     int64    `json:"toast_bytes"`
	BytesPerKey    float64  `json:"bytes_per_key"`
	DeadRows       int64    `json:"dead_rows_estimate"`
	LastAutovacuum *instant `json:"last_autovacuum,omitempty"`

	ScopeCount int64        `json:"scope_count"`
	Scopes     []scopeCount `json:"scopes"`
	Arrivals   []arrivals   `json:"hourly_arrivals"`
	Holders    []keyHolder  `json:"holders"`

	Now instant `json:"now"`
}

type scopeCount struct {
	Scope string `json:"scope"`
	Keys  int64  `json:"keys"`
}

type arrivals struct {
	Hour instant `json:"hour"`
	Keys int64   `json:"keys"`
}

// A keyHolder is a transaction that holds keys.
type keyHolder struct {
	holder
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

func (d *database) sizeSQL(ctx context.Context, tx pgx.Tx) (string, error) {
	for _, sql := range []string{`select ` + keytable.CitusSQL, d.on(distributedSQL)} {
		var so bool
		if err := tx.QueryRow(ctx, sql).Scan(&so); err != nil || !so {
			return d.on(sizeSQL), err
		}
	}
	return d.on(sizeOnCitusSQL), nil
}

// keysSQL reads the pages of the sample once, into the totals, the largest scopes
// and the hours. What it counts is scaled up by its caller. It reckons in seconds,
// as numeric: whatever times stand in a row, they cannot overflow, and a row whose
// creation cannot be told (NaN) is of no hour, since NaN is larger than now. The percentage
// is in the text: Citus takes no parameter there.
func keysSQL(o operations, percent float64) string {
	return `
with sample as materialized (
	select scope, ` + o.stateSQL(`now()`) + ` = 'abandoned'::text as abandoned, expires_at <= now() as expired,
		extract(epoch from purge_after) - extract(epoch from expires_at) + extract(epoch from completed_at) as created
	from idempotency_keys tablesample system (` + strconv.FormatFloat(percent, 'g', -1, 32) + `)
), scopes as (
	select scope, count(*) as keys from sample group by scope
), hours as (
	select floor(created / 3600::numeric)::bigint * 3600::bigint as hour, count(*) as keys from sample
	where created <= extract(epoch from now()) and floor(created / 3600::numeric) > extract(epoch from now()) / 3600::numeric - 24::numeric
	group by 1
)
select (select count(*) from sample),
	(select count(*) from sample where expired),
	(select count(*) from sample where abandoned),
	(select count(*) from scopes),
	(select coalesce(pg_catalog.json_agg(pg_catalog.json_build_object('scope', scope, 'keys', keys) order by keys desc, scope), '[]')
	from (select scope, keys from scopes order by keys desc, scope limit $1::bigint) x),
	(select coalesce(pg_catalog.json_agg(pg_catalog.json_build_array(hour, keys) order by hour), '[]') from hours)`
}

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

func (d *database) statistics(ctx context.Context, tx pgx.Tx, sample int64, scopes int) (s statistic, err error) {
	var pages int64
	sizes, err := d.sizeSQL(ctx, tx)
	if err != nil {
		return s, err
	}
	err = tx.QueryRow(ctx, sizes).Scan(&s.TableBytes, &s.IndexBytes, &s.ToastBytes, &pages, &s.DeadRows, &s.LastAutovacuum, &s.Now)
	if err != nil {
		return s, err
	}
	s.SampledPercent = 100
	if pages > sample {
		s.Estimated, s.SampledPercent = true, 100*float64(sample)/float64(pages)
	}
	o, err := d.operations(ctx, tx)
	if err != nil {
		return s, err
	}
	if s.Unfinished, err = d.backlog(ctx, tx, o); err != nil {
		return s, err
	}
	var hours [][2]int64 // the second at which it begins, and the keys in it
	err = tx.QueryRow(ctx, d.on(keysSQL(o, s.SampledPercent)), scopes).
		Scan(&s.Keys, &s.Expired, &s.Abandoned, &s.ScopeCount, &s.Scopes, &hours)
	if err != nil {
		return s, err
	}
	s.Arrivals = make([]arrivals, len(hours))
	for i, h := range hours {
		s.Arrivals[i] = arrivals{instant{Time: time.Unix(h[0], 0).UTC()}, h[1]}
	}
	s.scale()
	if s.Keys > 0 {
		s.BytesPerKey = float64(s.TableBytes+s.IndexBytes+s.ToastBytes) / float64(s.Keys)
	}
	err = tx.QueryRow(ctx, d.on(oldestSQL)).Scan(&s.OldestExpired)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return s, err
	}
	rows, _ := tx.Query(ctx, d.on(holdersSQL))
	s.Holders, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (h keyHolder, err error) {
		err = row.Scan(append(h.targets(), &h.Keys, &h.Writing)...)
		return h, err
	})
	return s, err
}

// scale makes of the sample's counts those of the table. The number of scopes is
// that of the sample: nobody can tell how many more there are.
func (s *statistic) scale() {
	up := func(n *int64) { *n = int64(float64(*n)*100/s.SampledPercent + 0.5) }
	up(&s.Keys)
	up(&s.Expired)
	up(&s.Abandoned)
	for i := range s.Scopes {
		up(&s.Scopes[i].Keys)
	}
	for i := range s.Arrivals {
		up(&s.Arrivals[i].Keys)
	}
}

func (s statistic) print(w io.Writer) error {
	for _, section := range []func() (string, [][]string){s.totals, s.hours, s.largest, s.inProgress} {
		title, lines := section()
		if _, err := fmt.Fprintln(w, title); err != nil {
			return err
		}
		for i := range lines {
			lines[i][0] = "  " + lines[i][0]
		}
		if err := fitted(w, lines, 0); err != nil {
			return err
		}
	}
	return nil
}

// about is a count, marked if it is an estimate.
func (s statistic) about(n int64) string {
	if s.Estimated {
		return "~" + count(n)
	}
	return count(n)
}

func (s statistic) totals() (string, [][]string) {
	title := "Records"
	if s.Estimated {
		title += fmt.Sprintf(" (~ is estimated from %.2g %% of the table; -exact reads all)", s.SampledPercent)
	}
	dead := "~" + count(s.DeadRows) + ", never autovacuumed"
	if s.LastAutovacuum != nil {
		dead = "~" + count(s.DeadRows) + ", autovacuumed " + s.LastAutovacuum.relative(s.Now)
	}
	lines := [][]string{
		{"keys", s.about(s.Keys)},
		{"of them expired", s.about(s.Expired)},
	}
	if s.OldestExpired != nil {
		lines = append(lines, []string{"oldest expired", s.OldestExpired.in(s.Now)})
	}
	if s.Unfinished != nil && s.Unfinished.Operations > 0 {
		lines = append(lines, []string{"unfinished", s.Unfinished.text(s.Now)})
	}
	if s.Abandoned > 0 {
		lines = append(lines, []string{"abandoned", s.about(s.Abandoned) + " (list -state abandoned)"})
	}
	lines = append(lines, []string{"size", size(s.TableBytes+s.IndexBytes+s.ToastBytes) +
		": table " + size(s.TableBytes) + ", indexes " + size(s.IndexBytes) + ", TOAST " + size(s.ToastBytes)})
	if s.Keys > 0 {
		perKey := fmt.Sprintf("%.0f B", s.BytesPerKey)
		if s.Estimated {
			perKey = "~" + perKey
		}
		lines = append(lines, []string{"size per key", perKey})
	}
	return title, append(lines, []string{"dead rows", dead})
}

// barWidth is of the hour with the most arrivals.
const barWidth = 40

func (s statistic) hours() (string, [][]string) {
	var most int64
	for _, a := range s.Arrivals {
		most = max(most, a.Keys)
	}
	var lines [][]string
	for _, a := range s.Arrivals {
		bar := strings.Repeat("#", int(a.Keys*barWidth/max(most, 1)))
		lines = append(lines, []string{a.Hour.Format("2006-01-02 15:00Z"), s.about(a.Keys), bar})
	}
	return s.headed("Arrivals by the hour, last 24 hours (first calls still in the table; replays are not stored)", lines)
}

func (s statistic) largest() (string, [][]string) {
	var lines [][]string
	for _, c := range s.Scopes {
		lines = append(lines, []string{plain(c.Scope), s.about(c.Keys)})
	}
	title := "Scopes"
	switch {
	case s.Estimated:
		title = fmt.Sprintf("Largest scopes (of %s or more)", count(s.ScopeCount))
	case s.ScopeCount > int64(len(s.Scopes)):
		title = fmt.Sprintf("Largest scopes (of %s)", count(s.ScopeCount))
	}
	return s.headed(title, lines)
}

func (s statistic) inProgress() (string, [][]string) {
	var lines [][]string
	for _, h := range s.Holders {
		doing := "in progress"
		switch {
		case h.replicating():
			doing = "committing, waits for a synchronous standby"
		case !h.Writing:
			doing = "replaying, or just begun"
		}
		lines = append(lines, []string{h.String() + ":", plural(h.Keys, "key"), doing})
	}
	return s.headed("Transactions that hold a key now", lines)
}

func (s statistic) headed(title string, lines [][]string) (string, [][]string) {
	if len(lines) == 0 {
		return title + ": none", nil
	}
	return title, lines
}

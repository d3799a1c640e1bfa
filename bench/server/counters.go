package server

import (
	"context"
	"time"
)

// Counters are of the whole server.
type Counters struct {
	WAL    int64 // bytes of write-ahead log inserted
	XIDs   int64 // transaction ids handed out
	Fsyncs int64 // of the write-ahead log
}

// Minus is what was counted since.
func (c Counters) Minus(since Counters) Counters {
	return Counters{c.WAL - since.WAL, c.XIDs - since.XIDs, c.Fsyncs - since.Fsyncs}
}

// PostgreSQL 18 has moved the count of fsyncs to pg_stat_io.
const (
	countersSQL = `
select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint,
	pg_snapshot_xmax(pg_current_snapshot())::text::bigint`
	fsyncsSQL   = `select wal_sync from pg_stat_wal`
	fsyncsSQL18 = `select coalesce(sum(fsyncs), 0)::bigint from pg_stat_io where object = 'wal'`
)

// collectorLag is how old the statistics are that PostgreSQL 14 may answer with.
const collectorLag = 600 * time.Millisecond

// Counters reads them. Backends report their fsyncs when they end: see Quiet.
func (s *Server) Counters(ctx context.Context) (c Counters, err error) {
	if err := s.Admin.QueryRow(ctx, countersSQL).Scan(&c.WAL, &c.XIDs); err != nil {
		return c, err
	}
	version, err := s.version(ctx)
	if err != nil {
		return c, err
	}
	if version < 150000 {
		time.Sleep(collectorLag)
	}
	sql := fsyncsSQL
	if version >= 180000 {
		sql = fsyncsSQL18
	}
	return c, s.Admin.QueryRow(ctx, sql).Scan(&c.Fsyncs)
}

// version is 150018 for 15.18.
func (s *Server) version(ctx context.Context) (v int, err error) {
	err = s.Admin.QueryRow(ctx, "select current_setting('server_version_num')::int").Scan(&v)
	return v, err
}

// Quiet waits until nobody is connected to a database: then all that was done
// there is counted.
func (s *Server) Quiet(ctx context.Context, database string) error {
	for {
		var sessions int
		err := s.Admin.QueryRow(ctx, "select count(*) from pg_stat_activity where datname = $1", database).Scan(&sessions)
		if err != nil || sessions == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Busy is the number of clients' sessions that are not idle: at work, waiting for
// a lock, or in an open transaction.
func (s *Server) Busy(ctx context.Context, database string) (n int, err error) {
	err = s.Admin.QueryRow(ctx, `
		select count(*) from pg_stat_activity
		where datname = $1 and backend_type = 'client backend' and state is distinct from 'idle'`, database).Scan(&n)
	return n, err
}

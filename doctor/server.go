package doctor

import (
	"context"
	"fmt"
	"time"
)

const serverSQL = `
select pg_is_in_recovery(),
	current_setting('fsync')::bool, current_setting('full_page_writes')::bool,
	(select count(*) from pg_stat_replication),
	current_setting('synchronous_standby_names')`

// checkServer looks at what is the same for every connection.
func checkServer(ctx context.Context, p *patient) error {
	var standby, fsync, fullPages bool
	var standbys int
	var synchronous string
	err := p.query(ctx, "asking for the server's settings", serverSQL, nil, &standby, &fsync, &fullPages, &standbys, &synchronous)
	if err != nil {
		return err
	}
	if standby {
		p.find(Error, "primary", "this server is a standby, which cannot write",
			"connect to the primary: several hosts and target_session_attrs=read-write in the connection string find it")
	}
	if !fsync {
		p.find(Error, "fsync", "fsync is off: a crash of the machine can lose committed keys, or corrupt the database",
			"alter system set fsync = on; select pg_reload_conf()")
	}
	if !fullPages {
		p.find(Warning, "full_page_writes", "full_page_writes is off: a crash can leave torn pages unless the file system rules them out",
			"alter system set full_page_writes = on; select pg_reload_conf()")
	}
	if standbys > 0 && synchronous == "" {
		p.find(Note, "standbys", fmt.Sprintf("%d standbys follow, and none is synchronous: after a failover to one, the last effects and their keys can be missing, and retries run again", standbys),
			"set synchronous_standby_names if a confirmed call must survive a failover")
	}
	return nil
}

const sessionSQL = `
select current_setting('default_transaction_read_only')::bool,
	current_setting('default_transaction_isolation'),
	current_setting('synchronous_commit'),
	current_setting('synchronous_standby_names'),
	(extract(epoch from current_setting('idle_in_transaction_session_timeout')::interval) * 1000)::bigint,
	inet_client_addr() is not null,
	current_setting('tcp_keepalives_idle')::bigint,
	current_setting('tcp_keepalives_interval')::bigint * current_setting('tcp_keepalives_count')::bigint`

// A session is what the program's connections have by default.
type session struct {
	readOnly                       bool
	isolation, commit, synchronous string
	idleMillis                     int64
	tcp                            bool
	keepalive, probes              int64 // seconds until the first, and from there to the last
}

// checkSession looks at what matters to calls alone.
func checkSession(ctx context.Context, p *patient) error {
	if !p.role.calls {
		return nil
	}
	var s session
	err := p.query(ctx, "asking for the connection's settings", sessionSQL, nil,
		&s.readOnly, &s.isolation, &s.commit, &s.synchronous, &s.idleMillis, &s.tcp, &s.keepalive, &s.probes)
	if err != nil {
		return err
	}
	p.checkModes(s)
	p.checkDeadClients(s)
	return nil
}

func (p *patient) checkModes(s session) {
	if s.readOnly && p.cfg.TxOptions.AccessMode == "" {
		p.find(Error, "read only", "transactions are read-only by default, so no key can be claimed",
			"unset default_transaction_read_only for the role and the database, or set Config.TxOptions.AccessMode to read write")
	}
	if p.cfg.TxOptions.IsoLevel == "" && (s.isolation == "repeatable read" || s.isolation == "serializable") {
		p.find(Note, "isolation", "transactions are "+s.isolation+" by default: Do runs a function again when PostgreSQL reports a conflict (40001), DoTx cannot",
			"retry 40001 around DoTx; or set Config.TxOptions.IsoLevel, to say that you mean it")
	}
	switch {
	case s.commit == "off":
		p.find(Warning, "synchronous_commit", "synchronous_commit is off: a crash can lose calls that were already answered, effect and key together, and their retries run again",
			"set synchronous_commit = on, at least for this role: alter role ... set synchronous_commit = on")
	case s.commit == "local" && s.synchronous != "":
		p.find(Warning, "synchronous_commit", "synchronous_commit is local: COMMIT does not wait for the synchronous standby, so a failover can lose calls that were already answered",
			"set synchronous_commit = on, at least for this role: alter role ... set synchronous_commit = on")
	}
}

// patience is how long the key of a client whose machine is gone may stay taken.
const patience = 10 * time.Minute

func (p *patient) checkDeadClients(s session) {
	if silence := time.Duration(s.keepalive+s.probes) * time.Second; s.tcp && silence > patience {
		p.find(Warning, "tcp keepalives",
			fmt.Sprintf("a client machine that vanishes in the middle of a statement is noticed after %v (tcp_keepalives_idle %d s + interval * count %d s), and its key stays taken for as long", silence, s.keepalive, s.probes),
			"set tcp_keepalives_idle = 60, tcp_keepalives_interval = 10 and tcp_keepalives_count = 6, in postgresql.conf or as parameters of the connection string")
	}
	switch idle := time.Duration(s.idleMillis) * time.Millisecond; {
	case idle == 0 && p.cfg.MaxIdle < 0:
		p.find(Warning, "idle timeout", "Config.MaxIdle is off and so is idle_in_transaction_session_timeout: a client that freezes inside a call keeps its key, and holds back vacuum, for ever",
			"leave Config.MaxIdle at its default, or set idle_in_transaction_session_timeout")
	case idle == 0:
		p.find(Note, "idle timeout", "idle_in_transaction_session_timeout is off: Do sets its own (Config.MaxIdle), but a client that freezes in a transaction with DoTx keeps its keys for ever",
			"alter role ... set idle_in_transaction_session_timeout = '1min'")
	}
}

const clockSQL = `select clock_timestamp()`

// apart is where clocks that a daemon keeps would never be.
const apart = 2 * time.Second

// checkClock compares the middle of the round trip, whose half is the error.
func checkClock(ctx context.Context, p *patient) error {
	var server time.Time
	before := p.now()
	if err := p.query(ctx, "asking for the time", clockSQL, nil, &server); err != nil {
		return err
	}
	trip := p.now().Sub(before)
	ahead := before.Add(trip / 2).Sub(server)
	if ahead.Abs() > apart+trip/2 {
		p.find(Note, "clock", fmt.Sprintf("this machine's clock is %v apart from the database's", ahead.Abs().Round(time.Second)),
			"keys are not affected, all their times are the database's; mind it when you compare logs, and look after NTP")
	}
	return nil
}
